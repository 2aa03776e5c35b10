"""act(x + bias) for every row of the registry. A new row needs nothing here.

Eager is torch's own function where torch has it, else the registry's formula in torch's operators, which is what a
user would write who has no library.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fusedact
from fusedact import registry
from fusedact.bench.case import BACKWARD, DOUBLE, FORWARD, GRAD, Case, Expression, normal
from fusedact.registry import Activation

# By the name that --filter takes. 4096x3136 has the bytes of the images.
SHAPES: dict[str, tuple[int, ...]] = {
    "8": (8,),
    "512": (512,),
    "32x128": (32, 128),
    "256x1024": (256, 1024),
    "512x3072": (512, 3072),
    "4096x3136": (4096, 3136),
    "8192x4096": (8192, 4096),
    "16x64x112x112": (16, 64, 112, 112),
    "16x64x112x112-channels_last": (16, 64, 112, 112),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _spelled(row: Activation) -> tuple[str, dict[str, Any]]:
    """The name that torch has for `row`, and the arguments without which torch's function is another, or none."""
    if row.name == "gelu_tanh":
        return "gelu", {"approximate": "tanh"}
    return row.name, row.defaults() if row.name in ("clamp", "threshold") else {}


def torch_function(row: Activation) -> Callable[[Tensor], Tensor] | None:
    """The torch function that `row` replaces, with torch's defaults; None if there is none."""
    name, arguments = _spelled(row)
    function = registry.get(name).torch_function
    if row.name == "prelu" and function is not None:
        return lambda x: function(x, torch.full((1,), 0.25, dtype=x.dtype, device=x.device))
    return functools.partial(function, **arguments) if function and arguments else function


def torch_in_place(row: Activation) -> Callable[[Tensor], Any] | None:
    """The same function, writing its result over its argument; None if torch has no such form."""
    name, arguments = _spelled(row)
    function = registry.get(name).torch_function
    if name == "relu":  # aten::relu.out exists, but allocates a result and copies it
        return torch.relu_
    if function is None or name == "prelu":
        return None
    operator = getattr(torch.ops.aten, name, None)
    if operator is not None and "out" in operator.overloads():
        return lambda x: operator.out(x, out=x, **arguments)
    try:
        named = "inplace" in inspect.signature(function).parameters
    except ValueError:  # a builtin
        return None
    return functools.partial(function, inplace=True) if named else None


def _eager(row: Activation, channels: tuple[int, ...]) -> Expression:
    act = torch_function(row)
    if act is None:
        scalars = row.resolve()[1]
        act = lambda x: row.reference(x, *scalars)  # noqa: E731
    return lambda x, bias: act(x + bias.view(channels))


def _truth(row: Activation, channels: tuple[int, ...]) -> Expression:
    scalars = row.resolve()[1]
    return lambda x, bias: row.reference(x + bias.view(channels), *scalars)


def _make(shape: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    sizes = SHAPES[shape]
    image = len(sizes) == 4
    x = normal(*sizes, dtype=dtype)
    if shape.endswith("channels_last"):
        x = x.contiguous(memory_format=torch.channels_last)
    return x, normal(sizes[1] if image else sizes[-1], dtype=dtype, seed=1, bias=True)


def case(row: Activation, shape: str, dtype: torch.dtype) -> Case:
    """One activation at one size."""
    image = len(SHAPES[shape]) == 4
    channels, dim = ((-1, 1, 1), 1) if image else ((-1,), -1)
    function: Callable[..., Tensor] = getattr(fusedact, row.name)
    call = functools.partial(function, dim=1) if image else function
    own = _eager(row, channels)
    # The same wrapper for all, so that tiny calls compare.
    fresh: dict[str, Expression] = {"eager": own, "fusedact": lambda x, bias: call(x, bias)}
    if "mask" in row.saves:
        fresh["mask"] = lambda x, bias: function(x, bias, dim=dim, save="mask")
    warm: dict[str, Expression] = {"fusedact": lambda x, bias, out: call(x, bias, out=out)}
    inplace: dict[str, Expression] = {"fusedact": lambda x, bias: call(x, bias, inplace=True)}
    over = torch_in_place(row)
    if over is not None:
        # The sum goes where the result will be, and the activation works on it in place: the least memory that eager
        # can touch.
        warm["eager"] = lambda x, bias, out: over(torch.add(x, bias.view(channels), out=out))
        inplace["eager"] = lambda x, bias: over(x.add_(bias.view(channels)))
    return Case(
        "activations",
        row.name,
        shape,
        dtype,
        functools.partial(_make, shape, dtype),
        fresh,
        warm,
        inplace,
        (FORWARD, GRAD, BACKWARD, DOUBLE) if _curved(row) else (FORWARD, GRAD, BACKWARD),
        truth=_truth(row, channels),
        # A formula of several operators rounds to 16 bits after each; its gradient does so twice.
        slack=1.0 if torch_function(row) is not None else 4.0 if dtype.itemsize > 2 else 32.0,
    )


def _curved(row: Activation) -> bool:
    """Whether torch has a second derivative to compare with."""
    return row.name != "hardsigmoid"


def cases() -> list[Case]:
    """Every activation at every size."""
    # RReLU draws in training, and without it is leaky_relu.
    rows = [row for row in registry.ROWS if row.noise is None]
    return [case(row, shape, dtype) for row in rows for shape in SHAPES for dtype in DTYPES]


def elements(shape: str) -> int:
    """How many there are in an activation's x."""
    return math.prod(SHAPES[shape])
