"""`python -m fusedact bench`: reads the options, runs the cells, shows and keeps what came out."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fusedact.bench import cases, measure, providers, report, results, space
from fusedact.bench.case import MODES, OUTPUTS, Case
from fusedact.bench.results import Run
from fusedact.bench.space import Cell

KNOWN = [p.name for p in providers.PROVIDERS] + [c.name for c in providers.CEILINGS]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute: every operator checked.")] = False,
    plan: Annotated[str, typer.Option(help="What to measure: quick, standard, sweep (sizes) or all.")] = "standard",
    filter: Annotated[
        list[str] | None,
        typer.Option(help='Of the plan, cells with all these words, as "relu,gelu 512x3072 "; may be repeated.'),
    ] = None,
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, as 1,2; default: 1 and up to 2.")] = None,
    without: Annotated[list[str] | None, typer.Option(help=f"Leave out: {', '.join(KNOWN)}.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int | None, typer.Option(min=2, help="Blocks of each contender, at least; default: 7.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="For a cell, at least; default: 0.4.")] = None,
    clock: Annotated[
        str, typer.Option(help="wall, or cpu: the time that the process ran, for a busy machine; --threads 1 only.")
    ] = "wall",
    save: Annotated[Path | None, typer.Option(help="Keep the figures in this file, as JSON lines.")] = None,
    against: Annotated[Path | None, typer.Option(help="Compare with the figures in this file.")] = None,
    show: Annotated[Path | None, typer.Option(help="Measure nothing; show the figures in this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the whole report, as Markdown, to this file.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Put the summary between the marks of this file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw ratios, roofline and sizes into this folder.")] = None,
    as_list: Annotated[bool, typer.Option("--list", help="Say what would be measured, and measure nothing.")] = False,
) -> None:
    """Time fusedact beside eager PyTorch and torch.compile; every result is checked before it is timed.

    Exits with 1 if a result is wrong, and never because of a time. Contenders take turns; a copy of the same bytes, in
    the same turns, is the ceiling. docs/benchmarks.md says how to read the figures.
    """
    console = Console()
    if not console.is_terminal:  # a log file has no edge
        console = Console(width=170)
    run, chosen = None, None
    try:  # what a person got wrong; later errors are the benchmark's own
        then = results.read(against) if against else None
        if show:
            run = results.read(show)
        else:
            counts = _threads(threads, quick)
            settings = _settings(quick, rounds, seconds, clock, counts, without or [], device)
            chosen = chosen_cells(cases.every(), "quick" if quick else plan, counts, filter or [])
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from None
    if chosen is not None:
        if as_list:
            _list(console, chosen, settings)
            return
        run = measured(console, chosen, settings, counts, save)
    assert run is not None
    _show(console, run, then, quick)
    if markdown:
        markdown.write_text(report.markdown(run))
    if readme:
        try:
            report.write_readme(readme, run)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error)) from None
        console.print(f"{readme} has the new table.")
    if plots:
        _draw(console, run, plots)
    if any(wrong.fault for wrong in run.wrong):
        raise typer.Exit(1)


def _threads(given: str | None, quick: bool) -> list[int]:
    if given is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return [1] if quick or cores == 1 else [1, 2]
    try:
        counts = [int(part) for part in given.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"--threads must be numbers from 1, as 1,2, but got {given!r}")
    return counts


def _settings(
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    clock: str,
    threads: list[int],
    without: list[str],
    device: str,
) -> measure.Settings:
    for name in without:
        if name not in KNOWN:
            raise ValueError(f"--without: there is no contender {name!r}, but {', '.join(KNOWN)}")
    if clock not in measure.CLOCKS:
        raise ValueError(f"--clock must be {' or '.join(measure.CLOCKS)}, but got {clock!r}")
    if clock == "cpu" and threads != [1]:
        raise ValueError("--clock cpu adds up what all threads do: give --threads 1")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, but got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device")
    return measure.Settings(
        rounds or (3 if quick else 7),
        seconds if seconds is not None else (0.0 if quick else 0.4),
        clock,
        tuple(without),
        device,
    )


def chosen_cells(every: tuple[Case, ...], plan: str, threads: list[int], filters: list[str]) -> list[Cell]:
    """The cells of the plan that the filters leave.

    Raises:
        ValueError: no such plan, or no such cell.
    """
    if plan not in space.PLANS:
        raise ValueError(f"--plan must be one of {', '.join(space.PLANS)}, but got {plan!r}")
    return space.cells(every, threads, space.PLANS[plan], filters)


def _list(console: Console, chosen: list[Cell], settings: measure.Settings) -> None:
    """The words that a filter may have, and what the chosen cells will take."""
    table = Table("of a cell", "words of the chosen cells; * stands for anything", title=_size(chosen, settings))
    heads = ("family", "case", "shape", "dtype", "mode", "output", "threads")
    for head, words in zip(heads, zip(*(cell.words for cell in chosen), strict=True), strict=True):
        table.add_row(head, escape(", ".join(dict.fromkeys(words))))
    console.print(table)
    for name, about in (*MODES.items(), *OUTPUTS.items()):
        console.print(f"  {name:10}{about}", markup=False, highlight=False)


def _size(chosen: list[Cell], settings: measure.Settings) -> str:
    minutes = measure.estimate(chosen, settings) / 60
    return f"{len(chosen)} cells, about {max(1, round(minutes))} min"


def measured(
    console: Console, chosen: list[Cell], settings: measure.Settings, threads: list[int], save: Path | None
) -> Run:
    """Measure the cells, with a bar; figures are in `save` as soon as they are there."""
    run = Run(measure.environment(settings, threads))
    console.print(f"{report.machine(run.about)}; load {run.about['load'][0]}", soft_wrap=True, highlight=False)
    console.print(_size(chosen, settings), highlight=False)
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    if save:
        save.parent.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    with (
        open(save or os.devnull, "w") as file,
        measure.fresh_compiler_cache(),
        Progress(
            BarColumn(), MofNCompleteColumn(), *times, TextColumn("{task.description}"), console=console, transient=True
        ) as progress,
    ):
        results.put(file, "environment", run.about)
        bench = measure.Bench(settings)
        task = progress.add_task("", total=len(chosen))
        # Cells that reuse buffers last: what malloc was told to keep for them spares later ones their page faults.
        for cell in sorted(chosen, key=lambda cell: cell.output == "warm"):
            progress.update(task, description=str(cell))
            found, wrong = bench.measure(cell)
            for result in found:
                results.put(file, "result", result)
            for one in wrong:
                results.put(file, "wrong", one)
            run.results += found
            run.wrong += wrong
            progress.advance(task)
    torch.set_num_threads(before)
    if save:
        console.print(f"Figures: {save}", highlight=False)
    return run


def _show(console: Console, run: Run, then: Run | None, quick: bool) -> None:
    for sheet in report.sheets(run):
        # The quick plan is for results; of its times, those of small tensors say little.
        if not quick or "512x3072" in sheet.title or sheet.title.startswith("models"):
            sheet.show(console)
    if then:
        changed, says = report.comparison(run, then)
        if changed.rows:
            changed.show(console)
        console.print(says, highlight=False)
    for wrong in run.wrong:
        mark = "[red]wrong[/red]" if wrong.fault else "not timed"
        console.print(f"{mark}: {escape(wrong.message.splitlines()[0])}", highlight=False, soft_wrap=True)
        if wrong.fault:
            console.print(escape("\n".join(wrong.message.splitlines()[1:])), highlight=False)
    faults = sum(wrong.fault for wrong in run.wrong)
    roofs = {c.name for c in providers.CEILINGS}
    right = sum(r.provider not in roofs for r in run.results)
    console.print(f"{right} contenders checked and timed, {faults} wrong.", highlight=False)


def _draw(console: Console, run: Run, folder: Path) -> None:
    try:
        from fusedact.bench import plots

        begin = time.perf_counter()
        for path in plots.save(run, folder):
            console.print(f"Plot: {path}", highlight=False)
        console.print(f"drawn in {time.perf_counter() - begin:.1f} s", style="dim", highlight=False)
    except ImportError as error:
        sys.exit(f"Plots need matplotlib ({error}). Install it: pip install 'fusedact[lab]'")
