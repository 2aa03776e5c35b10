"""`linear_act`: a matrix product, a bias and an activation as one operator.

Arguments are turned into what the operator takes, and nothing else, as in `fusedact.functional`: eager calls go to the
pybind11 module, traced ones and tensors that override torch functions to `torch.ops.fusedact`, the same operator.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fusedact import _C, lowering, registry
from fusedact.registry import Activation, Limits, Resolved

__all__ = ["linear_act"]


def linear_act(
    input: Tensor,
    weight: Tensor,
    /,
    bias: Tensor | None = None,
    activation: str = "relu",
    *,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    **params: Any,
) -> Tensor:
    """clamp(gain * activation(input @ weight.T + bias)): torch.nn.functional.linear and what follows, as one operator.

    On the CPU the product is computed in tiles that stay in cache, and each is finished (bias, activation, rounding)
    before the next, so that the activation costs no pass over memory. bfloat16 and float16 are multiplied, summed and
    activated in float32 and rounded once, at the end; a processor with 16-bit dot products (AVX512-BF16, AMX) runs
    torch's own 16-bit product instead, which rounds it a first time.

    The cut follows from the shape, so that the bits do not depend on the number of threads. Where fewer than 8 rows, or
    too few tiles for the threads, leave the product to torch as a whole, its bits are torch's.

    Args:
        input: [*, in_features], any strides; float32, float64, bfloat16 or float16.
        weight: [out_features, in_features], of input's dtype.
        bias: None, or [out_features]; of input's dtype, or float32 beside a 16-bit input.
        activation: a name from `fusedact.activations()`, or an alias.
        gain: the factor applied after the activation.
        clamp: bounds applied last: c for [-c, c], or (low, high), None for an open side.
        save: what backward reads: "input" (the product, before the bias), "output", "mask", or "auto": the output where
            the derivative follows from it, else the product.

    The remaining keywords are the activation's own parameters; a tensor of 1 or out_features elements learns. Input and
    weight are given by position, because prelu has a parameter called `weight`.

    Returns:
        [*, out_features], contiguous, of input's dtype.

    Raises:
        TypeError: an unknown parameter, a wrong type, or dtypes that differ or are not served.
        ValueError: shapes that do not fit, a parameter out of its range, or a `save` that this activation cannot do;
            got, expected and the fix in one message.
        NotImplementedError: this build has no kernel for input's device.
    """
    row = registry.get(activation)
    return run(input, weight, bias, resolve(row, input, weight, params), gain, clamp, save)


def resolve(row: Activation, input: Tensor, weight: Tensor, params: dict[str, Any]) -> Resolved:
    """The activation's parameters as the operator takes them; a random one (rrelu's) has the output's shape."""
    if row.noise is None or not isinstance(input, Tensor) or weight.dim() != 2 or input.dim() == 0:
        return row.resolve(None, **params)
    return row.resolve(input.new_empty(1).expand(*input.shape[:-1], weight.shape[0]), **params)


def run(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    resolved: Resolved,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
) -> Tensor:
    """`linear_act` with the activation's parameters already checked."""
    kernel, scalars, param = resolved
    low, high = (None, None) if clamp is None else registry.bounds(clamp)
    settings = (param, kernel, scalars, gain, low, high, save)
    if is_dynamo_compiling():
        whole = lowered(input, weight, bias, resolved, gain, low, high)
        if whole is not None:
            return whole
    if is_dynamo_compiling() or has_torch_function_variadic(input, weight, bias, param):
        result: Tensor = torch.ops.fusedact.linear_act(input, weight, bias, *settings)
        return result
    try:
        return _C.linear_act(input, weight, bias, *settings)
    except TypeError as error:
        raise _explained(error, kernel, input, weight, bias, gain, save) from None


def lowered(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    resolved: Resolved,
    gain: float = 1.0,
    low: float | None = None,
    high: float | None = None,
) -> Tensor | None:
    """What is traced, in torch's functions, where Inductor's product and loop are the faster ones; else None."""
    kernel, scalars, param = resolved
    if param is not None or not _torchs_own(kernel, input, weight, bias):
        return None
    return lowering.apply(kernel, scalars, F.linear(input, weight, bias), gain, low, high)


def _torchs_own(kernel: str, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Products of 16-bit matrices stay ours, which are the faster ones on many processors."""
    if input.dim() == 0 or weight.dim() != 2 or weight.dtype != input.dtype or input.dtype.itemsize == 2:
        return False
    if bias is not None and (bias.dim() != 1 or bias.size(0) != weight.size(0) or bias.dtype != input.dtype):
        return False
    if input.size(-1) != weight.size(1):
        return False
    # The product takes the bias along, and its memory holds the result: there is half as much to save.
    numel = math.prod(input.shape[:-1]) * weight.size(0) // 2
    return lowering.torchs_own(kernel, numel, bias)


def _explained(error: TypeError, name: str, *arguments: Any) -> TypeError:
    """Which argument had the wrong type; called after the extension refused them all with one signature."""
    expected = {
        "input": (Tensor,), "weight": (Tensor,), "bias": (Tensor, type(None)), "gain": (int, float), "save": (str,),
    }  # fmt: skip
    wrong = [
        f"{argument} must be {' or '.join(t.__name__ for t in types)}, but got {value!r}"
        for (argument, types), value in zip(expected.items(), arguments, strict=True)
        if not isinstance(value, types)
    ]
    return TypeError(f"linear_act ({name}): {'; '.join(wrong)}") if wrong else error
