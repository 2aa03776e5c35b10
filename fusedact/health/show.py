"""What a monitor found, as a table and as a picture. Knows the dictionary that `Monitor.to_dict` makes, and no more."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console


def report(found: dict[str, Any], console: Console | None = None) -> None:
    """Print the table, then for each fault what it is and what to try.

    Raises:
        ImportError: rich is missing.
    """
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError as error:
        raise ImportError(f"report needs rich ({error}): pip install rich; to_dict and to_json do without") from error

    if console is None:
        console = Console()
        if not (console.is_terminal or console.is_jupyter):  # a pipe or a file has no width of its own
            console = Console(width=140)
    steps = f"{found['steps']} of {found['calls']} steps"
    table = Table("activation", "kind", title=f"Health of {len(found['activations'])} activations, {steps}")
    for heading in ("mean ± std", "least", "largest", "zeros", "saturated", "|gradient|", "its zeros"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for name, one in found["activations"].items():
        gradient = one["gradient"]
        kinds = ", ".join(verdict["kind"] for verdict in one["verdicts"])
        table.add_row(
            escape(name),
            one["activation"],
            f"{one['mean']:.2g} ± {one['std']:.2g}",
            f"{one['min']:.3g}",
            f"{one['max']:.3g}",
            f"{one['zeros']:.0%}",
            f"{one['saturated']:.0%}",
            f"{gradient['norm']:.1e}" if gradient else "none",
            f"{gradient['zeros']:.0%}" if gradient else "",
            f"[red]{kinds}[/]" if kinds else "[green]fine[/]",
        )
    console.print(table)
    for name, one in found["activations"].items():
        for verdict in one["verdicts"]:
            console.print(f"{name}: {verdict['kind']}: {verdict['words']}.", markup=False)
            console.print(f"    try: {'; '.join(verdict['advice'])}", markup=False)
    if found["not seen"]:
        unseen = ", ".join(found["not seen"])
        console.print(f"Not seen, as they did not run, or where no monitor can listen: {unseen}.", markup=False)
    read = min(one["read"] for one in found["activations"].values())
    if read < 0.999:
        console.print(f"At least {read:.1%} of the values of each activation were read; elements=None reads all.")


def plot(found: dict[str, Any], path: str | Path | None = None) -> Figure:
    """A histogram of the pre-activations of each activation, and the gradient norm against depth.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plot needs matplotlib ({error}): pip install matplotlib") from error

    activations = found["activations"]
    columns = min(4, len(activations))
    lines = math.ceil(len(activations) / columns)
    figure = Figure(figsize=(3 * columns, 2 * lines + 3), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(2, 1, height_ratios=[2 * lines, 3])
    top, bottom = halves
    panels: Any = top.subplots(lines, columns, squeeze=False)
    for axes, (name, one) in zip(panels.flat, activations.items(), strict=False):
        held = one["pre-activations"]
        counts = held["counts"]
        width = (held["high"] - held["low"]) / len(counts)
        middles = [held["low"] + (n + 0.5) * width for n in range(len(counts))]
        fault = bool(one["verdicts"])
        axes.bar(middles, counts, width=width, color="tab:red" if fault else "tab:blue")
        words = "".join(f", {verdict['kind']}" for verdict in one["verdicts"])
        axes.set_title(f"{name}, {one['activation']}{words}", fontsize="small")
        axes.set_yticks([])
    for axes in panels.flat[len(activations) :]:
        axes.axis("off")
    top.supxlabel("pre-activation; the outer bars hold all beyond", fontsize="small")
    axes = bottom.subplots()
    norms = [one["gradient"]["norm"] if one["gradient"] else math.nan for one in activations.values()]
    axes.plot(range(len(norms)), norms, marker="o")
    axes.set_xticks(range(len(norms)), list(activations), rotation=30, ha="right", fontsize="x-small")
    axes.set(ylabel="gradient norm", xlabel="activation, from the input to the output")
    if any(norm > 0 for norm in norms):
        axes.set_yscale("log")
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    return figure
