"""The functions: `bias_act`, and one per row of the registry.

Arguments are turned into what the operator takes, and nothing else: no maths, no tensor work. Eager calls go to the
pybind11 module, which costs a third of `torch.ops`; traced ones, and tensors that override torch functions, to
`torch.ops.fusedact`, which is the same operator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fusedact import _C, lowering, registry
from fusedact.registry import Activation, Limits, activations

_SHAPES = """    Args:
        input: any shape and strides; float32, float64, bfloat16 or float16.
        bias: None, or [input.size(dim)]; of input's dtype, or float32 beside a 16-bit input.
{parameters}        dim: the dimension of `input` along which the bias runs.
        gain: the factor applied after the activation.
        clamp: bounds applied last: c for [-c, c], or (low, high), None for an open side.
        save: what backward reads: "auto", "input", "output" or "mask".
        inplace: write the result over `input` and return it.
        out: a tensor of input's shape and dtype that receives the result (without gradients).
        scale: [input.size(dim)], multiplies the input before the bias is added; dtype as for the bias.
        dropout_p: the probability, in [0, 1], with which an element is set to zero after gain and clamp; the others
            are divided by 1 - p. p is taken as a multiple of 2^-32.
        training: False switches dropout off; None means True.
        residual: of input's shape and dtype; added last.
        generator: where dropout's randomness comes from; torch's own by default.

    Returns:
        A tensor of input's shape, dtype and, where they are dense, strides.

    Raises:
        TypeError: an unknown parameter (the near ones are named), a wrong type, or a dtype that is not served.
        ValueError: a parameter out of its legal range, shapes that do not fit, or a `save` that this activation
            cannot do; got, expected and the fix in one message.
        NotImplementedError: this build has no kernel for input's device.
"""


def bias_act(
    input: Tensor,
    bias: Tensor | None = None,
    activation: str = "relu",
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
    scale: Tensor | None = None,
    dropout_p: float = 0.0,
    training: bool | None = None,
    residual: Tensor | None = None,
    generator: torch.Generator | None = None,
    **params: Any,
) -> Tensor:
    row = registry.get(activation)
    if training is not None and "training" in row.defaults():
        params["training"] = training  # RReLU draws in training, too
    resolved = row.resolve(input, **params)
    if scale is None and residual is None and dropout_p == 0:
        return run(input, bias, resolved, dim, gain, clamp, save, inplace, out)
    if inplace or out is not None:
        raise TypeError("inplace=True and out= do not go with scale, dropout_p or residual: drop them")
    p, drops = dropout_p, training is not False
    return run_epilogue(input, bias, resolved, dim, gain, clamp, save, scale, p, drops, residual, generator)


def run(
    input: Tensor,
    bias: Tensor | None,
    resolved: registry.Resolved,
    dim: int,
    gain: float,
    clamp: Limits,
    save: str,
    inplace: bool,
    out: Tensor | None,
) -> Tensor:
    """`bias_act` with the activation's parameters already checked."""
    kernel, scalars, weight = resolved
    low, high = (None, None) if clamp is None else registry.bounds(clamp)
    if inplace and out is not None:
        raise TypeError("inplace=True writes over `input`, out= into another tensor: give one of the two")
    settings = (weight, kernel, scalars, dim, gain, low, high, save)
    if is_dynamo_compiling() or ((inplace or out is not None) and torch.compiler.is_compiling()):
        training = lowering.training(input, bias, weight)
        given = input.clone() if inplace and training else input  # backward may read it; a compiler drops the copy
        result: Tensor
        if _torchs_own(input, bias, resolved, dim):
            result = lowering.bias_act(kernel, scalars, given, bias, dim, gain, low, high)
        elif (inplace or out is not None) and not training and not torch.compiler.is_exporting():
            return _overridden(input, bias, settings, inplace, out)
        else:
            result = torch.ops.fusedact.bias_act(given, bias, *settings)
        return input.copy_(result) if inplace else result if out is None else out.copy_(result)
    if has_torch_function_variadic(input, bias, weight, out):
        return _overridden(input, bias, settings, inplace, out)
    try:
        if inplace:
            return _C.bias_act_(input, bias, *settings)
        if out is not None:
            return _C.bias_act_out(input, bias, *settings, out)
        return _C.bias_act(input, bias, *settings)
    except TypeError as error:
        raise _explained(error, kernel, input, bias, dim, gain, save, out) from None


