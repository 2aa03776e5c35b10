"""The ends of blocks: residual + dropout(x + bias) of transformers, and batch normalisation with its activation.

Dropout's results are random and therefore not compared here, but in tests/test_epilogue.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import BACKWARD, FORWARD, Case, normal
from torch import Tensor, nn
from torch.nn import functional as F

import fusedact

GOALS = {(mode, "eager"): 2.0 for mode in (FORWARD, BACKWARD)}


def eager(p: float) -> Callable[..., Tensor]:
    return lambda x, bias, residual: residual + F.dropout(x + bias, p)


def fused(p: float) -> Callable[..., Tensor]:
    return lambda x, bias, residual: fusedact.identity(x, bias, dropout_p=p, residual=residual)


def two_and_a_bias(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype, seed=1), normal(*shape, dtype=dtype, seed=2)


def norm(layer: nn.Module, act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """act(layer(x)) with the affine parameters as inputs, in x's dtype where that is float64 (the truth)."""

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return act(torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x))

    return call


def layers(name: str, act: Callable[[Tensor], Tensor], training: bool) -> dict[str, Callable[..., Tensor]]:
    theirs, mine = nn.BatchNorm2d(64), fusedact.nn.BatchNormAct2d(64, activation=name)
    return {"eager": norm(theirs.train(training), act), "fusedact": norm(mine.train(training), lambda y: y)}


def image(memory_format: torch.memory_format) -> Callable[..., tuple[Any, ...]]:
    def make(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        x = normal(*shape, dtype=dtype).contiguous(memory_format=memory_format)
        return x, normal(shape[1], seed=1), normal(shape[1], seed=2)

    return make


DROPOUT = [
    Case("residual+dropout(x+b)", shape, dtype, {"eager": eager(0.1), "fusedact": fused(0.1)}, two_and_a_bias,
         goals=GOALS, checked=False)
    for shape in ((512, 3072), (8192, 4096))
    for dtype in (torch.float32, torch.bfloat16)
]  # fmt: skip
NORMS = [
    Case(f"bn+{name} {'train' if training else 'eval'} {place}", (16, 64, 112, 112), dtype,
         layers(name, act, training), image(memory_format), modes=(FORWARD, BACKWARD) if training else (FORWARD,))
    for dtype in (torch.float32, torch.bfloat16)
    for training in (False, True)
    for place, memory_format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last))
    for name, act in (("relu", F.relu), ("silu", F.silu))
]  # fmt: skip
CASES = DROPOUT + NORMS
