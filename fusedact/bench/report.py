"""What the figures say, as tables for the terminal and for Markdown. Works on records; measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fusedact.bench.case import MODES, OUTPUTS, WARM
from fusedact.bench.goals import CEILING, KEPT, Figures, verdicts, wanted
from fusedact.bench.providers import CEILINGS, COMPILE, EAGER, MASK, NO_LIST, OURS, OURS_COMPILED, PROVIDERS
from fusedact.bench.results import Change, Result, Run, changes

README_MARKS = ("<!-- benchmark:begin -->", "<!-- benchmark:end -->")
README_LINK = "Every goal, every time, other machines: [docs/benchmarks.md](docs/benchmarks.md).\n"
MISSED = "✗"
RIVALS = (EAGER, COMPILE)
ROOFS = {ceiling.name for ceiling in CEILINGS}
ORDER = [p.name for p in PROVIDERS] + [c.name for c in CEILINGS]


@dataclass(frozen=True)
class Sheet:
    """A table, before it is known where it will be shown."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""

    def show(self, console: Console) -> None:
        """On a terminal; the title may be wider than the table."""
        console.print(f"\n{self.title}", style="italic", markup=False, highlight=False)
        table = Table()
        for number, heading in enumerate(self.header):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(f"[red]{escape(cell)}[/red]" if MISSED in cell else escape(cell) for cell in row))
        console.print(table)
        if self.note:
            console.print(self.note, style="dim", markup=False, highlight=False)

    def markdown(self, titled: bool = True) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        note = f"\n\n{self.note}" if self.note else ""
        return f"**{self.title}**\n\n{text}{note}" if titled else text


def duration(microseconds: float) -> str:
    """With a unit that suits."""
    if microseconds < 100:
        return f"{microseconds:.2f} µs"
    return f"{microseconds:,.0f} µs" if microseconds < 10_000 else f"{microseconds / 1000:,.1f} ms"


def size(count: int) -> str:
    """Bytes with a unit that suits."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def cell(result: Result | None) -> str:
    """The median, and how far the quartiles are from it."""
    if result is None:
        return ""
    spread = (result.high_us - result.low_us) / 2 / result.median_us
    return f"{duration(result.median_us)} ±{spread:.0%}"


def ratio_cell(ratio: float | None, goal: float | None) -> str:
    if ratio is None:
        return ""
    digits = 2 if ratio < 2 else 1
    return f"{ratio:.{digits}f}×" + (f" {MISSED}" if goal is not None and ratio < goal else "")


def _best(figures: Figures, results: list[Result]) -> list[Result]:
    """One result of every cell, to stand for it: fusedact's own where it is there."""
    cells = {r.cell: r for r in results}
    return [figures.beside(r, OURS) or r for r in cells.values()]


FEW_CASES = 4  # of one shape: then several shapes share a table


def settings(figures: Figures) -> list[list[Result]]:
    """The results of each table: one family, mode, place, dtype and number of threads; one shape where it has cases
    enough."""
    shaped: dict[tuple[Any, ...], list[Result]] = {}
    for r in figures.results:
        shaped.setdefault((r.family, r.dtype, r.mode, r.output, r.threads, r.device, r.shape), []).append(r)
    merged: dict[tuple[Any, ...], list[Result]] = {}
    for key, results in shaped.items():
        enough = len({r.case for r in results}) >= FEW_CASES
        merged.setdefault(key if enough else key[:-1], []).extend(results)
    return list(merged.values())


def titled(results: list[Result]) -> str:
    """What the results of a table have in common, for people."""
    one = results[0]
    place = f", {OUTPUTS[one.output].split(':')[0]}" if one.family != "models" else ""
    threads = "" if one.device != "cpu" else f", threads: {one.threads}"
    shape = f"{one.shape} " if len({r.shape for r in results}) == 1 else ""
    return f"{one.family} {shape}{one.dtype}, {MODES[one.mode]}{place}{threads}"


def names(results: list[Result]) -> Callable[[Result], str]:
    """How a row is called: with its shape where the table has several."""
    several = len({r.shape for r in results}) > 1
    return lambda r: f"{r.case} {r.shape}" if several else r.case


