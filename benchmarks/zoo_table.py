"""The zoo's speed as a table in a page of the documentation: `python benchmarks/zoo.py --table docs/fuse.md`.

Every model as it is and fused first, then torch.compile as far as the minutes go, models of few layers first: a row
that is not reached says so. Knows models and clocks; nothing of how anything is fused.
"""

from __future__ import annotations

import contextlib
import gc
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import fusedact

MARKS = "<!-- zoo:begin -->", "<!-- zoo:end -->"
BAR = 1.02  # beyond it, fused is slower by more than noise
SHARE = 0.45  # of the time, for eager and fused; the rest is torch.compile's
MODES = "training step", "inference"
EAGER, FUSED, COMPILED, BOTH = "eager", "fused", "compile", "fused + compile"


@dataclass
class Row:
    """What was measured of one model, by mode and contender: seconds of eager, multiples of it for the others."""

    name: str
    model: nn.Module
    fused: nn.Module
    inputs: dict[str, Any]
    found: dict[tuple[str, str], float] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)


def call(model: Callable[..., Any], parameters: list[nn.Parameter], inputs: dict[str, Any], mode: str) -> None:
    """One training step without an optimizer, or one inference."""
    if mode == "inference":
        with torch.no_grad():
            model(**inputs)
        return
    for p in parameters:
        p.grad = None
    loss = torch.stack([t.float().mean() for t in _tensors(model(**inputs)) if t.requires_grad]).sum()
    loss.backward()  # type: ignore[no-untyped-call]


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for value in output.values() if isinstance(output, dict) else output:
            yield from _tensors(value)


def measure(row: Row, contenders: dict[str, Callable[..., Any]], mode: str, seconds: float, rounds: int) -> None:
    """Contenders take turns, the order turning too; the ratio is the median of the rounds' ratios to eager."""
    row.model.train(mode != "inference")
    row.fused.train(mode != "inference")
    parameters = {name: list(m.parameters()) for name, m in ((EAGER, row.model), (FUSED, row.fused))}

    def run(name: str, times: int) -> float:
        own = parameters[FUSED if name in (FUSED, BOTH) else EAGER]
        start = time.perf_counter()
        for _ in range(times):
            call(contenders[name], own, row.inputs, mode)
        return (time.perf_counter() - start) / times

    names = list(contenders)
    for name in names:
        run(name, 1)
    times = max(1, int(0.01 / run(EAGER, 1)))  # a block lasts 10 ms, or one call
    blocks: dict[str, list[float]] = {name: [] for name in names}
    end = time.monotonic() + seconds
    gc.collect()
    while len(blocks[EAGER]) < min(rounds, 3) or (time.monotonic() < end and len(blocks[EAGER]) < rounds):
        for name in names:
            blocks[name].append(run(name, times))
        names = names[::-1]
    eager = blocks.pop(EAGER)
    row.found.setdefault((mode, EAGER), statistics.median(eager))
    row.rounds.setdefault(mode, len(eager))
    for name, own in blocks.items():
        row.found[mode, name] = statistics.median(b / a for a, b in zip(eager, own, strict=True))


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """TimeoutError after so many seconds, where there are alarms."""

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1.0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def table(rows: list[Row], threads: int) -> str:
    """As Markdown."""
    others = (FUSED, COMPILED, BOTH)
    header = ["model", *(f"{mode}: {EAGER}" if name == EAGER else name for mode in MODES for name in (EAGER, *others))]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    for row in rows:
        cells = [row.name]
        for mode in MODES:
            eager = row.found.get((mode, EAGER))
            cells.append("–" if eager is None else f"{eager * 1e3:.3g} ms" if eager < 1 else f"{eager:.3g} s")
            for name in others:
                ratio = row.found.get((mode, name))
                than = row.found.get((mode, COMPILED), 1.0) if name == BOTH else 1.0
                lost = ratio is not None and name != COMPILED and ratio > BAR * than
                cells.append("–" if ratio is None else f"{ratio:.2f}" + " ✗" * lost)
        lines.append("| " + " | ".join(cells) + " |")
    kept = [r.found[m, FUSED] for r in rows for m in MODES if (m, FUSED) in r.found]
    lost_cells = sum(ratio > BAR for ratio in kept)
    rounds = [n for r in rows for n in r.rounds.values()]
    note = (
        f"Times of {EAGER}, and the others' as multiples of it (less is faster), medians of {min(rounds, default=0)} "
        f"to {max(rounds, default=0)} rounds in turns; {threads} thread{'s' * (threads > 1)}, {_processor()}, torch "
        f"{torch.__version__}. ✗: {FUSED} beyond {BAR} × {EAGER}, or {BOTH} beyond {BAR} × {COMPILED}; {FUSED} is so "
        f"in {lost_cells} of {len(kept)}. –: not measured, the time was over."
    )
    return "\n".join([*lines, "", note])


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def place(page: Path, text: str) -> None:
    """Put the table between the marks of the page; a page without marks gets them at its end."""
    whole = page.read_text() if page.exists() else ""
    begin, end = MARKS
    block = f"{begin}\n{text}\n{end}"
    if begin in whole and end in whole:
        head, rest = whole.split(begin, 1)
        page.write_text(head + block + rest.split(end, 1)[1])
    else:
        page.write_text(f"{whole.rstrip()}\n\n{block}\n".lstrip())