def _torchs_own(input: Tensor, bias: Tensor | None, resolved: registry.Resolved, dim: int) -> bool:
    kernel, _, weight = resolved
    return (
        is_dynamo_compiling()
        and weight is None
        and lowering.fits(input, bias, dim)
        and lowering.torchs_own(kernel, input.numel(), bias)
    )


def run_epilogue(
    input: Tensor,
    bias: Tensor | None,
    resolved: registry.Resolved,
    dim: int,
    gain: float,
    clamp: Limits,
    save: str,
    scale: Tensor | None,
    dropout_p: float,
    training: bool,
    residual: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """`bias_act` with scale, dropout or residual, and with the activation's parameters already checked."""
    kernel, scalars, weight = resolved
    if save not in ("auto", "input"):
        raise ValueError(f"save={save!r}: with scale, dropout_p or residual backward reads the input; use save='auto'")
    low, high = (None, None) if clamp is None else registry.bounds(clamp)
    seed = None
    if training and dropout_p != 0:
        # The mask is a function of this number, which any transform of torch sees drawn.
        if isinstance(input, Tensor):
            seed = torch.randint(2**63 - 1, (), generator=generator, device=input.device)
        elif hasattr(input, "new_empty"):  # a proxy of torch.fx, whose device is not known yet
            seed = input.new_empty((), dtype=torch.int64).random_(generator=generator)
    settings = (weight, scale, residual, seed, kernel, scalars, dim, gain, low, high, dropout_p)
    if is_dynamo_compiling() or has_torch_function_variadic(input, bias, scale, residual):
        result: Tensor = torch.ops.fusedact.bias_act_epilogue(input, bias, *settings)
        return result
    try:
        return _C.bias_act_epilogue(input, bias, *settings)
    except TypeError as error:
        more = {"scale": scale, "residual": residual, "dropout_p": dropout_p}
        raise _explained(error, kernel, input, bias, dim, gain, save, None, **more) from None


def _overridden(
    input: Tensor, bias: Tensor | None, settings: tuple[Any, ...], inplace: bool, out: Tensor | None
) -> Tensor:
    """The same through torch.ops, which asks `__torch_function__` (tensor subclasses, FX proxies, modes) first."""
    ops = torch.ops.fusedact
    if inplace:
        ops.bias_act_(input, bias, *settings)
        return input
    if out is not None:
        ops.bias_act.out(input, bias, *settings, out=out)
        return out
    result: Tensor = ops.bias_act(input, bias, *settings)
    return result


_NAMED = "        activation: a name from `fusedact.activations()`, or an alias; a Python callable raises TypeError.\n"
bias_act.__doc__ = f"""clamp(gain * activation(input + bias)), in one pass over memory, forward and backward.

    With scale, dropout_p or residual: residual + dropout(clamp(gain * activation(input * scale + bias))), likewise. The
    mask is recomputed in backward from a number that torch's generator gives: it takes no memory, follows
    torch.manual_seed, and does not depend on strides, threads or the processor. As in torch, a dropped NaN stays NaN.

{_SHAPES.format(parameters=_NAMED).rstrip()}

    The remaining keywords are the activation's own parameters, with torch.nn's names (`negative_slope`, `alpha`, ...).
    """


def _function(row: Activation) -> Callable[..., Tensor]:
    """The function of one row: the plain call with everything precomputed, any other through `bias_act`."""
    name = row.name
    _, scalars, _ = row.resolve()
    fused = _C.bias_act_of(name, scalars)

    def function(
        input: Tensor,
        bias: Tensor | None = None,
        *,
        dim: int = -1,
        gain: float = 1.0,
        clamp: Limits = None,
        save: str = "auto",
        inplace: bool = False,
        out: Tensor | None = None,
        **params: Any,
    ) -> Tensor:
        if (
            params
            or inplace
            or clamp is not None
            or out is not None
            or is_dynamo_compiling()
            or has_torch_function_variadic(input, bias)
        ):
            return bias_act(
                input, bias, name, dim=dim, gain=gain, clamp=clamp, save=save, inplace=inplace, out=out, **params
            )
        try:
            return fused(input, bias, dim, gain, save)
        except TypeError as error:
            raise _explained(error, name, input, bias, dim, gain, save, out) from None

    function.__name__ = function.__qualname__ = name
    function.__signature__ = signature(row)  # type: ignore[attr-defined]
    function.__doc__ = _documentation(row)
    return function


def signature(row: Activation) -> inspect.Signature:
    """The signature of a row's function: its own parameters are keywords like the common ones."""
    common = list(inspect.signature(bias_act).parameters.values())
    first, rest = common[:2], [p for p in common if p.kind is p.KEYWORD_ONLY]
    own = [
        inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=p.default, annotation=annotation(p))
        for p in row.parameters
    ]
    names = {p.name for p in own}
    rest = [p for p in rest if p.name not in names]
    return inspect.Signature([*first, *own, *rest], return_annotation="Tensor")