def times(figures: Figures, results: list[Result]) -> Sheet:
    """Every contender's time in the cells of one setting, and fusedact's lead over its rivals."""
    providers = sorted({r.provider for r in results}, key=ORDER.index)
    duels = [(own, rival) for own in (OURS, OURS_COMPILED, NO_LIST) for rival in RIVALS]
    duels = [duel for duel in duels if {*duel} <= {*providers}]
    bound = any(r.of_ceiling for r in results if r.provider == OURS)
    rows = []
    name = names(results)
    for one in _best(figures, results):
        row = [name(one), *(cell(figures.beside(one, p)) for p in providers)]
        for own, rival in duels:
            mine = figures.beside(one, own)
            row.append(ratio_cell(figures.ratio(mine, rival), wanted(mine, rival)) if mine else "")
        if bound:
            row += _speed(one)
        rows.append(row)
    heads = [f"× {rival}" + ("" if own == OURS else f", {own}") for own, rival in duels]
    heads += ["GB/s", "of a copy"] if bound else []
    big = [r for r in results if r.page_faults >= 1000]
    faults = {r.provider: max(b.page_faults for b in big if b.provider == r.provider) for r in big}
    show = results and (big or results[0].output == WARM)
    note = f"page faults per call, at most: {_listed(faults) or 'under 1,000 each'}" if show else ""
    return Sheet(titled(results), ["", *providers, *heads], rows, note)


def _listed(faults: dict[str, float]) -> str:
    return ", ".join(f"{provider} {count:,.0f}" for provider, count in faults.items())


def _speed(result: Result) -> list[str]:
    """GB/s and the part of a copy's, of fusedact."""
    if result.provider != OURS or result.gb_per_s is None or result.of_ceiling is None:
        return ["", ""]
    goal = wanted(result, CEILING)
    missed = f" {MISSED}" if goal is not None and result.of_ceiling < goal else ""
    return [f"{result.gb_per_s:.3g}", f"{result.of_ceiling:.0%}{missed}"]


def memory(figures: Figures) -> Sheet | None:
    """Bytes at the peak of a call and bytes kept for backward, for the cells that keep any."""
    rows = []
    for one in _best(figures, figures.of("backward,step fresh")):
        if one.threads != figures.threads[-1]:
            continue
        who = [figures.beside(one, p) for p in (EAGER, COMPILE, OURS, MASK)]
        if one.kept_bytes is None or all(r is None or (r.peak_bytes or 0) < 1 << 20 for r in who):
            continue
        shown = [
            "" if r is None else f"{size(r.peak_bytes or 0)} / {size(r.kept_bytes or 0)}" for r in who
        ]  # fmt: skip
        rows.append([f"{one.case} {one.shape} {one.dtype}, {MODES[one.mode]}", *shown])
    if not rows:
        return None
    return Sheet("Peak memory of a call / bytes kept for backward", ["", EAGER, COMPILE, OURS, MASK], rows)


def all_times(figures: Figures) -> Iterator[Sheet]:
    """A table for every setting that was measured, in that order."""
    for results in settings(figures):
        yield times(figures, results)


def goals(figures: Figures) -> Sheet:
    """Every goal of which something was measured."""
    rows = []
    for v in verdicts(figures):
        rest = [name for name in v.missing if name != v.worst]
        who = v.worst + (f"; also below: {', '.join(rest)}" if rest else "")
        reached = f"{v.measured:.2f}×" + ("" if v.met else f" {MISSED}")
        goal = f"{v.goal.rival} " + (f"/ {v.goal.least:.3g}" if v.goal.rival == KEPT else f"{v.goal.least:.3g}×")
        rows.append([str(v.goal), str(v.threads), goal, reached, who, v.why])
    columns = ["setting", "threads", "goal", "measured", "by the worst", "in the way"]
    return Sheet(f"Goals ({MISSED}: missed)", columns, rows)


# The four columns of the table on README's first screen.
HEADLINES = (
    ("512×3072 forward", "activations 512x3072 float32 forward fresh"),
    ("512×3072 forward + backward", "activations 512x3072 float32 backward fresh"),
    ("8192×4096 forward", "activations 8192x4096 float32 forward fresh"),
    ("8192×4096 forward + backward", "activations 8192x4096 float32 backward fresh"),
)


