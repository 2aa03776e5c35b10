#!/usr/bin/env python3
"""What the figures say: the goals, whether they were met, and the tables, for the terminal and for README.md.

    python benchmarks/report.py benchmark-results/results.jsonl             show a report again
    python benchmarks/report.py benchmark-results/results.jsonl --readme    and write it into README.md

Works on the records that run.py wrote; measures nothing, and knows neither torch nor fusedact.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FORWARD, GRAD, BACKWARD = "forward", "forward with grad", "forward + backward"

README_MARKS = ("<!-- benchmark:begin -->", "<!-- benchmark:end -->")


@dataclass(frozen=True)
class Result:
    """One contender in one cell."""

    suite: str
    shape: list[int]
    dtype: str
    activation: str
    mode: str
    provider: str
    threads: int
    median_us: float
    low_us: float  # lower quartile
    high_us: float  # upper quartile
    rounds: int
    calls: int  # per round
    page_faults: float  # per call


@dataclass(frozen=True)
class Goal:
    """fusedact must be `factor` times as fast as `rival`: for each activation, or in geometric mean."""

    suite: str
    mode: str
    rival: str
    factor: float
    mean_of: tuple[str, ...] = ()  # empty: for each


# The activations that the goals are about: those that need no exponential, and those that do.
SIMPLE = ("relu", "leaky_relu", "hardswish")
SMOOTH = ("gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "elu", "softplus", "mish")

GOALS = (
    Goal("cached", FORWARD, "eager", 1.6),
    Goal("cached", FORWARD, "eager", 4.5, mean_of=SMOOTH),
    Goal("cached", FORWARD, "torch.compile", 1.5),
    Goal("cached", BACKWARD, "eager", 1.8),
    Goal("cached", BACKWARD, "eager", 4.0, mean_of=SMOOTH),
    Goal("large", FORWARD, "eager", 6.0),
    Goal("large", FORWARD, "torch.compile", 4.0),
    Goal("large", BACKWARD, "eager", 5.0),
    Goal("large", BACKWARD, "torch.compile", 5.0),
    Goal("reused", FORWARD, "eager", 2.2),
    Goal("reused", BACKWARD, "eager", 1.8),
    Goal("bfloat16", FORWARD, "eager", 1.5),
    Goal("call", FORWARD, "eager", 1 / 0.2),
    Goal("call", GRAD, "eager", 1 / 0.3),
    Goal("call", BACKWARD, "eager", 1 / 0.6),
)

TITLES = {
    "cached": "512×3072 float32, in cache",
    "large": "8192×4096 float32, as a user calls it",
    "reused": "8192×4096 float32, every contender reuses its buffers",
    "bfloat16": "512×3072 bfloat16",
    "call": "8 elements, float32",
}
OURS, NO_LIST = "fusedact", "no free list"  # the second is fusedact too
MISSED = "✗"


class Figures:
    """The results, to be asked by cell."""

    def __init__(self, results: list[Result]) -> None:
        self.results = results
        self._cells = {(r.suite, r.mode, r.threads, r.activation, r.provider): r for r in results}
        self.threads = sorted({r.threads for r in results})

    def get(self, suite: str, mode: str, threads: int, activation: str, provider: str) -> Result | None:
        return self._cells.get((suite, mode, threads, activation, provider))

    def seen(self, column: str, **where: Any) -> list[Any]:
        """The different values of `column` in the results that agree with `where`, in the order of measurement."""
        matching = (r for r in self.results if all(getattr(r, k) == v for k, v in where.items()))
        return list(dict.fromkeys(getattr(r, column) for r in matching))

    def most_faults(self, suite: str, mode: str, threads: int, provider: str) -> float:
        cells = (self.get(suite, mode, threads, a, provider) for a in self.seen("activation", suite=suite))
        return max(result.page_faults for result in cells if result)

    def speedup(
        self, suite: str, mode: str, threads: int, activation: str, rival: str, ours: str = OURS
    ) -> float | None:
        """How many times as fast as `rival`; None if one of the two was not measured."""
        theirs = self.get(suite, mode, threads, activation, rival)
        own = self.get(suite, mode, threads, activation, ours)
        return theirs.median_us / own.median_us if theirs and own else None


@dataclass(frozen=True)
class Verdict:
    goal: Goal
    threads: int
    measured: float
    worst: str  # the activation that decides, or "geometric mean of N"
    missing: tuple[str, ...]  # activations below the goal

    @property
    def met(self) -> bool:
        return self.measured >= self.goal.factor


def verdicts(figures: Figures) -> Iterator[Verdict]:
    for goal in GOALS:
        for threads in figures.threads:
            seen = figures.seen("activation", suite=goal.suite, mode=goal.mode, threads=threads)
            found = {a: figures.speedup(goal.suite, goal.mode, threads, a, goal.rival) for a in goal.mean_of or seen}
            ratios = {
                a: ratio for a, ratio in found.items() if ratio is not None and (goal.mean_of or a in SIMPLE + SMOOTH)
            }
            if not ratios:
                continue
            if goal.mean_of:
                mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
                yield Verdict(goal, threads, mean, f"geometric mean of {len(ratios)}", ())
            else:
                worst = min(ratios, key=ratios.__getitem__)
                missing = tuple(a for a, ratio in ratios.items() if ratio < goal.factor)
                yield Verdict(goal, threads, ratios[worst], worst, missing)


@dataclass(frozen=True)
class Sheet:
    """A table, before it is known where it will be shown."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""

    def rich(self) -> Table:
        table = Table(title=self.title, title_justify="left", caption=self.note, caption_justify="left")
        for number, heading in enumerate(self.header):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(f"[red]{cell}[/red]" if MISSED in cell else cell for cell in row))
        return table

    def markdown(self, titled: bool = True) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        note = f"\n\n{self.note}" if self.note else ""
        return f"**{self.title}**\n\n{text}{note}" if titled else text


