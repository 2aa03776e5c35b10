"""tests/native: that its table of rows is the registry's, and that docs/accuracy.md is what was found.

The programs themselves are run by `make proof`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cases import ROWS, kinks, row_id

from fusedact import proof
from fusedact.registry import CONTRACT, Activation

ROOT = Path(__file__).parent.parent
FOUND = ROOT / "docs" / "accuracy.jsonl"
PINS = ROOT / ".github" / "build-requirements.txt"


# What the sweep found beyond the bounds, not mended yet, all float64: what cancels beside a root (situ), what is
# squared or cubed after it was rounded (tanhshrink, softcap, sigmoid).
MISSED = {
    ("avx2", "selu", "float64", "derivative"), ("avx2", "selu", "float64", "second"),  # subnormal results
    ("avx2", "tanhshrink", "float64", "derivative"), ("avx2", "softsign", "float64", "second"),
    ("avx2", "softcap", "float64", "second"), ("avx2", "situ", "float64", "forward"),
    ("avx2", "situ", "float64", "derivative"), ("avx2", "situ", "float64", "second"),
    # Without a fused multiply-add.
    ("default", "gelu", "float32", "forward"), ("default", "gelu", "float32", "derivative"),
    ("default", "gelu", "float32", "second"), ("default", "gelu_tanh", "float32", "forward"),
    ("default", "quick_gelu", "float32", "forward"), ("default", "silu", "float32", "forward"),
    ("default", "swish", "float32", "forward"), ("default", "mish", "float32", "derivative"),
    ("default", "softplus", "float32", "forward"),
    ("default", "logsigmoid", "float32", "forward"), ("default", "tanh", "float32", "forward"),
    ("default", "tanh", "float32", "second"),
}  # fmt: skip


def numbers(text: str) -> list[float]:
    return [eval(t, {}) for t in text.split(",") if t.strip()]  # 1. / 8, and the like


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_rows_of_the_sweep_are_the_registrys(row: Activation) -> None:
    source = (ROOT / "tests" / "native" / "rows.h").read_text()
    found = re.search(rf'{{"{row.name}", {{(.*?)}}, {{(.*?)}}, fill', source)
    assert found, f"{row.name} has a row in fusedact/registry.py, but none in tests/native/rows.h"
    _, params, _ = row.resolve(None)
    assert numbers(found[1]) == pytest.approx(list(params), abs=0)
    assert sorted(numbers(found[2])) == sorted(kinks(row))
    definitions = (ROOT / "tests" / "native" / "definition.h").read_text()
    found = re.search(rf'{{"{row.name}", definition::\w+(.*)}},\n', definitions)
    assert found, f"{row.name} has no definition in tests/native/definition.h"
    limits = re.findall(r"contract\d+|Limits{{[^}]*}, [^}]*}", found[1])
    for k, dtype in enumerate(("float32", "float64")):
        bound, contract = row.bounds.get(dtype, CONTRACT[dtype]), CONTRACT[dtype]
        wanted = [bound.forward, bound.derivative, bound.second, bound.near_root]
        if k < len(limits) and limits[k].startswith("Limits"):
            stated = [float(v) for v in re.findall(r"[\d.]+(?:e-?\d+)?", limits[k])]
        else:
            stated = [contract.forward, contract.derivative, contract.second, contract.near_root]
        assert stated == wanted, f"{row.name}, {dtype}"


def test_ci_pins_what_a_build_requires() -> None:
    requires = re.search(r"^requires = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.M)
    assert requires
    pins = dict(line.split("==") for line in PINS.read_text().splitlines() if not line.startswith("#"))
    for name, least in re.findall(r'"([\w-]+)(?:>=([\d.]+))?"', requires[1]):
        assert name in pins, f"{name} has no pin in {PINS}"
        if least:
            assert [int(k) for k in pins[name].split(".")] >= [int(k) for k in least.split(".")], name


def test_the_page_is_what_was_found() -> None:
    """docs/accuracy.md is made from docs/accuracy.jsonl, and every bound of the registry holds there."""
    lines = proof.read(FOUND)
    page = (ROOT / "docs" / "accuracy.md").read_text()
    assert page == proof.markdown(lines), "make generate"
    missed = {(line.isa, line.activation, line.dtype, line.order) for line in lines if not line.kept}
    assert missed == MISSED
    assert {line.activation for line in lines} == {row.name for row in ROWS}
    assert {line.truth <= 2.0**-10 for line in lines} == {True}, "the sweep's truth was off"


def test_the_table_of_a_file(tmp_path: Path) -> None:
    runner = pytest.importorskip("typer.testing").CliRunner()
    from fusedact.cli import app

    line = next(line for line in proof.read(FOUND) if line.activation == "gelu")
    line.ulp = 99.0
    proof.write([line], tmp_path / "found.jsonl")
    done = runner.invoke(app, ["accuracy", "--proof", str(tmp_path / "found.jsonl")])
    assert done.exit_code == 1
    assert "1 of 1 bounds missed" in done.output
    assert runner.invoke(app, ["accuracy", "--proof", str(tmp_path / "none")]).exit_code == 2
