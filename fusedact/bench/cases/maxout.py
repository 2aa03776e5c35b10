"""Maxout of x + bias over consecutive pieces. Torch has no such function: eager is what its paper's readers write."""

from __future__ import annotations

import functools
from typing import Any

import torch

import fusedact
from fusedact.bench.case import Case, Expression, normal

SHAPES = {"32x120": (32, 120), "512x1200": (512, 1200)}


def _eager(pieces: int) -> Expression:
    return lambda x, bias: (x + bias).unflatten(-1, (-1, pieces)).max(-1)[0]


def _fused(pieces: int) -> Expression:
    return lambda x, bias: fusedact.maxout(x, bias, pieces)


def _make(shape: str, dtype: torch.dtype) -> tuple[Any, ...]:
    sizes = SHAPES[shape]
    return normal(*sizes, dtype=dtype), normal(sizes[-1], dtype=dtype, seed=1)


def cases() -> list[Case]:
    """Two, three and five pieces."""
    return [
        Case(
            "maxout",
            f"maxout-{pieces}",
            shape,
            dtype,
            functools.partial(_make, shape, dtype),
            {"eager": _eager(pieces), "fusedact": _fused(pieces)},
            # Among 16-bit pieces many are equal, and which of them gets the gradient is a convention.
            checked=dtype == torch.float32,
        )
        for shape in SHAPES
        for pieces in (2, 3, 5)
        for dtype in (torch.float32, torch.bfloat16)
    ]
