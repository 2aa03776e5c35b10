"""What a call becomes under torch.compile: the operator, or torch's own function where Inductor's loop is faster.

Inductor writes one loop for a chain of pointwise operations; an operator in the middle cuts it and costs 20 to 40 us
a call. It pays where its kernel saves more than that (an exponential, a bias gradient) on enough elements; where a
shape is not known, it stays. The figures behind the numbers are in benchmarks/NOTES.md.

Knows Dynamo's tracing; no maths beyond the names of torch's functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to how many elements torch's function is the faster one: more for those that Inductor computes nearly as fast.
SMALL = 16384
CLOSE = {"gelu": 65536, "silu": 262144, "sigmoid": 262144, "elu": 262144, "celu": 262144, "selu": 262144}

# By the kernel's name: torch's function of x and the kernel's scalars.
ALSO_IN_TORCH: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": F.threshold,
}

# A multiplication or two per element: nothing is left to save but the cut, unless a bias wants its gradient.
CHEAP = {"relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "threshold"}


def _known(holds: bool) -> bool:
    """Whether it holds for the shapes at hand, without a guard on those that are free."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # heavy; there whenever something is traced

    return statically_known_true(holds)


def training(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def torchs_own(kernel: str, numel: int, bias: Tensor | None) -> bool:
    """Whether torch's function is to stand for `kernel` over `numel` elements.

    Never where a program is exported: what is deployed keeps the operator, and with it the accuracy.
    """
    if kernel not in ALSO_IN_TORCH or torch.compiler.is_exporting():
        return False
    if kernel in CHEAP and not training(bias):
        return True
    return _known(numel <= CLOSE.get(kernel, SMALL))


def fits(input: Tensor, bias: Tensor | None, dim: int) -> bool:
    """Whether `bias` goes with `input`; the operator explains what is wrong with one that does not."""
    if not -input.dim() <= dim < input.dim() or not input.is_floating_point():
        return False
    if bias is None:
        return True
    wide = input.dtype.itemsize == 2 and bias.dtype == torch.float32
    return bias.dim() == 1 and (bias.dtype == input.dtype or wide) and _known(bias.size(0) == input.size(dim))


def apply(
    kernel: str, scalars: tuple[float, ...], v: Tensor, gain: float, low: float | None, high: float | None
) -> Tensor:
    """clamp(gain * act(v)) in torch's functions."""
    y = ALSO_IN_TORCH[kernel](v, *scalars)
    if gain != 1:
        y = y * gain
    return y if low is None and high is None else torch.clamp(y, low, high)


def bias_act(
    kernel: str,
    scalars: tuple[float, ...],
    input: Tensor,
    bias: Tensor | None,
    dim: int,
    gain: float,
    low: float | None,
    high: float | None,
) -> Tensor:
    """clamp(gain * act(input + bias)) in torch's functions, rounded once where the dtype is a 16-bit one."""
    v = input.float() if input.dtype.itemsize == 2 else input
    if bias is not None:
        v = v + bias.view(-1, *[1] * (input.dim() - 1 - dim % input.dim()))
    return apply(kernel, scalars, v, gain, low, high).to(input.dtype)


def pairs(first: Tensor, second: Tensor | None, dim: int) -> bool:
    """Whether these are a gate and its value, or one with both; the operator explains what is wrong with others."""
    if not -first.dim() <= dim < first.dim() or not first.is_floating_point():
        return False
    if second is None:
        return _known(first.size(dim) % 2 == 0)
    return second.dtype == first.dtype and second.dim() == first.dim() and _known(second.shape == first.shape)


def gated(kernel: str, scalars: tuple[float, ...], gate: Tensor, value: Tensor) -> Tensor:
    """act(gate) * value in torch's functions, rounded once where the dtype is a 16-bit one."""
    g, v = (gate.float(), value.float()) if gate.dtype.itemsize == 2 else (gate, value)
    return (ALSO_IN_TORCH[kernel](g, *scalars) * v).to(gate.dtype)
