"""What is counted of an activation, per channel, and how counts of many steps become one.

The extension counts: on the CPU in the pass that computes (`bias_act_statistics`, `linear_act_statistics`), on CUDA in
one after it; or in one pass over what is there (`statistics_`). It adds to `Sums` in place. `count` is that last pass,
and its like in Python for other devices. Knows tensors, and nothing of modules or hooks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedact import _C

Zones = tuple[tuple[float, float], ...]

# The histogram of pre-activations, csrc/statistics/kernels.h: bins of equal width; what lies beyond the ends is counted
# in the outermost two, and NaN in none.
BINS, LOW, HIGH = 66, -8.25, 8.25

_ON_CUDA = _C.cuda() is not None

COUNTED = ("count", "zeros", "saturated", "nan", "inf", "sum", "squares", "min", "max")  # rows of Sums.values


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


def count(
    sums: Tensor, histogram: Tensor | None, input: Tensor | None, output: Tensor | None, dim: int, zones: Zones = ()
) -> None:
    """Add what is to be said of a pre-activation and of an output to `sums` and `histogram`; either may be absent.

    Args:
        sums: [9, channels] float64: COUNTED. All but `saturated` is said of outputs.
        histogram: [BINS] float64, or None.
        input, output: [..., channels in dim, ...].
    """
    if counted_by_us(sums):
        _C.statistics_(sums, histogram, input, None, output, dim, flat(zones))
        return
    if input is not None:
        v = by_channel(input, dim)
        saturated, bins = before(v, zones)
        sums[2] += saturated
        if histogram is not None:
            histogram += bins
    if output is not None:
        after(by_channel(output, dim), sums)


def counted_by_us(tensor: Tensor) -> bool:
    """Whether the extension has kernels that count for this tensor's device."""
    return tensor.is_cpu or (_ON_CUDA and tensor.is_cuda)


def flat(zones: Zones) -> tuple[float, ...]:
    """As the extension takes them."""
    return tuple(bound for zone in zones for bound in zone)


# ---- in Python, for devices that the extension does not count on ----------------------------------------------------


def by_channel(t: Tensor, dim: int) -> Tensor:
    """[values, channels], at least float32."""
    t = t.detach().movedim(dim, -1).reshape(-1, t.size(dim))
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def before(v: Tensor, zones: Zones) -> tuple[Tensor, Tensor]:
    """Of pre-activations [values, channels]: how many lie in the zones [channels], and the histogram [BINS]."""
    inside = torch.zeros_like(v, dtype=torch.bool)
    for low, high in zones:
        inside |= (v >= low) & (v <= high)
    bins = ((v - LOW) * (BINS / (HIGH - LOW))).nan_to_num(BINS).clamp_(0, BINS - 1).to(torch.int32)
    bins[v.isnan()] = BINS
    return inside.sum(0), torch.bincount(bins.flatten(), minlength=BINS + 1)[:BINS]


def after(y: Tensor, sums: Tensor) -> None:
    """Add what is to be said of outputs [values, channels]."""
    wide, nan = y.double(), y.isnan()
    rows = ((0, float(y.size(0))), (1, (y == 0).sum(0)), (3, nan.sum(0)), (4, y.isinf().sum(0)))
    for row, found in (*rows, (5, wide.sum(0)), (6, (wide * wide).sum(0))):
        sums[row] += found
    sums[7] = torch.minimum(sums[7], wide.masked_fill(nan, math.inf).amin(0))
    sums[8] = torch.maximum(sums[8], wide.masked_fill(nan, -math.inf).amax(0))


# ---- sums -----------------------------------------------------------------------------------------------------------


def empty_sums(channels: int, device: torch.device | str = "cpu") -> Tensor:
    """[9, channels] in which nothing has been counted."""
    sums = torch.zeros(len(COUNTED), channels, dtype=torch.float64, device=device)
    sums[7], sums[8] = math.inf, -math.inf
    return sums


@dataclass
class Sums:
    """Everything counted so far; it only grows, in place. One per activation, on the device of its tensors."""

    values: Tensor  # [9, channels] float64: COUNTED, of the outputs
    histogram: Tensor  # [BINS] float64
    gradient: Tensor  # [9, channels] float64: COUNTED, of which count, zeros and squares are read
    unfinished: Tensor  # []: steps whose output, all of it, did not have a finite sum
    elements: int = 0  # of the outputs seen, whether they were read or not
    steps: int = 0

    @staticmethod
    def empty(channels: int, device: torch.device | str = "cpu") -> Sums:
        """Nothing counted yet."""
        histogram = torch.zeros(BINS, dtype=torch.float64, device=device)
        unfinished = torch.zeros((), device=device)
        return Sums(empty_sums(channels, device), histogram, empty_sums(channels, device), unfinished)

    @property
    def channels(self) -> int:
        """How many channels are told apart."""
        return self.values.size(1)

    def pool(self) -> None:
        """Make all channels one: for an activation whose number of channels changes."""
        self.values, self.gradient = pooled(self.values), pooled(self.gradient)

    def summary(self) -> dict[str, Any]:
        """Plain numbers: over everything, and per channel as lists."""
        values, gradient = self.values.cpu(), self.gradient.cpu()
        read, total = float(values[0, 0]), pooled(values)[:, 0]
        scale = self.elements / float(total[0])  # what was not read is taken to be like the rest

        def shares(sums: Tensor) -> dict[str, Any]:  # [9] or [9, channels]
            count, zeros, saturated, nan, inf, total, squares, least, largest = sums
            mean = total / count
            std = (squares / count - mean.square()).clamp(min=0).sqrt()
            counted = {"zeros": zeros / count, "saturated": saturated / count, "nan": nan, "inf": inf}
            return {**counted, "mean": mean, "std": std, "min": least, "max": largest}

        def of_gradient(sums: Tensor, steps: float) -> dict[str, Any]:
            norm = (sums[6] * scale / steps).sqrt()
            return {"norm": norm, "rms": (sums[6] / sums[0]).sqrt(), "zeros": sums[1] / sums[0]}

        def plain(numbers: dict[str, Any]) -> dict[str, Any]:
            return {key: value.tolist() for key, value in numbers.items()}

        found = {
            "channels": self.channels,
            "steps": self.steps,
            "values per step and channel": read / self.steps,
            "read": float(total[0]) / self.elements,
            **plain(shares(total)),
            "not finite steps": int(self.unfinished),
            "rms": float((total[6] / total[0]).sqrt()),
            "per channel": plain(shares(values)),
            "pre-activations": {"low": LOW, "high": HIGH, "counts": self.histogram.long().tolist()},
            "gradient": None,
        }
        back = pooled(gradient)[:, 0]
        if back[0] > 0:
            steps = self.steps * float(back[0] / total[0])  # those whose backward pass came by
            whole = plain(of_gradient(back, steps))
            per = plain(of_gradient(gradient, steps))
            found["gradient"] = {"steps": round(steps), **whole, "per channel": per}
        return found


def pooled(sums: Tensor) -> Tensor:
    """[9, channels] as [9, 1]."""
    ends = torch.stack([sums[7].min(), sums[8].max()])
    return torch.cat([sums[:7].sum(1), ends])[:, None]
