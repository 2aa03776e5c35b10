"""Softmax and log-softmax of input + bias, fused.

Arguments are turned into what the operator takes, and nothing else. The file's name has an underscore because the
package exports a function called `softmax`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fusedact import _C

__all__ = ["log_softmax", "softmax"]


def softmax(input: Tensor, bias: Tensor | None = None, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
    """exp(v) / sum(exp(v)) with v = input + bias, the sum along `dim`, in one pass over memory, forward and backward.

    Replaces `torch.softmax(input + bias, dim)`. As there, a row that has NaN or +inf, or -inf only, is NaN throughout;
    other elements at -inf are 0. 16-bit inputs are computed in float32 and rounded once.

    Args:
        input: any shape and strides; float32, float64, bfloat16 or float16.
        bias: None, or [input.size(dim)]; of input's dtype, or float32 beside a 16-bit input.
        dim: the dimension along which the results add up to 1, and the bias runs.
        dtype: what `input` and `bias` are cast to first.

    Returns:
        A tensor of input's shape and, where they are dense, strides.

    Raises:
        TypeError: a wrong type, or a dtype that is not served.
        ValueError: a bias or a `dim` that does not fit; got, expected and the fix in one message.
        NotImplementedError: this build has no kernel for input's device.
    """
    return _softmax("softmax", input, bias, dim, dtype, log=False)


def log_softmax(input: Tensor, bias: Tensor | None = None, dim: int = -1, dtype: torch.dtype | None = None) -> Tensor:
    """v - log(sum(exp(v))) with v = input + bias, the sum along `dim`, in one pass over memory, forward and backward.

    Replaces `torch.log_softmax(input + bias, dim)`; results next to 0 keep their relative digits, which torch's lose.

    Args, Returns, Raises: as for `fusedact.softmax`.
    """
    return _softmax("log_softmax", input, bias, dim, dtype, log=True)


def _softmax(name: str, input: Tensor, bias: Tensor | None, dim: int, dtype: torch.dtype | None, log: bool) -> Tensor:
    if dtype is not None:
        input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
    if is_dynamo_compiling() or has_torch_function_variadic(input, bias):
        result: Tensor = torch.ops.fusedact.softmax(input, bias, dim, log)
        return result
    try:
        return _C.softmax(input, bias, dim, log)
    except TypeError as error:
        raise wrong_types(error, name, input=input, bias=bias, dim=dim) from None


def wrong_types(error: TypeError, name: str, /, **arguments: object) -> TypeError:
    """Which argument had the wrong type; called after the extension refused them all with one signature.

    `dim` and `pieces` are integers, a bias may be None, everything else is a tensor.
    """
    wrong = []
    for argument, value in arguments.items():
        expected: tuple[type, ...] = (int,) if argument in ("dim", "pieces") else (Tensor,)
        if argument.endswith("bias"):
            expected = (Tensor, type(None))
        if not isinstance(value, expected):
            wrong.append(f"{argument} must be {' or '.join(t.__name__ for t in expected)}, but got {value!r}")
    return TypeError(f"{name}: {'; '.join(wrong)}") if wrong else error
