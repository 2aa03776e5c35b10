"""What makes a function usable as an activation? Six questions, put to the classic bad ideas, or to your own function.

    python -m fusedact lab goodness --function mypackage.mymodule:myfunction
    fusedact.lab.goodness.judge(lambda x: x * torch.sigmoid(x))

Each question is a number against a bound, measured on x from -REACH to REACH in float64:
  defined        the share of x at which f is finite must be 1
  differentiable the share of x at which autograd's f' agrees with a difference quotient must be 0.99: kinks are few
  finite slope   the largest |f'| must stay below 1e3, at 0 and right beside it, too
  gradient       the share of x with |f'| of at least 1e-3 must be 0.05: somewhere it must learn
  non-linear     the distance from the straight line of best fit, relative to f, must be above 0.01
  tells apart    f walks up and down; the shorter of the two ways must be below a quarter of both, or values far apart
                 give the same result (a flat part is no walk: ReLU passes)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import fusedact
from fusedact import registry
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACH = 6.0
CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": fusedact.identity,
    "quadratic": fusedact.square,
    "square root": torch.sqrt,
    "logarithm": torch.log,
    "signed square root": fusedact.signed_sqrt,
    "cos": fusedact.cos,
    "relu": fusedact.relu,
    "tanh": fusedact.tanh,
    "gelu": fusedact.gelu,
}


@dataclass(frozen=True)
class Judgement:
    """The six numbers of one function, and what they say."""

    defined: float
    differentiable: float
    slope: float
    alive: float
    bend: float
    back: float

    @property
    def reasons(self) -> dict[str, str]:
        """Question -> what is wrong, for each that is not passed."""
        checks = {
            "defined": (self.defined == 1, f"not finite at {1 - self.defined:.0%} of the inputs"),
            "differentiable": (self.differentiable >= 0.99, f"no slope at {1 - self.differentiable:.0%} of the inputs"),
            "finite slope": (self.slope < 1e3, f"its slope reaches {self.slope:.0e}"),
            "gradient": (self.alive >= 0.05, f"flat at {1 - self.alive:.0%} of the inputs: nothing is learnt"),
            "non-linear": (not self.bend <= 0.01, "a straight line: layers collapse into one"),
            "tells apart": (
                not self.back >= 0.25,
                f"walks back {self.back:.0%} of its way: far inputs give the same result",
            ),
        }
        return {question: wrong for question, (passed, wrong) in checks.items() if not passed}

    @property
    def good(self) -> bool:
        """Whether all questions are passed."""
        return not self.reasons


def judge(f: Callable[[Tensor], Tensor]) -> Judgement:
    """Put the six questions to `f`.

    Args:
        f: an elementwise function of a float64 tensor that autograd can differentiate.

    Raises:
        TypeError: f is not callable, or does not return a float tensor.
        ValueError: f raised, or its result has another shape than its input, or autograd cannot differentiate it.
    """
    if not callable(f):
        raise TypeError(f"judge takes a function of one tensor, but got {f!r}")
    beside = torch.logspace(-12, -4, 9, dtype=torch.float64)
    grid = torch.linspace(-REACH, REACH, 4000, dtype=torch.float64)  # even: 0 itself is not on it
    x = torch.cat([grid, torch.zeros(1, dtype=torch.float64), beside, -beside]).requires_grad_()
    y = _called(f, x)
    slope = torch.zeros_like(x)
    if y.requires_grad:
        try:
            (slope,) = torch.autograd.grad(y.sum(), x, materialize_grads=True)
        except Exception as error:  # whatever a function may raise
            raise ValueError(f"autograd cannot differentiate the function: {type(error).__name__}: {error}") from error
    elif bool((y != y.flatten()[0]).any()):
        raise ValueError("the function's result does not depend on its input for autograd: compute it with torch alone")
    with torch.no_grad():
        h = 1e-5
        ahead, behind = _called(f, grid + h), _called(f, grid - h)
        values, slopes = y[: len(grid)].detach(), slope[: len(grid)]
        quotient = (ahead - behind) / (2 * h)
        agrees = (quotient - slopes).abs() <= 1e-4 * (1 + quotient.abs())
        finite = values.isfinite()
        bounded = torch.where(slope.isnan() | ~y.isfinite(), 0.0, slope.abs()).max()
        there, at = values[finite], grid[finite]
        line = torch.stack([at, torch.ones_like(at)], 1)
        fit = line @ torch.linalg.lstsq(line, there[:, None]).solution if len(at) > 1 else there[:, None]
        bend = frame.rms(there[:, None] - fit) / max(frame.rms(there), 1e-300) if len(at) > 1 else math.nan
        steps = there.diff()
        up, down = float(steps.clamp(min=0).sum()), float((-steps).clamp(min=0).sum())
    return Judgement(
        float(y.isfinite().double().mean()),
        float(agrees[finite].double().mean()) if finite.any() else 0.0,
        float(bounded),
        float((slopes.abs() >= registry.SATURATED).double().mean()),
        bend,
        min(up, down) / (up + down) if up + down else 0.0,
    )


def _called(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    try:
        y = f(x)
    except Exception as error:  # whatever a function may raise
        raise ValueError(
            f"the function raised {type(error).__name__} for a float64 tensor of shape {list(x.shape)}: {error}"
        ) from error
    if not isinstance(y, Tensor) or not y.is_floating_point():
        kind = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"the function must return a float tensor, but returned {kind}")
    if y.shape != x.shape:
        raise ValueError(
            f"the function must keep the shape {list(x.shape)}, but returned {list(y.shape)}: it is not elementwise"
        )
    return y


def run(function: Callable[[Tensor], Tensor] | None = None) -> frame.Report:
    """Judge CANDIDATES, and `function` beside them if one is given."""
    candidates = dict(CANDIDATES)
    if function is not None:
        candidates = {"your function": function, **candidates}
    found = {name: judge(f) for name, f in frame.track(list(candidates.items()), "function")}
    rows = [
        (
            name,
            f"{j.defined:.0%}",
            f"{j.differentiable:.1%}",
            f"{j.slope:.3g}",
            f"{j.bend:.2f}",
            f"{j.back:.0%}",
            "; ".join(j.reasons.values()) or "usable",
        )
        for name, j in found.items()
    ]
    bad = [f"{name} ({'; '.join(j.reasons.values())})" for name, j in found.items() if not j.good]
    good = [name for name, j in found.items() if j.good]
    conclusion = f"Usable: {frame.listed(good)}. Not usable: {frame.listed(bad)}."

    def draw(figure: Figure) -> None:
        columns = 5
        axes = figure.subplots(-(-len(candidates) // columns), columns, squeeze=False).flatten()
        for one, (name, f) in zip(axes, candidates.items(), strict=False):
            x = torch.linspace(-REACH, REACH, 1201, dtype=torch.float64)
            one.plot(x, _called(f, x).detach(), color="tab:green" if found[name].good else "tab:red")
            one.set_title(name, fontsize="small")
            one.axhline(0, color="grey", linewidth=0.5)
        for one in axes[len(candidates) :]:
            one.axis("off")

    return frame.Report(
        f"What makes a function an activation (x from {-REACH:g} to {REACH:g})",
        ("function", "defined", "differentiable", "largest slope", "bend", "walks back", "judgement"),
        rows,
        conclusion,
        {name: {**j.__dict__, "good": j.good, "reasons": list(j.reasons)} for name, j in found.items()},
        draw,
    )
