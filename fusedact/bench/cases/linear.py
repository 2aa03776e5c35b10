"""Linear with its activation: beside torch's two operators, oneDNN's fused one, and the matrix product alone.

oneDNN's operator is what Inductor puts into frozen graphs. It has no backward, rounds differently, and makes 0 of NaN
in relu: another function, shown for its speed. The product alone is the ceiling: it computes no activation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fusedact
from fusedact.bench.case import Case, Expression, normal

SHAPES = {  # rows, in_features, out_features
    "16x32x64": (16, 32, 64),
    "512x768x3072": (512, 768, 3072),
    "4096x256x1024": (4096, 256, 1024),
    "64x784x512": (64, 784, 512),
}
ACTIVATIONS: tuple[tuple[str, Callable[[Tensor], Tensor], str], ...] = (
    ("relu", F.relu, "relu"),
    ("gelu", F.gelu, "gelu"),
    ("silu", F.silu, "swish"),
)


def _eager(act: Callable[[Tensor], Tensor]) -> Expression:
    return lambda x, weight, bias: act(F.linear(x, weight, bias))


def _fused(name: str) -> Expression:
    return lambda x, weight, bias: fusedact.linear_act(x, weight, bias, name)


def _onednn(name: str, dtype: torch.dtype) -> Expression | None:
    """None where this torch has no such operator, or the processor no 16-bit dot product."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    algorithm = "none" if name == "gelu" else ""
    return lambda x, weight, bias: operator(x, weight, bias, name, [], algorithm)


def _make(shape: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Products are multiples of 1/1024, a bias is between two of those: no rounding puts a sum beyond relu's kink."""
    rows, inner, columns = SHAPES[shape]
    generator = torch.Generator().manual_seed(1)
    x = normal(rows, inner).mul_(16).round_().clamp_(-63, 63) / 16
    weight = (torch.randn(columns, inner, generator=generator) * inner**-0.5 * 64).round_() / 64
    bias = (torch.randint(-64, 64, (columns,), generator=generator) + 0.5) / 1024
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def cases() -> list[Case]:
    """Three activations behind a product at every size."""
    found = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for name, act, theirs in ACTIVATIONS:
                fresh = {"eager": _eager(act), "fusedact": _fused(name)}
                fresh["product"] = lambda x, weight, bias: F.linear(x, weight)
                onednn = _onednn(theirs, dtype)
                if onednn is not None:
                    fresh["onednn"] = onednn
                make = functools.partial(_make, shape, dtype)
                # The slack: sums of thousands of products.
                more = Case("linear", f"linear+{name}", shape, dtype, make, fresh, slack=4.0, bound_by_memory=False)
                found.append(more)
    return found
