"""What the tests know of the registry: its rows as parameters of a test, calls by row, and the contract's bounds.

Everything here follows from the rows; nothing names an activation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fusedact
from fusedact import registry
from fusedact.registry import Activation, Bound

ROWS = registry.ROWS
WEIGHTED = tuple(row for row in ROWS if row.tensor_parameter)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# design.md, "Accuracy". A row's own measured bound, where it states one, takes its place.
CONTRACT = {
    torch.float32: Bound(forward=2.0, derivative=4.0, second=4.0, near_root=2e-7),
    torch.float64: Bound(forward=4.0, derivative=4.0, second=4.0, near_root=2e-15),
    torch.bfloat16: Bound(forward=0.51, derivative=0.51, second=0.51, near_root=2e-7),
    torch.float16: Bound(forward=0.51, derivative=0.51, second=0.51, near_root=2e-7),
}


def row_id(value: Any) -> str:
    """The id of a test parameter that is a row, or (row, params)."""
    if isinstance(value, Activation):
        return value.name
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "defaults"
    return str(value)


def bound(row: Activation, dtype: torch.dtype) -> Bound:
    return row.bounds.get(str(dtype).removeprefix("torch."), CONTRACT[dtype])


def call(row: Activation | str, x: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """fusedact's answer, by name."""
    return fusedact.bias_act(x, bias, row if isinstance(row, str) else row.name, **options)


def reference(row: Activation, v: Tensor, **params: Any) -> Tensor:
    """The row's own reference at v = x + bias, differentiable; `v` may be of any dtype, the result has it too."""
    weight = params.get(row.tensor_parameter.name) if row.tensor_parameter else None
    if isinstance(weight, Tensor):
        return row.reference(v, weight)
    kernel, scalars, _ = row.resolve(None, **params)
    return registry.get(kernel).reference(v, *scalars)


def policies(row: Activation) -> tuple[str, ...]:
    """Every `save` that the row can be asked for with its default parameters."""
    return ("auto", *row.saves)


def kinks(row: Activation, **params: Any) -> tuple[float, ...]:
    _, scalars, _ = row.resolve(None, **params)
    return row.kinks(*scalars)


def settings(row: Activation) -> list[dict[str, Any]]:
    """The defaults, then each other legal value that the row lists, one at a time."""
    return [{}] + [{p.name: value} for p in row.parameters for value in p.samples if legal(row, {p.name: value})]


def legal(row: Activation, params: dict[str, Any]) -> bool:
    try:
        row.resolve(None, **params)
    except (TypeError, ValueError, ZeroDivisionError):
        return False
    return True


def smooth_points(row: Activation, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random points at least 0.05 from every kink (of the default parameters), where finite differences are fair."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    for kink in (*kinks(row), 0.0):
        near = (x - kink).abs() < 0.05
        x = torch.where(near, kink + torch.where(x < kink, -0.08, 0.08), x)
    return x.to(dtype)


WITH_SETTINGS = [(row, params) for row in ROWS for params in settings(row)]


def layouts(x: Tensor) -> list[tuple[str, Tensor]]:
    """`x` [4-D] with the same values in every layout that a caller may bring."""
    n, c, h, w = x.shape
    gapped = x.new_zeros(n, c, h, 2 * w)[..., ::2].copy_(x)
    shifted = torch.cat([x.new_zeros(3), x.flatten()])[3:].view_as(x)
    wide = x.new_zeros(n + 2, c + 2, h + 2, w + 2)[1:-1, 1:-1, 1:-1, 1:-1].copy_(x)
    return [
        ("contiguous", x.contiguous()),
        ("channels_last", x.contiguous(memory_format=torch.channels_last)),
        ("transposed", x.transpose(0, 3).contiguous().transpose(0, 3)),
        ("permuted", x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)),
        ("gapped", gapped),
        ("shifted", shifted),
        ("sliced", wide),
    ]
