"""What is counted of an activation, per channel, and how counts of many steps become one.

`before` and `after` are the Python pass over the tensors. A kernel that has each value in a register anyway can hand
over the same `Sums` and spare it; nothing else here would change. Knows tensors, and nothing of modules or hooks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Zones = tuple[tuple[float, float], ...]

# The histogram of pre-activations: bins of equal width, so that a kernel finds one with a multiplication; what lies
# beyond the ends is counted in the outermost two.
BINS, LOW, HIGH = 66, -8.25, 8.25

COUNTED = ("count", "zeros", "saturated", "nan", "inf", "sum", "squares")  # rows of Sums.values
OF_GRADIENT = ("count", "zeros", "squares")  # rows of Sums.gradient


def slices(shape: Sequence[int], dim: int, limit: int | None, turn: int) -> tuple[slice, ...]:
    """Evenly spaced pieces of a tensor that leave about `limit` elements and every channel; `turn` moves them on."""
    cut = [slice(None)] * len(shape)
    if limit is None:
        return tuple(cut)
    left = math.prod(shape) / limit
    for axis, size in enumerate(shape):
        if axis != dim and left > 1:
            step = min(size, math.ceil(left))
            cut[axis] = slice(turn % step, None, step)
            left /= step
    return tuple(cut)


def by_channel(t: Tensor, dim: int) -> Tensor:
    """[values, channels], at least float32."""
    t = t.detach().movedim(dim, -1).reshape(-1, t.size(dim))
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def before(v: Tensor, zones: Zones) -> tuple[Tensor, Tensor]:
    """Of pre-activations [values, channels]: how many lie in the zones [channels], and the histogram [BINS]."""
    inside: Tensor | None = None
    for low, high in zones:
        here = v <= high if low == -math.inf else v >= low if high == math.inf else (v >= low) & (v <= high)
        inside = here if inside is None else inside | here
    saturated = torch.zeros(v.size(1), device=v.device) if inside is None else _counted(inside)
    # torch.histc takes three times as long; NaN goes to bin 0, as a cast makes of it what it likes
    bins = ((v - LOW) * (BINS / (HIGH - LOW))).nan_to_num_(0.0).clamp_(0, BINS - 1).to(torch.int32)
    histogram = torch.bincount(bins.flatten(), minlength=BINS)
    return saturated, histogram


def after(y: Tensor, saturated: Tensor) -> tuple[Tensor, Tensor]:
    """Of outputs [values, channels]: the rows COUNTED [7, channels], and least and largest [2, channels]."""
    count, wide = y.size(0), y.double()  # sums in float64, and torch.var_mean takes ten times as long
    sums, squares = wide.sum(0), (wide * wide).sum(0)  # not in place: a float64 y is itself
    ends = torch.stack([y.amin(0), y.amax(0)])
    zeros = _counted(y == 0)
    if y.is_cpu and bool(squares.sum().isfinite()):  # asking a GPU would stop it
        nan = inf = torch.zeros_like(sums)
    else:
        nan, inf = _counted(y.isnan()), _counted(y.isinf())
    rows = (torch.full_like(sums, float(count)), zeros, saturated, nan, inf, sums, squares)
    return torch.stack([row.double() for row in rows]), ends


def _counted(there: Tensor) -> Tensor:
    """How many are true, per column."""
    return there.view(torch.uint8).sum(0, dtype=torch.int32)


def of_gradient(g: Tensor) -> Tensor:
    """Of a gradient [values, channels]: the rows OF_GRADIENT [3, channels]."""
    squares = g.double().square().sum(0)
    return torch.stack([torch.full_like(squares, float(g.size(0))), _counted(g == 0).double(), squares])


@dataclass
class Sums:
    """Everything counted so far; it only grows. One per activation, on the device of its tensors."""

    values: Tensor  # [7, channels] float64: COUNTED
    ends: Tensor  # [2, channels]: least, largest
    histogram: Tensor  # [BINS] float64
    gradient: Tensor  # [3, channels] float64: OF_GRADIENT
    unfinished: Tensor  # []: steps whose output, all of it, did not have a finite sum
    elements: int = 0  # of the outputs seen, whether they were read or not
    steps: int = 0
    gradient_elements: int = 0
    gradient_steps: int = 0

    @staticmethod
    def of(values: Tensor, ends: Tensor, histogram: Tensor) -> Sums:
        """The sums of one step."""
        channels = values.size(1)
        empty = torch.zeros(len(OF_GRADIENT), channels, dtype=torch.float64, device=values.device)
        return Sums(values, ends, histogram.double(), empty, torch.zeros((), device=values.device))

    def add(self, values: Tensor, ends: Tensor, histogram: Tensor) -> None:
        """Take one more step into account."""
        self.values += values
        self.ends = torch.stack([torch.minimum(self.ends[0], ends[0]), torch.maximum(self.ends[1], ends[1])])
        self.histogram += histogram

    @property
    def channels(self) -> int:
        """How many channels are told apart."""
        return self.values.size(1)

    def pooled(self) -> Sums:
        """The same with all channels as one: for an activation whose number of channels changes."""
        ends = torch.stack([self.ends[0].min(), self.ends[1].max()])[:, None]
        values, gradient = self.values.sum(1, keepdim=True), self.gradient.sum(1, keepdim=True)
        return Sums(
            values, ends, self.histogram, gradient, self.unfinished, self.elements, self.steps,
            self.gradient_elements, self.gradient_steps,
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Plain numbers: over everything, and per channel as lists."""
        values, gradient = self.values.cpu(), self.gradient.cpu()
        least, largest = self.ends.double().cpu()
        read, total = float(values[0, 0]), values.sum(1)

        def shares(sums: Tensor) -> dict[str, Any]:  # [7] or [7, channels]
            count, zeros, saturated, nan, inf, total, squares = sums
            mean = total / count
            std = (squares / count - mean.square()).clamp(min=0).sqrt()
            counted = {"zeros": zeros / count, "saturated": saturated / count, "nan": nan, "inf": inf}
            return {**counted, "mean": mean, "std": std}

        def of_gradient(sums: Tensor) -> dict[str, Any]:
            count, zeros, squares = sums
            scale = self.gradient_elements / float(gradient[0].sum())  # what was not read is taken to be like the rest
            norm = (squares * scale / self.gradient_steps).sqrt()
            return {"norm": norm, "rms": (squares / count).sqrt(), "zeros": zeros / count}

        def plain(numbers: dict[str, Any]) -> dict[str, Any]:
            return {key: value.tolist() for key, value in numbers.items()}

        found = {
            "channels": self.channels,
            "steps": self.steps,
            "values per step and channel": read / self.steps,
            "read": float(total[0]) / self.elements,
            **plain(shares(total)),
            "min": float(least.min()),
            "max": float(largest.max()),
            "not finite steps": int(self.unfinished),
            "rms": float((total[6] / total[0]).sqrt()),
            "per channel": {**plain(shares(values)), "min": least.tolist(), "max": largest.tolist()},
            "pre-activations": {"low": LOW, "high": HIGH, "counts": self.histogram.long().tolist()},
            "gradient": None,
        }
        if self.gradient_steps:
            whole = plain(of_gradient(gradient.sum(1)))
            found["gradient"] = {"steps": self.gradient_steps, **whole, "per channel": plain(of_gradient(gradient))}
        return found
