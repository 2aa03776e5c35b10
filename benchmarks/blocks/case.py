"""What a benchmark of a block is: one expression over some tensors, written once for each contender.

A family of operators has a file beside this one with a list `CASES`. Knows nothing of timing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FORWARD, BACKWARD = "forward", "forward + backward"


@dataclass(frozen=True)
class Case:
    """One row of the table.

    `providers` must have "eager", which is also the truth (on float64 inputs), and "fusedact". Where "torch.compile" is
    missing, the runner compiles "eager". Each is called as provider(*make()), and returns a tensor or a tuple of them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    providers: Mapping[str, Callable[..., Any]]
    make: Callable[[tuple[int, ...], torch.dtype], tuple[Any, ...]]  # inputs, the same on every call
    modes: tuple[str, ...] = (FORWARD, BACKWARD)
    leaves: tuple[int, ...] | None = None  # inputs that get a gradient; None: every floating point tensor
    goals: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (mode, rival) -> how many times as fast
    checked: bool = True  # False where results are random: then the family's tests must do

    def grad_of(self, inputs: tuple[Any, ...]) -> list[int]:
        """Positions of the inputs that get a gradient."""
        if self.leaves is not None:
            return list(self.leaves)
        return [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)
