"""act(gate) * value for every activation: one tensor with both halves, with and without bias, or two tensors.

The gate comes first, as in Llama: 22016 is twice 11008, the feed-forward size of its 7B. Liger's kernels stand beside
the two-tensor form, which is the only one they have, where they are installed and the device is theirs.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

import fusedact
from fusedact import registry
from fusedact.bench.case import Case, Expression, normal
from fusedact.bench.cases.activations import torch_function
from fusedact.registry import Activation

SHAPES: dict[str, tuple[int, int]] = {
    "32x256": (32, 256),
    "512x8192": (512, 2 * 4096),
    "8192x8192": (8192, 2 * 4096),
    "512x22016": (512, 2 * 11008),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIGER = {"silu": ("swiglu", "LigerSiLUMulFunction"), "gelu_tanh": ("geglu", "LigerGELUMulFunction")}


def _packed(shape: str, dtype: torch.dtype, bias: bool) -> tuple[Any, ...]:
    x = normal(*SHAPES[shape], dtype=dtype)
    return (x, normal(SHAPES[shape][1], dtype=dtype, seed=1, bias=True)) if bias else (x,)


def _two(shape: str, dtype: torch.dtype) -> tuple[Any, ...]:
    rows, both = SHAPES[shape]
    return normal(rows, both // 2, dtype=dtype), normal(rows, both // 2, dtype=dtype, seed=1)


def _expressions(row: Activation) -> tuple[dict[str, Expression], dict[str, Expression]]:
    """Over one tensor, and over two."""
    scalars = row.resolve()[1]
    act = torch_function(row) or (lambda x: row.reference(x, *scalars))

    def eager(x: Tensor, bias: Tensor | None = None) -> Tensor:
        gate, value = (x if bias is None else x + bias).chunk(2, -1)
        return act(gate) * value

    def fused(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return fusedact.gated_act(x, bias, row.name)

    two: dict[str, Expression] = {
        "eager": lambda gate, value: act(gate) * value,
        "fusedact": lambda gate, value: fusedact.gated_act((gate, value), None, row.name),
    }
    if row.name in LIGER and torch.cuda.is_available() and importlib.util.find_spec("liger_kernel"):
        file, name = LIGER[row.name]
        two["liger"] = getattr(importlib.import_module(f"liger_kernel.ops.{file}"), name).apply
    return {"eager": eager, "fusedact": fused}, two


def cases() -> list[Case]:
    """Every activation as a gate."""
    found = []
    for row in registry.ROWS:
        if row.noise is not None or row.name == "prelu":
            continue
        one, two = _expressions(row)
        for shape in SHAPES:
            for dtype in DTYPES:
                # Eager rounds the activation before it multiplies, and what has no function of torch after each step.
                slack = 2.0 if torch_function(row) else 4.0 if dtype == torch.float32 else 32.0
                make = functools.partial(Case, "gated", shape=shape, dtype=dtype, slack=slack)
                found += [
                    make(row.name, make=functools.partial(_packed, shape, dtype, False), fresh=one),
                    make(f"{row.name}+bias", make=functools.partial(_packed, shape, dtype, True), fresh=one),
                    make(f"{row.name}-two", make=functools.partial(_two, shape, dtype), fresh=two, rows=(0, 1)),
                ]
    return found
