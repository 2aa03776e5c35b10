"""Maxout of x + bias over consecutive pieces. Nothing is promised; torch has no such function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import Case, normal
from torch import Tensor

import fusedact


def eager(pieces: int) -> Callable[..., Tensor]:
    return lambda x, bias: (x + bias).unflatten(-1, (-1, pieces)).max(-1)[0]


def fused(pieces: int) -> Callable[..., Tensor]:
    return lambda x, bias: fusedact.maxout(x, bias, pieces)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype, seed=1)


CASES = [
    Case(f"maxout of {pieces}", (512, 1200), dtype, {"eager": eager(pieces), "fusedact": fused(pieces)}, inputs)
    for pieces in (2, 3, 5)
    for dtype in (torch.float32, torch.bfloat16)
]
