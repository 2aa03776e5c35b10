"""Three pictures of a run: ratios per case, bytes per second under the copy's roof, and speed against size.

Reads records and draws into files; judges nothing. The only file of the benchmark that needs matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusedact.bench.case import FORWARD, FRESH
from fusedact.bench.goals import Figures, wanted
from fusedact.bench.providers import COMPILE, COPY, EAGER, NO_LIST, OURS, OURS_COMPILED, OWN_COPY
from fusedact.bench.report import machine, names, settings, titled
from fusedact.bench.results import Result, Run

COLOURS = {EAGER: "tab:orange", COMPILE: "tab:blue", OURS: "tab:red", OURS_COMPILED: "tab:pink", COPY: "black"}
COLOURS |= {NO_LIST: "tab:purple", OWN_COPY: "tab:gray"}
MOST_PANELS = 12


def save(run: Run, folder: Path) -> list[Path]:
    """Draw what the run has figures for; returns the files.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")  # draws into a file; needs no screen
    figures = Figures(run.results)
    threads = figures.threads[-1] if figures.threads else 1
    found = [results for results in settings(figures) if results[0].threads == threads]
    pictures: dict[str, tuple[Callable[..., None], list[list[Result]]]] = {
        "ratios": (_ratios, [rs for rs in found if _cases(rs, OURS) > 1 and _cases(rs, EAGER)]),
        "roofline": (_roofline, [rs for rs in found if len({r.case for r in rs if r.of_ceiling}) > 1]),
        "sizes": (_sizes, _by_size(figures, threads)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (draw, panels) in pictures.items():
        if panels:
            path = folder / f"{name}.png"
            _draw(path, panels[:MOST_PANELS], figures, draw, f"{machine(run.about)}, threads: {threads}")
            written.append(path)
    return written


def _cases(results: list[Result], provider: str) -> int:
    return len({r.case for r in results if r.provider == provider})


def _draw(path: Path, panels: list[list[Result]], figures: Figures, draw: Callable[..., None], title: str) -> None:
    from matplotlib import pyplot

    wide = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // wide)
    figure, axes = pyplot.subplots(rows, wide, figsize=(6.5 * wide, 3.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, results in zip(axes.flat, panels, strict=False):
        draw(axis, results, figures)
    handles = {label: handle for a in axes.flat for handle, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _plain_numbers(axis: Any) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _ratios(axis: Any, results: list[Result], figures: Figures) -> None:
    """How many times as fast as each rival fusedact is, a bar a case; dotted: the goal, where all cases have one."""
    mine = [r for r in results if r.provider == OURS]
    rivals = [p for p in (EAGER, COMPILE) if any(r.provider == p for r in results)]
    for number, rival in enumerate(rivals):
        ratios = [figures.ratio(r, rival) or math.nan for r in mine]
        places = [i + (number - (len(rivals) - 1) / 2) * 0.4 for i in range(len(mine))]
        bars = axis.bar(places, ratios, 0.38, color=COLOURS[rival], label=f"against {rival}")
        axis.bar_label(bars, fmt="%.1f", fontsize=6)
        goals = {wanted(r, rival) for r in mine}
        if len(goals) == 1 and None not in goals:
            axis.axhline(goals.pop(), color=COLOURS[rival], linewidth=1, linestyle=":", label=f"goal against {rival}")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(yscale="log", ylabel="times as fast")
    axis.set_title(titled(results), fontsize=8)
    _plain_numbers(axis.yaxis)
    axis.set_xticks(range(len(mine)), list(map(names(results), mine)), rotation=40, ha="right", fontsize=7)


def _roofline(axis: Any, results: list[Result], figures: Figures) -> None:
    """GB/s of every contender and case, under the roof that a copy of the same bytes has reached."""
    name = names(results)
    cases = list(dict.fromkeys(map(name, results)))
    known = [(name(r), r.gb_per_s / r.of_ceiling) for r in results if r.gb_per_s and r.of_ceiling]
    roof = [max((speed for which, speed in known if which == case), default=math.nan) for case in cases]
    axis.plot(range(len(cases)), roof, color="black", linewidth=1, marker="_", label="a copy: the roof")
    for provider in (EAGER, COMPILE, OURS, OURS_COMPILED, NO_LIST):
        points = [(cases.index(name(r)), r.gb_per_s) for r in results if r.provider == provider and r.gb_per_s]
        if points:
            axis.scatter(*zip(*points, strict=True), s=16, color=COLOURS[provider], label=provider)
    axis.set(ylabel="GB/s that had to move", yscale="log")
    axis.set_title(titled(results), fontsize=8)
    _plain_numbers(axis.yaxis)
    axis.set_xticks(range(len(cases)), cases, rotation=40, ha="right", fontsize=7)


def _by_size(figures: Figures, threads: int) -> list[list[Result]]:
    """Forward, new results, per case and dtype, where at least three sizes were measured."""
    found: dict[tuple[str, str], list[Result]] = {}
    for r in figures.of(f"activations {FORWARD} {FRESH} t{threads}"):
        found.setdefault((r.case, r.dtype), []).append(r)
    return [results for results in found.values() if len({r.shape for r in results}) >= 3]


def _sizes(axis: Any, results: list[Result], figures: Figures) -> None:
    """GB/s against the bytes that had to move."""
    for provider in (EAGER, COMPILE, OURS, NO_LIST, COPY, OWN_COPY):
        points = sorted((r.moved_bytes, r.gb_per_s) for r in results if r.provider == provider and r.gb_per_s)
        if points:
            axis.plot(*zip(*points, strict=True), marker=".", color=COLOURS[provider], label=provider)
    axis.set(xscale="log", yscale="log", xlabel="bytes moved", ylabel="GB/s")
    axis.set_title(f"{results[0].case} {results[0].dtype}, forward", fontsize=8)
    _plain_numbers(axis.yaxis)