def annotation(parameter: registry.Parameter) -> str:
    """The type of a parameter, as source text."""
    if parameter.choices is not None:
        return type(parameter.default).__name__
    return "float" + " | Tensor" * parameter.tensor + " | None" * (parameter.open is not None)


def _documentation(row: Activation) -> str:
    own = "".join(f"        {p.name}: {p.meaning}; {legal_range(p)}. Default {p.default!r}.\n" for p in row.parameters)
    also = f"\n    Replaces `{row.replaces}(input + bias)`." if row.replaces else ""
    alias = f"\n    Also called {', '.join(row.aliases)}." if row.aliases else ""
    return (
        f"{row.name}(input + bias), fused: f(x) = {row.formula}.\n{also}{alias}\n\n"
        f"{_SHAPES.format(parameters=own)}\n    Source: {row.source}\n    "
    )


def legal_range(parameter: registry.Parameter) -> str:
    """The legal values of a parameter, in words."""
    if parameter.choices is not None:
        return " or ".join(map(repr, parameter.choices))
    return parameter.reason


def _explained(error: TypeError, name: str, *arguments: Any, **more: Any) -> TypeError:
    """Which argument had the wrong type; called after the extension refused them all with one signature."""
    expected = {
        "input": (Tensor,), "bias": (Tensor, type(None)), "dim": (int,), "gain": (int, float), "save": (str,),
        "out": (Tensor, type(None)), "scale": (Tensor, type(None)), "residual": (Tensor, type(None)),
        "dropout_p": (int, float),
    }  # fmt: skip
    given = dict(zip(expected, arguments, strict=False)) | more
    wrong = [
        f"{argument} must be {' or '.join(t.__name__ for t in expected[argument])}, but got {value!r}"
        for argument, value in given.items()
        if not isinstance(value, expected[argument])
    ]
    own = registry.get(name).parameters
    if own and isinstance(arguments[1], (int, float, str)):
        wrong.append(f"the second argument is the bias; give {own[0].name} by name: {own[0].name}={arguments[1]!r}")
    return TypeError(f"{name}: {'; '.join(wrong)}") if wrong else error


FUNCTIONS: dict[str, Callable[..., Tensor]] = {}
for _row in registry.ROWS:
    FUNCTIONS[_row.name] = _function(_row)
    for _alias in _row.aliases:
        FUNCTIONS[_alias] = FUNCTIONS[_row.name]
globals().update(FUNCTIONS)

__all__ = ["activations", "bias_act", *FUNCTIONS]
