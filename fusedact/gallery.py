"""The gallery: f, f' and f'' of an activation, its kinks, where it saturates, and how far fusedact is from the truth.

Everything drawn is a fact of the registry's row or is measured when it is drawn; nothing is remembered from elsewhere.
Used by `python -m fusedact plot` and for the pages of the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedact import functional, registry, testing
from fusedact.registry import Activation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = dict(zip(testing.ORDERS, ("f", "f'", "f''"), strict=True))
POINTS, EXACT_POINTS = 8000, 60  # of float64 few: its truth comes from mpmath, which takes its time
_BINS = 120


@dataclass(frozen=True)
class Errors:
    """How far value, first and second derivative are from the truth, in ulp of the dtype, at x."""

    dtype: torch.dtype
    x: Tensor  # [points], float64
    ulp: dict[str, Tensor]  # of forward, derivative, second: [points]; NaN within 0.1 of a root of a derivative

    def worst(self, order: str) -> float:
        """The largest of them."""
        error = self.ulp[order]
        return float(error.nan_to_num(0).max()) if len(error) else 0.0


def span(row: Activation) -> float:
    """x is drawn from -span to span: 6, or as far as kinks and saturation zones lie, if that is not too far to see."""
    edges = [abs(edge) for zone in row.saturation() for edge in zone] + [
        abs(kink) for kink in row.kinks(*row.resolve()[1])
    ]
    return max(6.0, *(1.3 * edge for edge in edges if edge <= 150), 0)


def measure(row: Activation, dtype: torch.dtype, points: int | None = None) -> Errors:
    """The errors of `row` with its default parameters on evenly spaced x, rounded to `dtype`; kinks are left out.

    float64 is held against mpmath, the others against the float64 reference; what backward reads is the input.
    """
    exact = dtype == torch.float64
    reach = span(row)
    x = torch.linspace(-reach, reach, points or (EXACT_POINTS if exact else POINTS), dtype=torch.float64).to(dtype)
    x = testing.away_from_kinks(row, x[F.pad(x.diff() != 0, (1, 0), value=True)])
    got = testing.derivatives(lambda v: functional.bias_act(v, None, row.name, save="input"), x)
    truth = testing.exact(row, x) if exact else [(t, torch.zeros_like(t)) for t in testing.truth(row, x)]
    errors = {}
    for number, (order, result, (high, low)) in enumerate(zip(testing.ORDERS, got, truth, strict=True)):
        error = testing.ulp_error(result, high, low=low)
        if number:
            error = torch.where(testing.near_root(row, x, number), torch.nan, error)
        errors[order] = error
    return Errors(dtype, x.double(), errors)


def draw(row: Activation, figure: Figure, errors: list[Errors] | None = None) -> None:
    """Left the function and its derivatives, right their errors; `errors` are measured if not given."""
    errors = [measure(row, dtype) for dtype in testing.DTYPES] if errors is None else errors
    reach = span(row)
    figure.suptitle(f"{row.name}: {row.formula}" + "".join(f", {p.name}={p.default!r}" for p in row.parameters))
    panels: Any = figure.subplots(3, 2, sharex=True)
    _curves(row, [line[0] for line in panels], reach)
    for (_, axes), order in zip(panels, testing.ORDERS, strict=True):
        _errors(axes, order, errors, reach)
    panels[0][1].set_title("measured error in ulp, largest nearby", fontsize="small")
    panels[0][1].legend(fontsize="x-small", ncols=2)


def _curves(row: Activation, panels: list[Axes], reach: float) -> None:
    kinks = row.kinks(*row.resolve()[1])
    grid = torch.linspace(-reach, reach, 2001, dtype=torch.float64)
    values = testing.truth(row, grid)
    for axes, label, y in zip(panels, LABELS.values(), values, strict=True):
        y = y.clone()
        for kink in kinks:  # no line across a jump
            y[(grid - kink).abs() < 0.6 * reach / 1000] = torch.nan
        seen = y[y.isfinite()]
        # A pole (signed_sqrt at 0) would flatten all the rest.
        limit = 3 * float(seen.abs().quantile(0.98)) + 0.1
        axes.plot(grid.tolist(), y.clamp(-limit, limit).tolist(), color="tab:blue")
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set(ylabel=label, xlim=(-reach, reach))
        for low, high in row.saturation():
            axes.axvspan(max(low, -reach), min(high, reach), color="tab:red", alpha=0.12, linewidth=0)
        for kink in kinks:
            axes.axvline(kink, color="tab:orange", linestyle=":", linewidth=1)
    panels[0].set_title("red: |f'| < 0.001; dotted: kinks", fontsize="small")
    panels[-1].set_xlabel("x")


def _errors(axes: Axes, order: str, errors: list[Errors], reach: float) -> None:
    """The largest error in each of _BINS pieces of the axis."""
    centres = (torch.arange(_BINS) + 0.5) * (2 * reach / _BINS) - reach
    for each in errors:
        error = each.ulp[order]
        keep = ~error.isnan()
        bins = ((each.x[keep] + reach) * (_BINS / (2 * reach))).long().clamp(0, _BINS - 1)
        largest = torch.full((_BINS,), -1.0, dtype=torch.float64).scatter_reduce(
            0, bins, error[keep].clamp(max=1e6), "amax"
        )
        there = largest >= 0
        name = str(each.dtype).removeprefix("torch.")
        axes.plot(
            centres[there].tolist(), largest[there].tolist(), linewidth=0.8, label=f"{name}, {each.worst(order):.2f}"
        )
    axes.set(ylabel=f"{LABELS[order]}, ulp", ylim=(0, max(0.6, axes.get_ylim()[1])))
    axes.legend(fontsize="x-small", ncols=2)
    if order == testing.ORDERS[-1]:
        axes.set_xlabel("x")


def save(row: Activation, path: Path, errors: list[Errors] | None = None) -> Path:
    """Draw a row into a PNG file; its folder is made if there is none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(row, figure, errors)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    return path


def markdown(row: Activation, picture: str, errors: list[Errors]) -> str:
    """A row as a section of a page: its facts, its picture, its largest errors."""
    zones = ", ".join(f"[{low:.4g}, {high:.4g}]" for low, high in row.saturation()) or "nowhere"
    kinks = ", ".join(f"{kink:g}" for kink in row.kinks(*row.resolve()[1])) or "none"
    parameters = ", ".join(f"`{p.name}={p.default!r}`" for p in row.parameters)
    also = ", ".join(f"`{alias}`" for alias in row.aliases)
    lines = [
        f"## {row.name}",
        "",
        f"`{row.formula}`" + (f" with {parameters}" if parameters else "") + (f"; also called {also}" if also else ""),
        "",
        f"- module: `fusedact.nn.{row.module}`" + (f", replaces `{row.replaces}`" if row.replaces else ""),
        f"- kinks: {kinks}",
        f"- saturated (|f'| < {registry.SATURATED:g}): {zones}",
        f"- source: {row.source}",
        "",
        f"![{row.name}]({picture})",
        "",
        "| largest error here, ulp | " + " | ".join(str(e.dtype).removeprefix("torch.") for e in errors) + " |",
        "|---" + "|---:" * len(errors) + "|",
    ]
    lines += [
        f"| {label} | " + " | ".join(f"{e.worst(order):.2f}" for e in errors) + " |" for order, label in LABELS.items()
    ]
    return "\n".join([*lines, ""])
