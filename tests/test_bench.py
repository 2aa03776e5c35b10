"""The benchmark's own promises: what is wrong is found, what is noise is not news, filters say what they mean."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("typer")

from typer.testing import CliRunner

import fusedact
from fusedact import registry
from fusedact.bench import cases, goals, measure, report, results, space
from fusedact.bench.case import BACKWARD, DOUBLE, FORWARD, INPLACE, STEP, Case, Wrong, normal
from fusedact.bench.cases import activations, models
from fusedact.bench.results import Result, Run
from fusedact.bench.space import Cell
from fusedact.cli import app

SETTINGS = measure.Settings(rounds=2, seconds=0.0)


def a_result(provider: str = "fusedact", median: float = 100.0, spread: float = 0.0, **more: Any) -> Result:
    facts: dict[str, Any] = {
        "family": "activations", "case": "gelu", "shape": "512x3072", "dtype": "float32", "mode": FORWARD,
        "output": "fresh", "threads": 1, "device": "cpu", "rounds": 15, "calls": 7, "page_faults": 0.0,
    }  # fmt: skip
    half = median * spread / 2
    times = {"median_us": median, "low_us": median - half, "high_us": median + half}
    return Result(**{**facts, "provider": provider, **times, **more})


# ---- a wrong result is found, before any time is taken ----


def off_by(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, bias: fusedact.silu(x, bias) * factor


class WrongGradient(torch.autograd.Function):
    """silu, whose derivative is too large by a thousandth in the last row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return F.silu(x + bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, bias = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            gx, gb = torch.autograd.grad(F.silu(x + bias), (x, bias), grad)
        gx[-1] *= 1.001
        return gx, gb


def forgets_last_row(x: Tensor, bias: Tensor) -> Tensor:
    y = fusedact.silu(x, bias)
    with torch.no_grad():
        y[-1] = 0
    return y


def gives_nan(x: Tensor, bias: Tensor) -> Tensor:
    return fusedact.silu(x, bias) * torch.full((), torch.nan)


WRONG: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "a thousandth too large": (FORWARD, off_by(1.001)),
    "another activation": (FORWARD, lambda x, bias: fusedact.swish(x, bias, beta=1.001)),
    "without the bias": (FORWARD, lambda x, bias: fusedact.silu(x)),
    "NaN": (FORWARD, gives_nan),
    "the last row": (FORWARD, forgets_last_row),
    "the gradient alone": (BACKWARD, WrongGradient.apply),
    "the second derivative alone": (DOUBLE, lambda x, bias: fusedact.silu(x, bias) + 1e-3 * ((x - x.detach()) ** 2)),
}


def planted(wrong: Callable[..., Tensor] | None, shape: str = "32x128") -> Case:
    right = activations.case(registry.get("silu"), shape, torch.float32)
    return dataclasses.replace(right, fresh={**right.fresh, "fusedact": wrong}) if wrong else right


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("shape", ["32x128", "4096x3136"])
def test_a_wrong_result_is_found(name: str, shape: str) -> None:
    """Also among more elements than are checked one by one."""
    mode, wrong = WRONG[name]
    if shape == "4096x3136" and mode != FORWARD:
        pytest.skip("the rows that are checked of large tensors are the same in every mode")
    case = planted(wrong, shape)
    inputs = case.inputs("cpu")
    truth = case.exact(mode, inputs)
    trial, right = case.trial("fusedact", mode, "fresh", inputs), planted(None, shape)
    assert trial is not None
    with pytest.raises(Wrong, match="wrong"):
        case.check("planted", trial.once(), truth, inputs)
    honest = right.trial("fusedact", mode, "fresh", inputs)
    assert honest is not None
    right.check("honest", honest.once(), truth, inputs)


def test_a_wrong_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (c for c in models.cases() if c.name == "mlp")
    cell = Cell(case, STEP, "fresh", 1, ("torch.compile", "fusedact, compiled"))
    found, wrong = measure.Bench(SETTINGS).measure(cell)
    assert {r.provider for r in found} == {"eager", "fusedact"}
    assert not wrong
    monkeypatch.setattr(fusedact, "fuse", lambda model: torch.nn.Sequential(model, torch.nn.Hardtanh(-0.1, 0.1)))
    found, wrong = measure.Bench(SETTINGS).measure(cell)
    assert [w.provider for w in wrong] == ["fusedact"]
    assert {r.provider for r in found} == {"eager"}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_command_fails_on_a_wrong_result_and_on_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = ["--quick", "--filter", "silu 32x128 forward fresh", "--save", str(tmp_path / "r.jsonl")]
    done = run(*wanted)
    assert done.exit_code == 0, done.output
    assert "0 wrong" in done.output
    monkeypatch.setattr(cases, "every", lambda: (planted(off_by(1.001)),))
    done = run(*wanted)
    assert done.exit_code == 1
    assert "1 wrong" in done.output
    kept = results.read(tmp_path / "r.jsonl")
    assert "fusedact" not in {r.provider for r in kept.results}  # never timed
    assert "eager" in {r.provider for r in kept.results}
    (wrong,) = kept.wrong
    assert wrong.fault
    assert "silu" in wrong.message