def write(zoo: tuple[Any, ...]) -> Callable[..., None]:
    """The command for a list of models (`tests/zoo.py`'s Animal)."""

    def command(
        table_: Annotated[Path, typer.Option("--table", help="The page to write the table into.")],
        minutes: Annotated[float, typer.Option(min=0.1, help="For everything.")] = 14.0,
        rounds: Annotated[int, typer.Option(min=1, help="At most, for one model and mode.")] = 60,
        threads: Annotated[int, typer.Option(min=1)] = 1,
        filter: Annotated[str, typer.Option(help="Only models with one of these words, as resnet,Llama.")] = "",
        compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile too.")] = True,
    ) -> None:
        """Measure the zoo and write the table."""
        start = time.monotonic()
        total = minutes * 60
        torch.set_num_threads(threads)
        words = [w for w in filter.split(",") if w]
        chosen = [a for a in zoo if not words or any(w.lower() in a.name.lower() for w in words)]
        if not chosen:
            raise typer.BadParameter(f"no model has a word of {filter!r} in its name")
        rows: list[Row] = []
        share = SHARE if compiled else 0.95
        for k, animal in enumerate(chosen):
            torch.manual_seed(0)
            model = animal.make()
            row = Row(animal.name, model, fusedact.fuse(model), animal.inputs())
            rows.append(row)
            left = (share * total - (time.monotonic() - start)) / (len(MODES) * (len(chosen) - k))
            for mode in MODES:
                measure(row, {EAGER: row.model, FUSED: row.fused}, mode, max(0.3, left - 0.5), rounds)
            shown = ", ".join(f"{m} × {row.found[m, FUSED]:.3f}" for m in MODES)
            print(f"{time.monotonic() - start:5.0f} s  {row.name}: fused {shown}", flush=True)
            place(table_, table(rows, threads))
        if compiled:
            for row in sorted(rows, key=lambda r: len(list(r.model.modules()))):
                for mode in MODES:
                    left = total - (time.monotonic() - start)
                    if left < 10:
                        break
                    _compiled(row, mode, min(left, 150.0), rounds)
                    text = ", ".join(
                        f"{n} × {row.found[mode, n]:.3f}" for n in (COMPILED, BOTH) if (mode, n) in row.found
                    )
                    print(f"{time.monotonic() - start:5.0f} s  {row.name}, {mode}: {text or 'no time'}", flush=True)
                    place(table_, table(rows, threads))
        place(table_, table(rows, threads))
        print(f"{time.monotonic() - start:5.0f} s  {table_} has the table.", flush=True)

    return command


def _compiled(row: Row, mode: str, seconds: float, rounds: int) -> None:
    torch.compiler.reset()
    try:
        with limit(seconds):
            contenders = {EAGER: row.model, COMPILED: torch.compile(row.model), BOTH: torch.compile(row.fused)}
            measure(row, contenders, mode, min(4.0, seconds / 8), rounds)
    except TimeoutError:
        pass
    except Exception as error:  # a model that cannot be compiled here is no reason to lose the table
        print(f"         {row.name}, {mode}: {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