def duration(microseconds: float) -> str:
    if microseconds < 100:
        return f"{microseconds:.2f} µs"
    return f"{microseconds:,.0f} µs" if microseconds < 10_000 else f"{microseconds / 1000:,.1f} ms"


def cell(result: Result | None) -> str:
    """The median, and how far the quartiles are from it."""
    if result is None:
        return ""
    spread = (result.high_us - result.low_us) / 2 / result.median_us
    return f"{duration(result.median_us)} ±{spread:.0%}"


def ratio_cell(ratio: float | None, goal: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.1f}×" + (f" {MISSED}" if goal is not None and ratio < goal else "")


def goal_for_each(suite: str, mode: str, rival: str) -> float | None:
    for goal in GOALS:
        if (goal.suite, goal.mode, goal.rival) == (suite, mode, rival) and not goal.mean_of:
            return goal.factor
    return None


def times(figures: Figures, suite: str, mode: str, threads: int) -> Sheet:
    """Every contender's time, and fusedact's lead over the rivals."""
    providers = figures.seen("provider", suite=suite, mode=mode, threads=threads)
    rivals = [p for p in providers if p in ("eager", "torch.compile")]
    ours = [p for p in providers if p in (OURS, NO_LIST)]
    duels = [(own, rival) for own in ours for rival in rivals]
    rows = []
    for activation in figures.seen("activation", suite=suite, mode=mode, threads=threads):
        row = [activation, *(cell(figures.get(suite, mode, threads, activation, p)) for p in providers)]
        for own, rival in duels:
            goal = goal_for_each(suite, mode, rival) if own == OURS else None
            row.append(ratio_cell(figures.speedup(suite, mode, threads, activation, rival, own), goal))
        rows.append(row)
    heads = [f"× {rival}" + ("" if own == OURS else f", {own}") for own, rival in duels]
    faults = (f"{p} {figures.most_faults(suite, mode, threads, p):,.0f}" for p in providers)
    note = f"page faults per call, at most: {', '.join(faults)}" if suite in ("large", "reused") else ""
    return Sheet(f"{TITLES[suite]}, {mode}, threads: {threads}", ["", *providers, *heads], rows, note)


def all_times(figures: Figures) -> Iterator[Sheet]:
    for threads in figures.threads:
        for suite in figures.seen("suite", threads=threads):
            for mode in figures.seen("mode", suite=suite, threads=threads):
                yield times(figures, suite, mode, threads)


