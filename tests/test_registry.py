"""The types of csrc/activations.h against the rows of fusedact/registry.py; and what is generated from the rows."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import ROWS, row_id

import fusedact
from fusedact import _C, registry
from fusedact.registry import Activation

ROOT = Path(__file__).parent.parent
rows = pytest.mark.parametrize("row", ROWS, ids=row_id)


def test_both_lists_hold_the_same_names() -> None:
    python, cpp = {row.name for row in ROWS}, {facts["name"] for facts in _C.activations()}
    missing = [f"{name} has a row in fusedact/registry.py, but no type in csrc/activations.h" for name in python - cpp]
    missing += [
        f"{name} is a type in csrc/activations.h, but has no row in fusedact/registry.py" for name in cpp - python
    ]
    assert not missing, "; ".join(missing)


@rows
def test_both_lists_agree_on_parameters(row: Activation) -> None:
    facts = next(f for f in _C.activations() if f["name"] == row.name)
    assert facts["params"] == len(row.resolve()[1])
    assert facts["weight"] == bool(row.tensor_parameter or row.noise)


def test_no_name_stands_twice() -> None:
    names = [name for row in ROWS for name in (row.name, *row.aliases)]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice


@rows
def test_names_aliases_functions_and_modules(row: Activation) -> None:
    for name in (row.name, *row.aliases):
        assert registry.get(name) is row
        assert getattr(fusedact, name) is getattr(fusedact, row.name)
        assert name in fusedact.functional.__all__
        assert name in fusedact.__all__
    assert row.name in fusedact.activations()
    assert registry.get(row.module).name == row.name
    assert issubclass(getattr(fusedact.nn, row.module), torch.nn.Module)
    assert row.module in fusedact.nn.__all__


@rows
def test_rows_are_complete(row: Activation) -> None:
    assert row.formula
    assert row.source
    assert row.module
    doc = getattr(fusedact, row.name).__doc__
    for wanted in ("input", "bias", "Returns", "Raises", row.formula, row.source, *(p.name for p in row.parameters)):
        assert wanted in doc, f"the docstring of {row.name} does not say {wanted}"
    assert getattr(fusedact.nn, row.module).__doc__
    for p in row.parameters:
        assert p.meaning
        assert p.samples or p.choices, f"{row.name}: {p.name} has no sample for the tests"


@rows
def test_kinks_are_where_the_slope_jumps(row: Activation) -> None:
    """The reference is smooth away from the row's kinks: f' does not jump between neighbours of a fine grid."""
    x = torch.linspace(-25, 25, 500_001, dtype=torch.float64, requires_grad=True)
    y = row.reference(x, *row.resolve()[1])
    slope = torch.autograd.grad(y.sum(), x)[0]
    jumps = x.detach()[1:][(slope[1:] - slope[:-1]).abs() > 5e-3]
    kinks = torch.tensor(row.kinks(*row.resolve()[1]) or [torch.inf], dtype=torch.float64)
    away = [j for j in jumps.tolist() if (kinks - j).abs().min() > 0.1]
    assert not away, f"{row.name} has a kink near {away[0]} that its row does not state"


@rows
def test_saturation_zones_are_where_the_slope_is_flat(row: Activation) -> None:
    """|f'| is below a thousandth inside, to the ends, and not beyond them; roots that f' crosses are left out."""
    x = torch.linspace(-50, 50, 200_001, dtype=torch.float64)
    v = x.clone().requires_grad_()
    slope = torch.autograd.grad(row.reference(v, *row.resolve()[1]).sum(), v)[0].abs()
    inside = torch.zeros_like(x, dtype=torch.bool)
    for low, high in row.saturation():
        assert low < high
        inside |= (x >= low) & (x <= high)
    assert (slope[inside] < registry.SATURATED).all()
    outside = x[~inside & (slope < registry.SATURATED)]
    assert len(outside) < 0.002 * len(x), f"{row.name} is flat near {outside[:3].tolist()}, and its zones do not say so"


def test_saturation_follows_the_parameters() -> None:
    sigmoid = math.log(1 / (0.5 - math.sqrt(0.25 - 1e-3)) - 1)  # y (1 - y) = 1e-3
    for (low, high), edge in zip(registry.get("sigmoid").saturation(), (-sigmoid, sigmoid), strict=True):
        assert edge in (pytest.approx(low), pytest.approx(high))
        assert math.inf in (abs(low), abs(high))
    assert registry.get("relu").saturation() == ((-math.inf, 0.0),)
    assert registry.get("leaky_relu").saturation() == ()
    assert registry.get("leaky_relu").saturation(0.0) == ((-math.inf, 0.0),)
    assert registry.get("hardtanh").saturation(-2.0, 0.5) == ((-math.inf, -2.0), (0.5, math.inf))
    assert registry.get("hardshrink").saturation() == ((-0.5, 0.5),)
    assert registry.get("gelu").saturation()[0][1] == pytest.approx(-3.81, abs=0.01)
    assert len(registry.get("gelu").saturation()) == 1, "the minimum at -0.75 is no zone"


def test_pytorch_activations_all_have_a_row() -> None:
    """Every elementwise activation class of torch.nn."""
    not_elementwise = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
    classes = set(torch.nn.modules.activation.__all__) - not_elementwise
    missing = classes - {row.module for row in ROWS}
    assert not missing, f"torch.nn has {missing}, and no row replaces it"


def test_stubs_are_up_to_date() -> None:
    from fusedact import stubs

    stale = [str(path.name) for path, text in stubs.stubs().items() if not path.exists() or path.read_text() != text]
    assert not stale, f"{stale} out of date: run `python -m fusedact.stubs`"


def test_the_stub_of_the_extension_lists_what_it_has() -> None:
    stub = (Path(fusedact.__file__).parent / "_C.pyi").read_text()
    named = set(re.findall(r"^def (\w+)", stub, re.M))
    assert named == {name for name in dir(_C) if not name.startswith("_")}


def test_documentation_tables_are_up_to_date() -> None:
    page = ROOT / "docs" / "activations.md"
    if not (ROOT / "csrc").exists():
        pytest.skip("not in the source tree")
    from fusedact import cli

    assert page.exists()
    assert page.read_text() == cli.markdown_page(), "run `make generate`"


def test_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "fusedact", "info"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert _C.capability() in done.stdout
    assert torch.__version__ in done.stdout


@pytest.mark.parametrize("options", [[], ["--markdown"], ["--json"]], ids=" ".join)
def test_command_line_lists_every_row(options: list[str]) -> None:
    from typer.testing import CliRunner

    from fusedact.cli import app

    done = CliRunner().invoke(app, ["list", *options], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    missing = [row.name for row in ROWS if row.name not in done.output]
    assert not missing


def test_importing_another_build_says_so() -> None:
    """The version check comes before the library: one sentence with the fix, not an undefined symbol."""
    code = "import torch; torch.__version__ = '1.0.0'; import fusedact"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode
    assert "ImportError" in done.stderr
    assert "1.0.0" in done.stderr
    assert "pip install" in done.stderr
