"""Gated units: `gated_act`, for every activation of the registry.

Arguments are turned into what the operator takes, as in functional.py. Knows no activation by name.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fusedact import _C, functional, lowering, registry

Pair: TypeAlias = "tuple[Tensor, Tensor]"
Biases: TypeAlias = "Tensor | tuple[Tensor | None, Tensor | None] | None"

__all__ = ["gated_act"]


def gated_act(
    input: Tensor | Pair,
    bias: Biases = None,
    activation: str = "silu",
    *,
    dim: int = -1,
    gate: str = "first",
    layout: str = "concat",
    limit: float | None = None,
    alpha: float = 1.0,
    offset: float = 0.0,
    **params: Any,
) -> Tensor:
    """activation(gate) * (value + offset), in one pass over memory, forward and backward.

    Gate and value are the halves of `input` along `dim`, or two tensors; the halves of `bias` are added to them first.

    ==================  ==============================================================================
    GLU                 activation="sigmoid", gate="second" (torch.nn.functional.glu)
    Bilinear            activation="identity"
    ReGLU               activation="relu"
    GeGLU               activation="gelu", or "gelu" with approximate="tanh"
    SwiGLU              activation="silu", the default (Llama); Swish with another beta: "swish", beta=...
    QuickGeGLU          activation="quick_gelu"
    gpt-oss             limit=7.0, alpha=1.702, offset=1.0, layout="interleaved"
    ==================  ==============================================================================

    Args:
        input: any shape and strides, input.size(dim) even; or two tensors of the same shape and dtype. float32,
            float64, bfloat16 or float16.
        bias: None, or [input.size(dim)], its halves laid out as the input's; for two tensors (first, second), each
            None or [size(dim)]. Of the input's dtype, or float32 beside a 16-bit input.
        activation: a name from `fusedact.activations()`, or an alias.
        dim: the dimension that holds the halves, and along which the biases run.
        gate: which half, or which of two tensors, the activation is of: "first" (Llama, vLLM, Megatron) or "second"
            (torch's GLU, diffusers).
        layout: where the halves lie along `dim`: "concat", one after the other, or "interleaved", element by element
            (gpt-oss). Two tensors have none.
        limit: None, or a positive bound: the gate becomes min(gate, limit) and the value clamp(value, -limit, limit),
            each after its bias. The gradient passes at the bound itself, as torch.clamp's up to torch 2.13 (0 in 2.14).
        alpha: activation(alpha * gate) / alpha stands in place of activation(gate), which for silu is gpt-oss's
            gate * sigmoid(alpha * gate); the slope at 0 stays what it is. Where the activation has an alpha of its
            own (elu, celu), it is that one.
        offset: added to the value after the clamp.

    The remaining keywords are the activation's own parameters, as for `bias_act`. With a tensor as parameter (a learned
    beta), or a random one (rrelu in training), the result is composed of `bias_act` and torch's operators, in several
    passes.

    Returns:
        A tensor with half of `dim`, or of the shape of the two; of the input's dtype, and its order of strides.

    Raises:
        TypeError: an unknown parameter (the near ones are named), a wrong type, or a dtype that is not served.
        ValueError: an odd size, halves that do not match, an interleaved pair, an unknown gate or layout, a bias of the
            wrong length, a parameter out of its range; got, expected and the fix in one message, all reasons at once.
        NotImplementedError: this build has no kernel for the input's device.

    Source: Shazeer 2020, GLU Variants Improve Transformer; gpt-oss for limit, alpha and offset.
    """
    row = registry.get(activation)
    if alpha != 1.0 and any(p.name == "alpha" for p in row.parameters):
        params, alpha = {**params, "alpha": alpha}, 1.0
    kernel, scalars, weight = row.resolve(None, **params)
    first, second, first_bias, second_bias = _tensors(input, bias)
    if weight is not None or row.noise is not None:
        return _composed(input, bias, activation, dim, gate, layout, limit, alpha, offset, params)
    plain = first_bias is None and second_bias is None and (limit, alpha, offset) == (None, 1.0, 0.0)
    if plain and is_dynamo_compiling() and _torchs_own(kernel, first, second, dim, gate, layout):
        halves = split(first, dim, layout) if second is None else (first, second)
        return lowering.gated(kernel, scalars, *(halves if gate == "first" else halves[::-1]))
    settings = (first, second, first_bias, second_bias, kernel, scalars, dim, gate, layout, limit, alpha, offset)
    if is_dynamo_compiling() or has_torch_function_variadic(first, second, first_bias, second_bias):
        result: Tensor = torch.ops.fusedact.gated_act(*settings)
        return result
    try:
        return _C.gated_act(*settings)
    except TypeError as error:
        _explain(error, settings)


def _torchs_own(kernel: str, first: Tensor, second: Tensor | None, dim: int, gate: str, layout: str) -> bool:
    if not lowering.pairs(first, second, dim) or gate not in ("first", "second"):
        return False
    if layout not in ("concat", "interleaved"):
        return False
    return lowering.torchs_own(kernel, first.numel() // (2 if second is None else 1), None)


def _tensors(input: Any, bias: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """First and second tensor and bias, as the operator takes them: the second ones only for two tensors."""
    if not isinstance(input, (tuple, list)):
        if isinstance(bias, (tuple, list)):
            raise TypeError(
                "gated_act: bias is a pair, but input is one tensor, which holds both halves: "
                "give one bias for both, torch.cat(bias) for layout='concat'"
            )
        return input, None, bias, None
    if len(input) != 2:
        raise ValueError(f"gated_act: input must be one tensor or two, gate and value, but got {len(input)}")
    if bias is None:
        return input[0], input[1], None, None
    if not isinstance(bias, (tuple, list)) or len(bias) != 2:
        got = f"a tensor of shape {list(bias.shape)}" if isinstance(bias, Tensor) else f"{bias!r}"
        raise TypeError(f"gated_act: input is two tensors, so bias must be None or two, one for each, but got {got}")
    return input[0], input[1], bias[0], bias[1]


def _explain(error: TypeError, settings: tuple[Any, ...]) -> NoReturn:
    """Say which argument had the wrong type, after the extension refused them all with one signature."""
    tensor, number, optional = (Tensor,), (int, float), (Tensor, type(None))
    expected = {
        "input": (settings[0], tensor), "the second input": (settings[1], optional), "bias": (settings[2], optional),
        "the second bias": (settings[3], optional), "dim": (settings[6], (int,)), "gate": (settings[7], (str,)),
        "layout": (settings[8], (str,)), "limit": (settings[9], (*number, type(None))), "alpha": (settings[10], number),
        "offset": (settings[11], number),
    }  # fmt: skip
    wrong = [
        f"{name} must be {' or '.join(t.__name__ for t in types)}, but got {value!r}"
        for name, (value, types) in expected.items()
        if not isinstance(value, types)
    ]
    raise (TypeError(f"gated_act: {'; '.join(wrong)}") if wrong else error) from None


def _composed(
    input: Tensor | Pair, bias: Biases, activation: str, dim: int, gate: str, layout: str, limit: float | None,
    alpha: float, offset: float, params: dict[str, Any],
) -> Tensor:  # fmt: skip
    """The same of `bias_act` and torch's operators, for activations with a tensor parameter."""
    tensors = _tensors(input, bias)
    shapes = (t.detach().to("meta") if isinstance(t, Tensor) else t for t in tensors)
    # For its checks: without an activation, on tensors without memory.
    torch.ops.fusedact.gated_act(*shapes, "identity", (), dim, gate, layout, limit, alpha, offset)
    first, second, first_bias, second_bias = tensors
    if second is None:
        first, second = split(first, dim, layout)
        if first_bias is not None:
            first_bias, second_bias = split(first_bias, 0, layout)
    halves = [(first, first_bias), (second, second_bias)]
    (g, gate_bias), (v, value_bias) = halves if gate == "first" else halves[::-1]
    if value_bias is not None:
        v = functional.bias_act(v, value_bias, "identity", dim=dim)
    if limit is not None:
        if gate_bias is not None:
            g, gate_bias = functional.bias_act(g, gate_bias, "identity", dim=dim), None
        g, v = g.clamp(max=limit), v.clamp(-limit, limit)
    if alpha != 1.0:
        g = functional.bias_act(g, gate_bias, "identity", dim=dim, gain=alpha)
        gate_bias = None
    return functional.bias_act(g, gate_bias, activation, dim=dim, gain=1 / alpha, **params) * (v + offset)


def split(x: Tensor, dim: int, layout: str) -> Pair:
    """The first and second half of `x` along `dim`, as views."""
    if layout == "interleaved":
        rows = x.movedim(dim, -1)
        return rows[..., 0::2].movedim(-1, dim), rows[..., 1::2].movedim(-1, dim)
    first, second = x.chunk(2, dim)
    return first, second
