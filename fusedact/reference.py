"""What fusedact computes, in plain torch operators and float64: slow, differentiable any number of times.

Tests compare with it, and so can users; it is never used in place of a kernel. Knows the registry, not the extension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusedact import registry


def bias_act(
    input: Tensor,
    bias: Tensor | None = None,
    activation: str = "relu",
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: registry.Limits = None,
    dtype: torch.dtype | None = None,
    **params: Any,
) -> Tensor:
    """clamp(gain * activation(input + bias)) with float64 arithmetic, rounded once to `dtype`.

    Args:
        input: any shape; any floating-point dtype. The other arguments are those of `fusedact.bias_act`, of which
            `save`, `inplace` and `out` have no meaning here.
        dtype: of the result; input's own by default. float64 gives the truth that an error is measured against.

    input + bias is rounded as the kernels round it: to float32, or to float64 for a float64 input. The result is the
    truth for the three smaller dtypes; in float64 itself it is good to about 1e-13 (exp and erfc of a rounded product).

    Raises:
        TypeError, ValueError: as `fusedact.bias_act`.
    """
    kernel, scalars, weight = registry.get(activation).resolve(input, **params)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    v = input.to(wide)
    if bias is not None:
        v = v + along(bias.to(wide), input, dim)
    arguments: list[float | Tensor] = list(scalars)
    if weight is not None:
        arguments[0] = (weight if weight.shape == input.shape else along(weight, input, dim)).double()
    y = registry.get(kernel).reference(v.double(), *arguments)
    if gain != 1:
        y = y * gain
    if clamp is not None:
        y = y.clamp(*registry.bounds(clamp))
    return y.to(dtype or input.dtype)


def along(vector: Tensor, input: Tensor, dim: int) -> Tensor:
    """`vector` of 1 or input.size(dim) elements, viewed so that it broadcasts along dim `dim` of `input`."""
    if vector.numel() == 1:
        return vector.reshape(())
    shape = [1] * input.dim()
    shape[dim] = vector.numel()
    return vector.reshape(shape)
