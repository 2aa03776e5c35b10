"""The lab: every experiment comes to its conclusion, within its time; and what happens to bad input."""

from __future__ import annotations

import functools
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from typer.testing import CliRunner

from fusedact import lab, registry
from fusedact.cli import app
from fusedact.lab import dying, frame, goodness, lenet
from fusedact.lab.frame import Report

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@functools.cache
def report(name: str) -> Report:
    begin = time.process_time()  # of this process alone: others may be busy
    found = lab.run(name)
    assert time.process_time() - begin < 60, "an experiment takes less than a minute"
    return found


@pytest.mark.parametrize("name", lab.EXPERIMENTS)
def test_reports_are_complete(name: str, tmp_path: Path) -> None:
    found = report(name)
    assert found.rows
    assert {len(row) for row in found.rows} == {len(found.columns)}
    assert found.conclusion.endswith(".")
    picture = found.save(tmp_path / "deeper" / "picture.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 5000, "an empty picture is smaller"
    assert found.conclusion in found.markdown("picture.png")
    assert lab.describe(name).endswith((".", "?"))
    shown = [float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+(?=%)", found.conclusion)]
    known = [100 * value for value in numbers_in(found.numbers)]
    for number in shown:
        assert any(abs(number - value) < 0.051 for value in known), f"{number} % is said, and is none of the numbers"


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for each in value.values() for n in numbers_in(each)]
    if isinstance(value, (list, tuple)):
        return [n for each in value for n in numbers_in(each)]
    return [float(value)] if isinstance(value, (int, float)) else []


def test_collapse() -> None:
    """The linear network is its product, before and after; the others are not, and learn more."""
    n = report("collapse").numbers
    assert n["identity"]["distance from W x + b"] < 1e-5
    assert n["identity"]["bend"] < 1e-5
    for name in ("relu", "sigmoid", "tanh"):
        assert n[name]["bend"] > 0.05
        assert n[name]["distance from W x + b"] > 0.05
        assert n[name]["accuracy"] > n["identity"]["accuracy"] + 0.02, name
    assert "relu, sigmoid and tanh does better" in report("collapse").conclusion


def test_xor() -> None:
    n = report("xor").numbers
    for name in ("no hidden layer", "hidden, linear"):
        assert n[name]["solved"] == 0
        assert n[name]["most right"] <= 3
        assert n[name]["least loss"] == pytest.approx(0.6931, abs=2e-3)  # log 2: the best that a line can do
    assert n["hidden, relu"]["solved"] >= 1
    assert n["hidden, relu"]["least loss"] < 0.05


def test_vanish() -> None:
    n = report("vanish").numbers
    assert n["below the bound"]
    assert n["left"]["sigmoid"] <= 0.25**19 * 1.00001
    assert n["left"]["tanh"] > 1e6 * n["left"]["sigmoid"]
    assert 0.6 < n["factor"]["relu"] < 0.8  # half of the units pass: 1 / sqrt(2)
    assert "NOT" not in report("vanish").conclusion


def test_dying() -> None:
    n = report("dying").numbers
    rates = [n[f"relu, He, {rate:g}"]["dead"] for rate in dying.RATES]
    assert rates[-1] > 0.3 > rates[0]
    bad, good = n["relu, biases at -1, 0.003"], n["relu, He, 0.003"]
    assert bad["dead at first"] > 0.5 > 0.1 > good["dead at first"]
    assert bad["dead"] >= bad["dead at first"]
    assert bad["accuracy"] < 0.5 < 0.9 < good["accuracy"]
    for name in ("leaky_relu", "elu"):
        assert n[f"{name}, biases at -1, 0.003"]["dead"] == 0
        assert n[f"{name}, biases at -1, 0.003"]["accuracy"] > 0.9
    assert all(n[f"leaky_relu, {start}, {rate:g}"]["dead"] == 0 for start in dying.STARTS for rate in dying.RATES)


def test_saturation() -> None:
    n = report("saturation").numbers
    for name in ("sigmoid", "tanh"):
        shares = [n[f"{name} × {scale:g}"]["saturated"] for scale in (1, 5, 25, 100)]
        assert shares == sorted(shares)
        assert shares[0] < 0.01
        assert shares[-1] > 0.8
        assert n[f"{name} × 100"]["gradient"] < 0.1 * n[f"{name} × 1"]["gradient"]
        assert n[f"{name} × 100"]["accuracy"] < n[f"{name} × 1"]["accuracy"]


def test_selu() -> None:
    n = report("selu").numbers
    own, he, norm = (n[name] for name in ("SELU, LeCun", "SELU, He", "SELU, LeCun, batch norm"))
    assert abs(own["mean"]) < 0.2
    assert 0.6 < own["variance"] < 1.5
    assert own["neighbours"] == 0
    assert he["variance"] > 20
    assert norm["neighbours"] > 0.5
    assert norm["gradient"] > 1.5 * own["gradient"]
    assert n["ReLU, LeCun"]["variance"] < 1e-6


def test_residual() -> None:
    n = report("residual").numbers
    assert n["sigmoid, plain"]["gradient"] < 1e-10
    assert n["sigmoid, plain"]["accuracy"] < 0.3
    for name in ("sigmoid", "tanh", "relu"):
        assert n[f"{name}, skips"]["gradient"] > 0.05
        assert n[f"{name}, skips"]["accuracy"] > max(0.85, n[f"{name}, plain"]["accuracy"])


def test_choose() -> None:
    n = report("choose").numbers
    assert set(n) == {row.name for row in registry.ROWS}
    assert all(v["seconds"] > 0 for v in n.values())
    for name in ("relu", "gelu", "silu", "tanh"):
        assert n[name]["accuracy"] > n["identity"]["accuracy"] + 0.03, name
    assert n["gelu"]["bytes"] > n["relu"]["bytes"] >= 2 * 128 * 128 * 4  # gelu keeps its inputs beside its outputs


def test_choose_counts_the_bytes_that_backward_keeps() -> None:
    from fusedact.lab.choose import kept

    x = torch.randn(10, 4)
    linear = torch.nn.Linear(4, 3)
    assert kept(linear, x) == 0  # the input and the weights are there anyway
    assert kept(torch.nn.Sequential(linear, torch.nn.Sigmoid()), x) == 10 * 3 * 4


def test_goodness() -> None:
    """The judgements of the textbook, each for its own reason."""
    n = report("goodness").numbers
    wrong = {
        "identity": ["non-linear"],
        "quadratic": ["tells apart"],
        "square root": ["defined", "finite slope"],
        "logarithm": ["defined", "finite slope"],
        "signed square root": ["finite slope"],
        "cos": ["tells apart"],
    }
    assert {name: v["reasons"] for name, v in n.items()} == {**wrong, "relu": [], "tanh": [], "gelu": []}


@pytest.mark.parametrize(
    ("f", "reasons"),
    [
        (lambda x: x * torch.sigmoid(x), []),
        (lambda x: torch.where(x > 0, x, 0.1 * x), []),
        (torch.sign, ["gradient"]),
        (lambda x: x * 0 + 1, ["gradient", "non-linear"]),
        (lambda x: 1 / x, ["defined", "finite slope", "tells apart"]),
        (lambda x: x + 0 * x.detach().floor(), ["non-linear"]),
        (lambda x: (x * 1e4).sin().detach() + 0 * x, ["differentiable", "gradient", "tells apart"]),
    ],
    ids=["silu", "leaky", "sign", "constant", "1/x", "line", "detached"],
)
def test_judging_a_function_of_ones_own(f: Any, reasons: list[str]) -> None:
    assert list(goodness.judge(f).reasons) == reasons


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (3, TypeError, "takes a function of one tensor, but got 3"),
        (lambda x: 1 / 0, ValueError, r"raised ZeroDivisionError for a float64 tensor of shape \[4019\]"),
        (lambda x: x.sum(), ValueError, "not elementwise"),
        (lambda x: x > 0, TypeError, "must return a float tensor, but returned torch.bool"),
        (lambda x: 1.0, TypeError, "must return a float tensor, but returned float"),
        (lambda x: x.detach().sin(), ValueError, "does not depend on its input for autograd"),
    ],
    ids=["number", "raises", "sum", "bool", "float", "detached"],
)
def test_a_function_that_misbehaves_is_told_apart(f: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        goodness.judge(f)


def test_lenet() -> None:
    n = report("lenet").numbers
    assert n["parameters"] == lenet.PARAMETERS == 697_046
    assert n["untrained"] < 0.3
    assert n["accuracy"] > 0.75
    assert "NOT" not in report("lenet").conclusion
    assert lenet.lenet5()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def fake_cifar(folder: Path, kind: str) -> None:
    """40 images of one colour each, which is their class."""
    folder.mkdir()
    for part in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        labels = numpy.arange(40) % 10
        images = numpy.repeat(labels[:, None] * 20, 3072, 1).astype(numpy.uint8)
        if kind == "bin":
            numpy.concatenate([labels[:, None].astype(numpy.uint8), images], 1).tofile(folder / f"{part}.bin")
        else:
            (folder / part).write_bytes(pickle.dumps({b"data": images, b"labels": labels.tolist()}))


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_lenet_on_cifar10(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar(tmp_path / f"cifar-10-batches-{kind}", kind)
    x, y, test_x, test_y = lenet.cifar10(tmp_path)
    assert (x.shape, len(y), test_x.shape, len(test_y)) == ((200, 3, 32, 32), 200, (40, 3, 32, 32), 40)
    torch.testing.assert_close(x[:, 0, 0, 0] * 255 / 20, y.float())
    monkeypatch.setattr(lenet, "STEPS", 10)
    assert "CIFAR-10" in lab.run("lenet", data=tmp_path).conclusion


def test_damaged_cifar10_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected data_batch_1\.bin"):
        lenet.cifar10(tmp_path)
    fake_cifar(tmp_path / "a", "bin")
    (tmp_path / "a" / "data_batch_2.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match="has 3 bytes, but CIFAR-10's images take 3073"):
        lenet.cifar10(tmp_path / "a")
    fake_cifar(tmp_path / "b", "py")
    (tmp_path / "b" / "data_batch_1").write_bytes(pickle.dumps(Path))  # names a class that a data file never does
    with pytest.raises(ValueError, match=r"not a batch of CIFAR-10: a CIFAR-10 file holds no pathlib"):
        lenet.cifar10(tmp_path / "b")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lstm(seed: int) -> None:
    n = (lab.run("lstm", seed=seed) if seed else report("lstm")).numbers
    assert n["relative"]["LSTM"] < 0.02
    assert n["relative"]["LSTM"] < 0.5 * n["relative"]["no gates"]
    at, after = n["forget gate"]
    assert at < after - 0.02
    at, elsewhere = n["written"]
    assert at > 1.2 * elsewhere


def test_transformer() -> None:
    n = report("transformer").numbers
    assert n.pop("parameters differ by") < 0.01
    assert all(v["accuracy"] > 0.85 for v in n.values())
    order = sorted(n, key=lambda kind: n[kind]["loss"])
    assert f"lowest with {order[0]}" in report("transformer").conclusion


def test_the_callers_random_numbers_and_threads_are_left_alone() -> None:
    torch.manual_seed(5)
    wanted, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    first = lab.run("vanish").numbers
    assert torch.equal(torch.rand(3), wanted)
    assert torch.get_num_threads() == threads
    assert first["left"] == lab.run("vanish").numbers["left"], "the same seed, the same numbers"
    assert first["left"] != lab.run("vanish", seed=1).numbers["left"]


def test_an_unknown_experiment() -> None:
    with pytest.raises(
        ValueError, match=r"no experiment is called 'vanishing'; did you mean vanish\? there are collapse"
    ):
        lab.run("vanishing")


def test_names_are_listed_in_words() -> None:
    assert frame.listed([]) == "none"
    assert frame.listed(["a", "b", "c"]) == "a, b and c"


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["lab", *arguments], env={"COLUMNS": "200"})


def test_command_line(tmp_path: Path) -> None:
    done = invoke("vanish", "--output", str(tmp_path), "--markdown")
    assert done.exit_code == 0, done.output
    assert lab.run("vanish").conclusion in " ".join(done.output.split())
    assert (tmp_path / "vanish.png").is_file()
    page = (tmp_path / "vanish.md").read_text()
    assert lab.run("vanish").conclusion in page
    assert "](vanish.png)" in page


def test_command_line_lists_all() -> None:
    done = invoke("--list")
    assert done.exit_code == 0
    assert all(name in done.output for name in lab.EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an experiment, or all"),
        (["chose"], "did you mean choose"),
        (["goodness", "--function", "torch"], "must be package.module:function"),
        (["goodness", "--function", "torch:nothing"], "torch has no function nothing"),
        (["goodness", "--function", "no_such_module:f"], "No module named"),
        (["vanish", "--function", "torch:sin"], "--function belongs to goodness"),
        (["vanish", "--data", "."], "--data belongs to lenet"),
        (["lenet", "--data", "tests"], "no CIFAR-10 in"),
        (["goodness", "--function", "torch:sum"], "not elementwise"),
    ],
    ids=str,
)
def test_bad_command_lines(arguments: list[str], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code
    said = re.sub(r"\s+", " ", done.output + str(done.exception or ""))
    assert message in said