def goals(figures: Figures) -> Sheet:
    rows = []
    for v in verdicts(figures):
        rest = [a for a in v.missing if a != v.worst]
        who = v.worst + (f"; also below: {', '.join(rest)}" if rest else "")
        what = f"{TITLES[v.goal.suite]}, {v.goal.mode}"
        measured = f"{v.measured:.2f}×" + ("" if v.met else f" {MISSED}")
        rows.append([what, str(v.threads), f"{v.goal.rival} {v.goal.factor:.2g}×", measured, who])
    return Sheet(f"Goals ({MISSED}: missed)", ["setting", "threads", "goal", "measured", "by the worst"], rows)


# The four columns of the table on README's first screen.
HEADLINES = (("cached", FORWARD), ("cached", BACKWARD), ("large", FORWARD), ("large", BACKWARD))


def headline(figures: Figures) -> Sheet:
    threads = figures.threads[-1]
    shapes = {"cached": "512×3072", "large": "8192×4096"}
    rows = []
    for activation in figures.seen("activation", suite="cached", threads=threads):
        row = [activation]
        for suite, mode in HEADLINES:
            ratios = []
            for rival in ("eager", "torch.compile"):
                ratio = figures.speedup(suite, mode, threads, activation, rival)
                if ratio is not None:
                    ratios.append(ratio_cell(ratio, goal_for_each(suite, mode, rival)))
            row.append(" / ".join(ratios))
        rows.append(row)
    title = f"Times as fast as eager `act(x + bias)` / as `torch.compile` of the same; float32, threads: {threads}."
    return Sheet(title, ["", *(f"{shapes[suite]} {mode}" for suite, mode in HEADLINES)], rows)


def machine(about: dict[str, Any]) -> str:
    return (
        f"{about['cpu']}, {about['cores']} cores, fusedact {about['fusedact']} ({about['isa']}), "
        f"torch {about['torch']} ({about['torch_isa']}), Python {about['python']}, {about['date']}"
    )


def wide_console() -> Console:
    """The terminal; or, where there is none, lines that are long enough: a log file has no edge."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def print_report(console: Console, about: dict[str, Any], results: list[Result]) -> None:
    figures = Figures(results)
    console.print(machine(about), soft_wrap=True)
    console.print(f"huge pages: {about['huge_pages']}; load at the start: {about['load']}", markup=False)
    for sheet in all_times(figures):
        console.print(sheet.rich())
    console.print(goals(figures).rich())


def markdown(about: dict[str, Any], results: list[Result]) -> str:
    """The headline, and everything else folded below it."""
    figures = Figures(results)
    found = list(verdicts(figures))
    missed = sum(not v.met for v in found)
    lost = f"{missed} of {len(found)} goals missed, marked {MISSED}" if missed else f"all {len(found)} goals met"
    head = headline(figures)
    details = "\n\n".join([goals(figures).markdown(), *(sheet.markdown() for sheet in all_times(figures))])
    return f"""{head.title}

{head.markdown(titled=False)}

{lost.capitalize()}. Backward includes the gradient of the bias. {machine(about)}.
How it is measured: [benchmarks/NOTES.md](benchmarks/NOTES.md).

<details><summary>Every goal, every time, every setting</summary>

Median ± half the distance of the quartiles. `copy` moves x to memory that is there already, and computes nothing.

{details}

</details>
"""


def write_markdown(path: Path, about: dict[str, Any], results: list[Result]) -> None:
    path.write_text(markdown(about, results))


def write_readme(path: Path, about: dict[str, Any], results: list[Result]) -> None:
    text = path.read_text()
    begin, end = README_MARKS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"{path} must have one {begin} and, after it, one {end}")
    before, after = text[: text.index(begin)], text[text.index(end) :]
    path.write_text(f"{before}{begin}\n{markdown(about, results)}{after}")


def read(path: Path) -> tuple[dict[str, Any], list[Result]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    about = next(r for r in records if r["kind"] == "environment")
    results = [Result(**{k: v for k, v in r.items() if k != "kind"}) for r in records if r["kind"] == "result"]
    return about, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file that run.py wrote")
    parser.add_argument("--markdown", type=Path, help="write the report, as Markdown, to this file")
    parser.add_argument("--readme", action="store_true", help="put the report into README.md, between its marks")
    options = parser.parse_args()
    about, results = read(options.results)
    print_report(wide_console(), about, results)
    if options.markdown:
        write_markdown(options.markdown, about, results)
    if options.readme:
        write_readme(Path(__file__).resolve().parent.parent / "README.md", about, results)


if __name__ == "__main__":
    main()