def headline(figures: Figures) -> Sheet:
    """How many times as fast as eager and torch.compile, of the most threads that were measured."""
    threads = figures.threads[-1]
    found = {name: figures.of(f"{where} t{threads}", OURS) for name, where in HEADLINES}
    rows = []
    for case in dict.fromkeys(r.case for results in found.values() for r in results):
        row = [case]
        for results in found.values():
            mine = [r for r in results if r.case == case]
            pairs = ((figures.ratio(r, rival), wanted(r, rival)) for r in mine for rival in RIVALS)
            row.append(" / ".join(text for text in (ratio_cell(*pair) for pair in pairs) if text))
        rows.append(row)
    title = f"Times as fast as eager `act(x + bias)` / as `torch.compile` of the same; float32, threads: {threads}."
    return Sheet(title, ["", *found], rows)


MOST_SHOWN = 25


def comparison(now: Run, then: Run) -> tuple[Sheet, str]:
    """What changed since, where that is beyond noise; and a line that says how much was compared."""
    found = list(changes(now, then))
    moved = sorted((c for c in found if c.beyond_noise), key=lambda c: -max(c.ratio, 1 / c.ratio))
    rows = [_moved(change) for change in moved[:MOST_SHOWN]]
    slower = sum(c.ratio > 1 for c in moved)
    title = f"Beyond noise, since {then.about.get('date', 'then')}"
    says = f"{len(found)} figures compared: {slower} slower, {len(moved) - slower} faster, the rest within noise."
    if len(moved) > MOST_SHOWN:
        says += f" The {MOST_SHOWN} largest are shown."
    differ = [k for k in ("cpu", "torch", "isa", "clock", "device") if now.about.get(k) != then.about.get(k)]
    if differ:
        says += " Not the same " + ", ".join(f"{k} ({then.about.get(k)}, now {now.about.get(k)})" for k in differ) + "."
    return Sheet(title, ["cell", "contender", "time now", "× time then", "noise up to"], rows), says


def _moved(change: Change) -> list[str]:
    now = change.now
    sign = "slower" if change.ratio > 1 else "faster"
    times = (duration(now.median_us), f"{change.ratio:.2f}× {sign}", f"{change.noise:.2f}×")
    return [" ".join(now.words), now.provider, *times]


def machine(about: dict[str, Any]) -> str:
    """Where and with what it was measured."""
    gpu = f"{about['device']}, " if about.get("device", "cpu") != "cpu" else ""
    return (
        f"{gpu}{about['cpu']}, {about['cores']} cores, fusedact {about['fusedact']} ({about['isa']}), "
        f"torch {about['torch']} ({about['torch_isa']}), Python {about['python']}, {about['date']}"
    )


def sheets(run: Run) -> Iterator[Sheet]:
    """Everything there is to see, in the order in which to read it."""
    figures = Figures(run.results)
    yield from all_times(figures)
    kept = memory(figures)
    if kept:
        yield kept
    wishes = goals(figures)
    if wishes.rows:
        yield wishes


def summary(run: Run) -> str:
    """The headline, how many goals were missed, and where it was measured, as Markdown."""
    figures = Figures(run.results)
    found = list(verdicts(figures))
    missed = sum(not v.met for v in found)
    lost = f"{missed} of {len(found)} goals missed, marked {MISSED}" if missed else f"all {len(found)} goals met"
    head = headline(figures)
    first = f"{head.title}\n\n{head.markdown(titled=False)}\n\n" if head.rows else ""
    return f"{first}{lost.capitalize()}. Backward includes the gradient of the bias. {machine(run.about)}.\n"


def markdown(run: Run) -> str:
    """The summary, every goal, and every time, as a page of its own."""
    tables = [goals(Figures(run.results)), *(sheet for sheet in sheets(run) if "Goals" not in sheet.title)]
    note = (
        "Median ± half the distance of the quartiles. `copy` moves x to memory that is there already, and computes\n"
        'nothing; GB/s and "of a copy" are fusedact\'s.'
    )
    return "\n\n".join([f"# {run.about['cpu']}", summary(run) + "\n" + note, *(t.markdown() for t in tables)]) + "\n"


def write_readme(path: Path, run: Run) -> None:
    """Put the summary between the marks of `path`.

    Raises:
        ValueError: there are no such marks, or several.
    """
    text = path.read_text()
    begin, end = README_MARKS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{path} must have one {begin} and, after it, one {end}")
    before, after = text[: text.index(begin)], text[text.index(end) :]
    path.write_text(f"{before}{begin}\n{summary(run)}{README_LINK}{after}")
