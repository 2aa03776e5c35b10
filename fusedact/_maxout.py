"""Maxout: the largest of several pieces, fused with the bias.

The file's name has an underscore because the package exports a function called `maxout`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fusedact import _C
from fusedact._softmax import wrong_types

__all__ = ["maxout"]


def maxout(input: Tensor, bias: Tensor | None = None, pieces: int = 2, dim: int = -1) -> Tensor:
    """The largest of each `pieces` consecutive elements of input + bias along `dim`, in one pass, forward and backward.

    With v = input + bias, result[..., i] = max over j < pieces of v[..., i * pieces + j]: the same as
    `v.unflatten(dim, (-1, pieces)).amax(dim + 1)`. The pieces of one unit lie together because the weight of Goodfellow
    et al., 2013, "Maxout Networks", is W[d, i, j] with unit i before piece j: flattened, it is a Linear layer's weight.

    NaN wins over numbers, as in torch.max. The gradient goes to the winner alone, the first of equals; backward keeps
    the winners' indices, one byte per result, and not the input.

    Args:
        input: any shape but a scalar, any strides; float32, float64, bfloat16 or float16.
        bias: None, or [input.size(dim)]; of input's dtype, or float32 beside a 16-bit input.
        pieces: how many elements each result is chosen from, 1 to 256.
        dim: the dimension that has the pieces, and along which the bias runs.

    Returns:
        A tensor of input's dtype and shape, but input.size(dim) / pieces in `dim`.

    Raises:
        TypeError: a wrong type, or a dtype that is not served.
        ValueError: input.size(dim) is no multiple of `pieces`, or another argument does not fit; got, expected and the
            fix in one message.
        NotImplementedError: this build has no kernel for input's device.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input, bias):
        result: Tensor = torch.ops.fusedact.maxout(input, bias, pieces, dim)[0]
        return result
    try:
        return _C.maxout(input, bias, pieces, dim)[0]
    except TypeError as error:
        raise wrong_types(error, "maxout", input=input, bias=bias, pieces=pieces, dim=dim) from None
