"""The ends of blocks: residual + dropout(x + bias) of transformers, and batch normalisation with its activation.

Dropout's results are random and therefore not compared here, but in tests/test_epilogue.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedact
from fusedact.bench.case import BACKWARD, FORWARD, Case, Expression, normal

ROWS = {"32x128": (32, 128), "512x3072": (512, 3072), "8192x4096": (8192, 4096)}
IMAGES = {"2x8x14x14": (2, 8, 14, 14), "16x64x112x112": (16, 64, 112, 112)}
DTYPES = (torch.float32, torch.bfloat16)
P = 0.1


def _dropout(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual + F.dropout(x + bias, P)


def _fused_dropout(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return fusedact.identity(x, bias, dropout_p=P, residual=residual)


def _two_and_a_bias(shape: str, dtype: torch.dtype) -> tuple[Any, ...]:
    sizes = ROWS[shape]
    return normal(*sizes, dtype=dtype), normal(sizes[-1], dtype=dtype, seed=1), normal(*sizes, dtype=dtype, seed=2)


def _norm(layer: nn.Module, act: Callable[[Tensor], Tensor]) -> Expression:
    """act(layer(x)) with the affine parameters as inputs, in x's dtype where that is float64 (the truth)."""

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer.to(x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)
        return act(torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x))

    return call


def _layers(name: str, channels: int, act: Callable[[Tensor], Tensor], training: bool) -> dict[str, Expression]:
    theirs, mine = nn.BatchNorm2d(channels), fusedact.nn.BatchNormAct2d(channels, activation=name)
    return {"eager": _norm(theirs.train(training), act), "fusedact": _norm(mine.train(training), lambda y: y)}


def _image(shape: str, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Any, ...]:
    sizes = IMAGES[shape]
    x = normal(*sizes, dtype=dtype).contiguous(memory_format=memory_format)
    return x, normal(sizes[1], seed=1), normal(sizes[1], seed=2)


def cases() -> list[Case]:
    """Dropout with residual at every size, batch norm in both layouts and both modes."""
    ends = [
        Case("epilogue", "residual+dropout", shape, dtype, functools.partial(_two_and_a_bias, shape, dtype),
             {"eager": _dropout, "fusedact": _fused_dropout}, rows=(0, 2), checked=False)
        for shape in ROWS
        for dtype in DTYPES
    ]  # fmt: skip
    norms = [
        Case("epilogue", f"batch_norm+{name}-{'train' if training else 'eval'}", shape + suffix, dtype,
             functools.partial(_image, shape, dtype, memory_format), _layers(name, IMAGES[shape][1], act, training),
             modes=(FORWARD, BACKWARD) if training else (FORWARD,), rows=(), slack=8.0)
        for shape in IMAGES
        for dtype in DTYPES
        for training in (False, True)
        for suffix, memory_format in (("", torch.contiguous_format), ("-channels_last", torch.channels_last))
        for name, act in (("relu", F.relu), ("silu", F.silu))
    ]  # fmt: skip
    return ends + norms