def test_a_peer_that_cannot_is_no_fault() -> None:
    def cannot(x: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError("not on this machine")

    case = dataclasses.replace(planted(None), fresh={**planted(None).fresh, "eager": cannot})
    cell = Cell(case, FORWARD, "fresh", 1, ("torch.compile", "fusedact, compiled"))
    found, wrong = measure.Bench(SETTINGS).measure(cell)
    assert "fusedact" in {r.provider for r in found}
    assert [(w.provider, w.fault) for w in wrong] == [("eager", False)]
    case = planted(cannot)
    _, wrong = measure.Bench(SETTINGS).measure(dataclasses.replace(cell, case=case))
    assert [(w.provider, w.fault) for w in wrong] == [("fusedact", True)]


# ---- what is measured is what is said ----


def test_in_place_contenders_leave_the_inputs_alone() -> None:
    case = planted(None)
    bench = measure.Bench(SETTINGS)
    _, wrong = bench.measure(Cell(case, FORWARD, INPLACE, 1, ("torch.compile", "fusedact, compiled")))
    assert not wrong
    for now, before in zip(bench.inputs, case.inputs("cpu"), strict=True):
        assert torch.equal(now, before)


def test_memory_is_counted_to_the_byte() -> None:
    case = activations.case(registry.get("relu"), "256x1024", torch.float32)
    cell = Cell(case, BACKWARD, "fresh", 1, ("torch.compile", "fusedact, compiled"))
    found = {r.provider: r for r in measure.Bench(SETTINGS).measure(cell)[0]}
    whole, bias = 256 * 1024 * 4, 1024 * 4
    assert found["eager"].kept_bytes == whole  # relu's result
    assert found["fusedact"].kept_bytes == whole
    assert found["fusedact, mask"].kept_bytes == whole // 32
    assert found["fusedact"].peak_bytes == 2 * whole + bias  # the result, and both gradients
    assert found["fusedact"].moved_bytes == 2 * whole + bias + whole + whole + bias + whole + bias


def test_sixteen_bit_inputs_need_no_rounding() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x, bias = normal(64, 512, dtype=dtype), normal(512, dtype=dtype, seed=1, bias=True)
        assert torch.equal((x + bias).double(), x.double() + bias.double())
        assert (((x + bias).double() * 16) % 1 != 0).all()  # never on a kink


def test_contenders_take_turns() -> None:
    """As often first as last."""
    order: list[str] = []

    @dataclasses.dataclass
    class Spy:
        name: str

        def block(self) -> None:
            order.append(self.name)

    measure.compete([Spy(name) for name in "abc"], 0.0, 12)  # type: ignore[misc]
    rounds = [order[i : i + 3] for i in range(0, 36, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    for name in "abc":
        assert statistics.mean(turn.index(name) for turn in rounds) == 1.0


# ---- noise ----


def measured(rng: random.Random, true: float, rounds: int = 15, noise: float = 0.05) -> Result:
    """A contender as a noisy machine shows it: most blocks near the truth, a few far above it."""
    blocks = [true * (1 + abs(rng.gauss(0, noise))) * (3.0 if rng.random() < 0.05 else 1.0) for _ in range(rounds)]
    low, median, high = statistics.quantiles(blocks, n=4)
    return a_result(median=median, low_us=low, high_us=high, rounds=rounds)


def alarms(change: float, noise: float, tries: int = 400) -> float:
    """How often two runs of 15 blocks, the second `change` times as slow, are called different."""
    rng = random.Random(0)
    about: dict[str, Any] = {}
    pairs = ((measured(rng, 100 * change, noise=noise), measured(rng, 100, noise=noise)) for _ in range(tries))
    found = [next(results.changes(Run(about, [now]), Run(about, [then]))) for now, then in pairs]
    return sum(c.beyond_noise for c in found) / tries


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.5])
def test_two_runs_of_the_same_are_rarely_called_different(noise: float) -> None:
    assert alarms(1.0, noise) <= 0.05


def test_a_tenth_is_seen_through_a_little_noise_and_not_through_much() -> None:
    assert alarms(1.1, 0.02) >= 0.95
    assert alarms(1 / 1.1, 0.02) >= 0.95
    assert alarms(1.1, 1.0) <= 0.2


def test_a_slower_machine_is_no_change_of_ours() -> None:
    then = Run({}, [a_result("eager", 200), a_result("fusedact", 100)])
    slower = Run({}, [a_result("eager", 240), a_result("fusedact", 118)])
    ours = [c.beyond_noise for c in results.changes(slower, then) if c.now.provider == "fusedact"]
    assert ours == [False]
    alone = Run({}, [a_result("eager", 201), a_result("fusedact", 118)])
    assert [c.now.provider for c in results.changes(alone, then) if c.beyond_noise] == ["fusedact"]


def test_the_comparison_says_what_moved() -> None:
    then = Run({"date": "yesterday", "cpu": "one"}, [a_result("eager", 200), a_result("fusedact", 100)])
    now = Run({"date": "today", "cpu": "two"}, [a_result("eager", 200), a_result("fusedact", 130)])
    sheet, says = report.comparison(now, then)
    assert [row[1:] for row in sheet.rows] == [["fusedact", "130 µs", "1.30× slower", "1.03×"]]
    assert "1 slower, 0 faster" in says
    assert "Not the same cpu (one, now two)" in says


# ---- files ----


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    first = Run(measure.environment(SETTINGS, [1]), [a_result(), a_result("eager", gb_per_s=1.5, kept_bytes=7)])
    first.wrong.append(results.Wrong("a cell", "eager", "one\ntwo", False))
    first.write(path)
    assert results.read(path) == first
    about = first.about
    assert {"cpu", "isa", "torch_isa", "torch", "fusedact", "python", "threads", "device"} <= about.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line that tells the environment"),
        ("no json", "line 1"),
        ('{"kind": "environment"}\n{"kind": "result", "family": "x"}', "line 2"),
        ('{"kind": "environment"}\n{"kind": "other"}', "line 2"),
    ],
)
def test_another_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        results.read(path)
    done = run("--show", str(path))
    assert done.exit_code == 2


