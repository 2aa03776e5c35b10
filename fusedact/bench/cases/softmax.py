"""Softmax and log-softmax of x + bias: classifiers, attention rows, vocabularies, and the channels of images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fusedact
from fusedact.bench.case import Case, Expression, normal

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {  # sizes, and the dimension that sums to one
    "32x100": ((32, 100), -1),
    "512x1000": ((512, 1000), -1),
    "4096x1024": ((4096, 1024), -1),
    "1024x32000": ((1024, 32000), -1),
    "4x21x256x256": ((4, 21, 256, 256), -3),
}
FUNCTIONS = (("softmax", fusedact.softmax, torch.softmax), ("log_softmax", fusedact.log_softmax, torch.log_softmax))


def _eager(function: Callable[..., Tensor], dim: int) -> Expression:
    return lambda x, bias: function(x + (bias if dim == -1 else bias.view(-1, 1, 1)), dim)


def _fused(function: Callable[..., Tensor], dim: int) -> Expression:
    return lambda x, bias: function(x, bias, dim)


def _make(shape: str, dtype: torch.dtype) -> tuple[Any, ...]:
    sizes, dim = SHAPES[shape]
    return normal(*sizes, dtype=dtype, scale=2.0), normal(sizes[dim], dtype=dtype, seed=1, bias=True)


def cases() -> list[Case]:
    """Both functions at every size."""
    return [
        Case(
            "softmax",
            name,
            shape,
            dtype,
            functools.partial(_make, shape, dtype),
            {"eager": _eager(theirs, dim), "fusedact": _fused(mine, dim)},
            slack=4.0,  # a sum of a row's terms, in which small gradients cancel
        )
        for shape, (_, dim) in SHAPES.items()
        for name, mine, theirs in FUNCTIONS
        for dtype in (torch.float32, torch.bfloat16)
    ]
