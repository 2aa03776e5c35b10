"""Linear with its activation: beside torch's own two operators, and beside the matrix product alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import BACKWARD, FORWARD, Case, normal
from torch import Tensor
from torch.nn import functional as F

import fusedact


def eager(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, weight, bias: act(F.linear(x, weight, bias))


def fused(activation: str) -> Callable[..., Tensor]:
    return lambda x, weight, bias: fusedact.linear_act(x, weight, bias, activation)


def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight)


def make(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    rows, inner, columns = shape
    weight = normal(columns, inner, dtype=dtype, seed=1, scale=inner**-0.5)
    return normal(rows, inner, dtype=dtype), weight, normal(columns, dtype=dtype, seed=2)


# Rows, in_features, out_features, and how many times the product's time the whole may take.
SHAPES = (((512, 768, 3072), 1.02), ((4096, 256, 1024), 1.10), ((64, 784, 512), 1.02))
ACTIVATIONS = (("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu))
NO_SLOWER = {(FORWARD, "eager"): 1.0, (BACKWARD, "eager"): 1.0}

CASES = [
    Case(f"linear + {name}", shape, dtype, {"eager": eager(act), "fusedact": fused(name)}, make, goals=NO_SLOWER)
    for shape, _ in SHAPES
    for dtype in (torch.float32, torch.bfloat16)
    for name, act in ACTIVATIONS
]
# The product is another function than its neighbours, which the cases above have checked.
CASES += [
    Case(
        f"linear + {name}, beside the product",
        shape,
        torch.float32,
        {"eager": eager(act), "fusedact": fused(name), "product": product},
        make,
        modes=(FORWARD,),
        goals={(FORWARD, "product"): 1 / limit},
        checked=False,
    )
    for shape, limit in SHAPES
    for name, act in ACTIVATIONS
]