def test_the_summary_goes_between_the_marks(tmp_path: Path) -> None:
    readme, kept = tmp_path / "README.md", tmp_path / "run.jsonl"
    begin, end = report.README_MARKS
    about = measure.environment(SETTINGS, [1])
    rivals = [a_result("eager", 400), a_result("torch.compile", 150), a_result("copy", 50, of_ceiling=1.0)]
    Run(about, [a_result(gb_per_s=2.0, of_ceiling=0.5), *rivals]).write(kept)
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert run("--show", str(kept), "--readme", str(readme)).exit_code == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text
    assert "4.0× / 1.50× ✗" in text  # gelu's goals are 1.8 and 2.2
    readme.write_text("no marks")
    assert run("--show", str(kept), "--readme", str(readme)).exit_code == 2


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from fusedact.bench import plots

    shapes = {"32x128": 32 * 128, "256x1024": 1 << 18, "512x3072": 512 * 3072}
    found = [
        a_result(who, 10.0 * i, case=case, shape=shape, moved_bytes=8 * count, gb_per_s=float(i), of_ceiling=i / 4)
        for shape, count in shapes.items()
        for case in ("relu", "gelu", "silu", "tanh")
        for i, who in enumerate(("fusedact", "eager", "torch.compile", "copy"), 1)
    ]
    # What has no ceiling, in a table of several shapes, has no place under the roof.
    found += [a_result(case="tiny", shape="8"), a_result("eager", 200.0, case="tiny", shape="8")]
    found += [a_result(case="tiny", shape="512", gb_per_s=1.0, of_ceiling=0.5)]
    written = plots.save(Run(measure.environment(SETTINGS, [1]), found), tmp_path)
    assert [path.name for path in written] == ["ratios.png", "roofline.png", "sizes.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


# ---- goals ----


def test_goals_are_judged_by_the_worst() -> None:
    times = {"relu": (100, 400), "leaky_relu": (100, 190), "hardswish": (100, 150)}
    found = [a_result(who, t, case=c) for c, pair in times.items() for who, t in zip(("fusedact", "eager"), pair)]  # noqa: B905
    verdicts = {str(v.goal): v for v in goals.verdicts(goals.Figures(found)) if v.goal.rival == "eager"}
    assert verdicts["relu 512x3072 float32 forward fresh"].met
    others = verdicts["others 512x3072 float32 forward fresh"]
    assert not others.met
    assert (others.worst, others.measured) == ("hardswish", 1.5)
    assert set(others.missing) == {"leaky_relu", "hardswish"}
    reasons = {row[0]: row[-1] for row in report.goals(goals.Figures(found)).rows if row[2].startswith("eager")}
    assert reasons["others 512x3072 float32 forward fresh"].startswith(goals.MATHS)  # in the way of it
    assert reasons["relu 512x3072 float32 forward fresh"] == ""


@pytest.mark.parametrize(
    ("of_ceiling", "why"), [(0.9, "memory: it moves 90%"), (0.7, goals.MATHS), (None, goals.MATHS)]
)
def test_who_keeps_pace_with_a_copy_is_stopped_by_memory(of_ceiling: float | None, why: str) -> None:
    found = [a_result("eager", 150, case="silu"), a_result("fusedact", 100, case="silu", of_ceiling=of_ceiling)]
    (verdict,) = goals.verdicts(goals.Figures(found))
    assert not verdict.met
    assert verdict.why.startswith(why)


@pytest.mark.parametrize("goal", goals.GOALS, ids=str)
def test_every_goal_is_about_a_cell(goal: goals.Goal) -> None:
    """A goal that nothing is measured for can neither be met nor missed."""
    found = space.cells(cases.every(), [1], space.PLANS["all"], [goal.filter])
    sources = {p.name: p.source for p in measure.providers.PROVIDERS}
    wanted = [goal.who] + ([goal.rival] if goal.rival in sources else [])
    for who in wanted:
        assert any(sources[who] in cell.case.fresh for cell in found), f"{who} takes part in none of them"


# ---- which cells ----


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("", True),
        ("gelu", True),
        ("relu,gelu forward", True),
        ("ge*", True),
        ("t2", True),
        ("gelu_tanh", False),
        ("gel", False),
        ("gelu backward", False),
        ("512x3072 float32 fresh gelu activations", True),
    ],
)
def test_a_filter_means_all_of_its_words(filter: str, expected: bool) -> None:
    words = ("activations", "gelu", "512x3072", "float32", "forward", "fresh", "t2")
    assert space.matches(filter, words) is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "geluu"], "did you mean gelu"),
        (["--filter", "gelu 8192x4096 float16"], "not in this plan, but --plan all has"),
        (["--filter", "gelu relu"], "no cell has all the words"),
        (["--plan", "everything"], "--plan must be one of"),
        (["--threads", "0"], "--threads must be numbers from 1"),
        (["--threads", "two"], "--threads must be numbers from 1"),
        (["--clock", "cpu", "--threads", "1,2"], "adds up what all threads do"),
        (["--clock", "sun"], "--clock must be"),
        (["--without", "numpy"], "no contender 'numpy'"),
        (["--device", "tpu"], "--device must be"),
        (["--show", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    done = run("--list", *arguments) if "--show" not in arguments else run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_every_line_of_every_plan_means_something() -> None:
    for name, plan in space.PLANS.items():
        for line in plan:
            if name != "zoo":
                assert space.cells(cases.every(), [1, 2], [line], []), f"{name}: {line.filter}"


def test_the_quick_plan_checks_every_activation_and_every_family() -> None:
    found = space.cells(cases.every(), [1], space.PLANS["quick"], [])
    named = {cell.case.name for cell in found if cell.case.family == "activations"}
    assert named == {row.name for row in registry.ROWS if row.noise is None}
    assert {cell.case.family for cell in found} == {case.family for case in cases.every()}
    assert not [cell for cell in found if "torch.compile" not in cell.without]  # compiling takes seconds a cell


def test_the_space_is_what_was_promised() -> None:
    words = [{word for cell in space.cells(cases.every(), [1, 2], [space.Line("")], []) for word in cell.words}][0]
    assert {
        "8",
        "32x128",
        "512x3072",
        "8192x4096",
        "16x64x112x112",
        "16x64x112x112-channels_last",
        "512x22016",
    } <= words
    assert {"float32", "float64", "bfloat16", "float16"} <= words
    assert {
        "forward",
        "backward",
        "double",
        "step",
        "inference",
        "fresh",
        "warm",
        "inplace",
        "cold",
        "t1",
        "t2",
    } <= words
    assert {"mlp", "convnet", "vit", "gpt2-like", "llama-like"} <= words


def test_the_list_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.Bench, "measure", None)
    done = run("--list", "--filter", "gelu")
    assert done.exit_code == 0
    assert "min" in done.output
    assert "512x3072" in done.output
