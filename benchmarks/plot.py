#!/usr/bin/env python3
"""Draws what run.py measured: how many times as fast as its rivals fusedact is, one panel per setting.

    python benchmarks/plot.py benchmark-results/results.jsonl --output benchmark-results/speedup.png

Reads the records and draws; judges nothing (that is report.py's).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file; needs no screen

from matplotlib import pyplot
from report import TITLES, Figures, goal_for_each, machine, read

RIVALS = {"eager": "tab:orange", "torch.compile": "tab:blue"}


def draw(source: Path, output: Path, threads: int | None) -> None:
    about, results = read(source)
    figures = Figures(results)
    threads = threads or figures.threads[-1]
    panels = [
        (suite, mode)
        for suite in figures.seen("suite", threads=threads)
        for mode in figures.seen("mode", suite=suite, threads=threads)
        if suite != "call"  # one activation only
    ]
    if not panels:
        raise SystemExit(f"{source} has no results with {threads} threads that could be drawn")
    rows = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(13, 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (suite, mode) in zip(axes.flat, panels, strict=False):
        names = figures.seen("activation", suite=suite, mode=mode, threads=threads)
        rivals = [r for r in RIVALS if r in figures.seen("provider", suite=suite, mode=mode, threads=threads)]
        for number, rival in enumerate(rivals):
            ratios = [figures.speedup(suite, mode, threads, name, rival) or float("nan") for name in names]
            places = [i + (number - (len(rivals) - 1) / 2) * 0.4 for i in range(len(names))]
            bars = axis.bar(places, ratios, 0.38, color=RIVALS[rival], label=f"against {rival}")
            axis.bar_label(bars, fmt="%.1f", fontsize=7)
            goal = goal_for_each(suite, mode, rival)
            if goal is not None:
                axis.axhline(goal, color=RIVALS[rival], linewidth=1, linestyle=":", label=f"goal against {rival}")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(yscale="log", ylabel="times as fast")
        axis.set_title(f"{TITLES[suite]}, {mode}", fontsize=9)
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter("{x:g}")
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.suptitle(f"{machine(about)}, threads: {threads}", fontsize=9)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file that run.py wrote")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results/speedup.png"), help="the PNG to write")
    parser.add_argument("--threads", type=int, help="which of the measured numbers of threads (default: the largest)")
    options = parser.parse_args()
    draw(options.results, options.output, options.threads)
    print(f"Plot: {options.output}")


if __name__ == "__main__":
    main()
