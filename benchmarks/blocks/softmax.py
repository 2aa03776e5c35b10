"""Softmax and log-softmax of x + bias: classifiers, attention rows, vocabularies, and the channels of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import BACKWARD, FORWARD, Case, normal
from torch import Tensor

import fusedact


def eager(function: Callable[..., Tensor], dim: int) -> Callable[..., Tensor]:
    def call(x: Tensor, bias: Tensor) -> Tensor:
        return function(x + (bias if dim == -1 else bias.view(-1, 1, 1)), dim)

    return call


def fused(function: Callable[..., Tensor], dim: int) -> Callable[..., Tensor]:
    return lambda x, bias: function(x, bias, dim)


def make(dim: int) -> Callable[..., tuple[Any, ...]]:
    def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        return normal(*shape, dtype=dtype, scale=2.0), normal(shape[dim], dtype=dtype, seed=1)

    return inputs


SHAPES = (((512, 1000), -1), ((4096, 1024), -1), ((1024, 32000), -1), ((4, 21, 256, 256), -3))
FUNCTIONS = (("softmax", fusedact.softmax, torch.softmax), ("log_softmax", fusedact.log_softmax, torch.log_softmax))

CASES = [
    Case(
        f"{name} + bias",
        shape,
        dtype,
        {"eager": eager(theirs, dim), "fusedact": fused(mine, dim)},
        make(dim),
        goals={(FORWARD, "eager"): 1.3, (BACKWARD, "eager"): 1.3},
    )
    for shape, dim in SHAPES
    for name, mine, theirs in FUNCTIONS
    for dtype in (torch.float32, torch.bfloat16)
]
