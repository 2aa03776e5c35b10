"""Gated units: act(gate) * value over one tensor that holds both halves, with a bias. Gate first, as Llama has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import BACKWARD, FORWARD, Case, normal
from torch import Tensor
from torch.nn import functional as F

import fusedact


def eager(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def gated(x: Tensor, bias: Tensor | None = None) -> Tensor:
        gate, value = (x if bias is None else x + bias).chunk(2, -1)
        return act(gate) * value

    return gated


def fused(activation: str) -> Callable[..., Tensor]:
    return lambda x, bias=None: fusedact.gated_act(x, bias, activation)


def plain(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return (normal(*shape, dtype=dtype),)


def biased(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype, seed=1)


def goals(forward: tuple[float, float], both: tuple[float, float]) -> dict[tuple[str, str], float]:
    rivals = ("eager", "torch.compile")
    return {
        (mode, rival): g
        for mode, pair in ((FORWARD, forward), (BACKWARD, both))
        for rival, g in zip(rivals, pair, strict=True)
    }


SHAPES = (((512, 2 * 4096), goals((3, 2.5), (2, 1.5))), ((8192, 2 * 4096), goals((8, 4), (7, 3.5))))

CASES = [
    Case(name + more, shape, dtype, {"eager": eager(act), "fusedact": fused(activation)}, make, goals=wanted)
    for shape, wanted in SHAPES
    for dtype in (torch.float32, torch.bfloat16)
    for more, make in (("", plain), (" + bias", biased))
    for name, activation, act in (("swiglu", "silu", F.silu), ("geglu", "gelu", F.gelu))
]
