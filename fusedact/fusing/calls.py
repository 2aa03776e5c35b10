"""What a fused model calls: each function does the fused thing if all that it relies on still holds, and otherwise
exactly what the model's author wrote. Hooks, a replaced layer, an odd dtype or device are looked at on every call.

Knows nothing of sources; allocates nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.modules import module as _torch_module
from torch.overrides import has_torch_function_unary

import fusedact
from fusedact import _C, _build_info, functional, gemm, registry
from fusedact.fusing.recognise import Gate, Match
from fusedact.fusing.roles import Layer, Role, Settings, linear, module_role, torch_layers
from fusedact.nn.activation import overwritable

ROLE = "fusedact_role"  # attribute of an activation's class once it is fused

_any_global_hook: Callable[[], bool] = vars(_torch_module)["_has_any_global_hook"]

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
DEVICES = frozenset(("cpu", "meta", *(("cuda",) if _build_info.cuda else ())))
_LAYERS = torch_layers()
_PLAIN = (Tensor, nn.Parameter)


def servable(x: Any) -> bool:
    """Whether the operators take `x`: a dense floating-point tensor, or one that stands for such a tensor."""
    if type(x) in _PLAIN:
        return (x.is_cpu or x.device.type in DEVICES) and x.dtype in DTYPES and x.layout is torch.strided
    if isinstance(x, torch.fx.Proxy):
        return True
    kind = type(x).__name__
    if kind in ("FakeTensor", "FunctionalTensor"):  # torch.export; ONNX has none of our operators
        return x.dtype in DTYPES and not torch.onnx.is_in_onnx_export()
    return kind == "DTensor" and x.dtype in DTYPES and x.device.type in DEVICES  # sharding.py has the rules


def plain(module: nn.Module) -> bool:
    """Whether calling the module is calling its class's forward, and nothing else."""
    if torch.compiler.is_compiling():
        return not (module._forward_hooks or module._forward_pre_hooks or module._modules)
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or own["_modules"]  # torch's parametrisations, adapters
        or _any_global_hook()
    )


def resolve(role: Role, module: nn.Module, x: Tensor) -> registry.Resolved:
    """What the operator takes for an activation module as it stands now."""
    if role.match is not None:
        return role.match.resolved
    if not role.names:
        return role.row.resolve()
    values = tuple([getattr(module, name) for name in role.names])
    try:
        known = _RESOLVED.get((role.row.name, values))
    except TypeError:  # something that cannot be a key
        known = None
    if known is not None:
        return known
    resolved = role.row.resolve(x, **dict(zip(role.names, values, strict=True)))
    if all(isinstance(v, (int, float, str)) for v in values):
        _RESOLVED[role.row.name, values] = resolved
    return resolved


_RESOLVED: dict[Any, registry.Resolved] = {}  # of settings that are numbers and words: checking them takes 2 µs


def activate(module: Any, x: Tensor) -> Tensor:
    """The forward of an activation module once it is fused."""
    kind = type(module)
    role: Role = getattr(kind, ROLE)
    if not servable(x):
        result: Tensor = kind.fusedact_original.forward(module, x)
        return result
    inplace = role.match.inplace if role.match is not None else bool(getattr(module, "inplace", False))
    gain = role.match.gain if role.match is not None else 1.0
    # a parameter with several elements has them along dim 1, as torch.nn.PReLU's
    dim = 1 if role.names and x.dim() > 1 else -1
    return functional.run(x, None, resolve(role, module, x), dim, gain, None, "auto", inplace, None)


def settings_of(role: Role, module: Any) -> Settings | None:
    """What the operator takes for an activation module whose settings are numbers and words; None for any other."""
    own, names = module.__dict__, role.names
    try:
        key = own[names[0]] if len(names) == 1 else tuple([own[name] for name in names])
        known = role.known.get(key)
    except (KeyError, TypeError):  # a parameter that learns, something that cannot be a key
        return None
    if known is not None:
        return known
    if not all(isinstance(v, (int, float, str)) for v in (key if isinstance(key, tuple) else (key,))):
        return None
    settings = role.known[key] = Settings.of(
        resolve(role, module, _NOTHING), role.match.gain if role.match is not None else 1.0
    )
    return settings


_NOTHING = torch.empty(0)


def direct(x: Any) -> bool:
    """Whether the extension may be called with `x` as it is: nobody traces, and nobody overrides. The operators look at
    the rest themselves, and refuse (`REFUSED`) before they write anything."""
    return type(x) is Tensor and not is_dynamo_compiling() and not has_torch_function_unary(x)


REFUSED = (TypeError, NotImplementedError)  # a dtype, a layout or a device that is not served


def forward_of(role: Role) -> Callable[[Any, Tensor], Tensor]:
    """`activate` with everything precomputed that the role fixes: a small tensor's time goes into such calls."""
    fused, fused_ = _C.bias_act, _C.bias_act_
    gain = role.match.gain if role.match is not None else 1.0
    always = Settings.of(role.match.resolved if role.match is not None else role.row.resolve(), gain)
    fixed = None if role.names else always
    writes = role.match.inplace if role.match is not None else None

    def forward(self: Any, input: Tensor) -> Tensor:
        if type(input) is Tensor and not is_dynamo_compiling() and not has_torch_function_unary(input):
            settings = fixed or settings_of(role, self)
            if settings is not None:
                kernel, scalars, gain, _ = settings
                try:
                    run = fused_ if (getattr(self, "inplace", False) if writes is None else writes) else fused
                    return run(input, None, None, kernel, scalars, -1, gain, None, None, "auto")
                except REFUSED:
                    pass
        return activate(self, input)

    return forward


def after(act: Any, layer: Any, *inputs: Any, **named: Any) -> Any:
    """act(layer(...)), with the layer's bias added by the activation's operator."""
    role: Role | None = getattr(type(act), ROLE, None)
    entry = _LAYERS.get(getattr(type(layer), "forward", None))
    if role is None or entry is None or not inputs:
        return act(layer(*inputs, **named))
    x = inputs[0]
    if direct(x):
        if x.numel() < entry.least:
            return act(layer(*inputs, **named))
        settings = settings_of(role, act)
        if settings is not None and not named and len(inputs) == 1 and plain(act):
            result = together(layer, entry, x, settings)
            if result is not None:
                return result
    if not servable(x) or not _has_servable_weight(layer) or not plain(layer) or not plain(act):
        return act(layer(*inputs, **named))
    resolved = resolve(role, act, x)
    weight = resolved[2]
    if entry.activated is not None:
        if not _normalises(entry, x, role.match):
            return act(layer(*inputs, **named))
        return entry.activated(layer, x, resolved)
    if weight is not None and weight.numel() > 1 and x.dim() + entry.dim != 1:
        return act(layer(*inputs, **named))  # the slopes lie along dim 1, the bias along another
    gain = role.match.gain if role.match is not None else 1.0
    if entry.product is linear and is_dynamo_compiling():
        whole = gemm.lowered(x, layer.weight, layer.bias, resolved, gain)
        if whole is not None:
            return whole
    product = entry.without_bias(layer, *inputs, **named)
    return functional.run(product, layer.bias, resolved, entry.dim, gain, None, "auto", overwritable(resolved), None)


def together(layer: Any, entry: Layer, x: Tensor, settings: Settings) -> Tensor | None:
    """A layer that is nothing but its class, with its activation, of a tensor that is `direct`; None: not this way."""
    if entry.product is None or not plain(layer):
        return None
    own = layer.__dict__["_parameters"]
    weight, bias = own.get("weight"), own.get("bias")
    if type(weight) not in _PLAIN or (bias is not None and type(bias) not in _PLAIN):
        return None
    kernel, scalars, gain, overwrites = settings
    try:
        if entry.product is linear:
            return activated_linear(x, weight, bias, settings)
        if not x.is_cpu or x.dtype not in DTYPES:
            return None
        ours = overwrites or not torch.is_grad_enabled()
        fused = _C.bias_act_ if ours and not _functorch() else _C.bias_act
        product = entry.product(layer, x, weight)
        result: Tensor = fused(product, bias, None, kernel, scalars, entry.dim, gain, None, None, "auto")
        return result
    except (*REFUSED, ValueError):  # also shapes that do not fit: the author's code says it in its own words
        return None


_functorch: Callable[[], bool] = torch._C._are_functorch_transforms_active


# Up to so many elements of the result torch's BLAS computes the product whole, in C++, and one pass finishes it: 0.77
# to 1.05 of the time of two calls in inference, 0.55 to 1.01 in training (4 x 16 -> 16 to 256 x 192 -> 768, float32,
# ReLU and GELU, one thread of a busy machine). Beyond, `linear_act` goes by tiles, which win in 16 bits.
WHOLE = 1 << 20


def activated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """act(linear(x, weight, bias)) of plain tensors."""
    kernel, scalars, gain, overwrites = settings
    rows, columns = weight.shape
    if x.numel() * rows <= WHOLE * columns or x.dtype.itemsize == 2:
        result: Tensor = _C.linear_act(x, weight, bias, None, kernel, scalars, gain, None, None, "auto")
        return result
    ours = overwrites or not torch.is_grad_enabled()
    fused = _C.bias_act_ if ours and not _functorch() else _C.bias_act
    return fused(nn.functional.linear(x, weight), bias, None, kernel, scalars, -1, gain, None, None, "auto")


def _has_servable_weight(layer: Any) -> bool:
    own = layer.__dict__["_parameters"]  # torch.nn.Module's __getattr__ takes a microsecond
    weight = own.get("weight")
    if weight is None:
        weight = layer.weight
    return weight is None or servable(weight)


def _normalises(entry: Layer, x: Any, match: Match | None) -> bool:
    """Whether a norm takes its activation along: not where that is slower, nor where a compiler fuses both itself."""
    return (
        type(x) is Tensor
        and (match is None or match.gain == 1.0)
        and not torch.compiler.is_compiling()
        and x.numel() >= entry.least
    )


class Later:
    """A call that waits until it is known what follows."""

    def __init__(self, function: Any, *inputs: Any, **named: Any) -> None:
        self.function, self.inputs, self.named = function, inputs, named

    def now(self) -> Any:
        """What the author wrote."""
        inputs = [i.now() if isinstance(i, Later) else i for i in self.inputs]
        return self.function(*inputs, **self.named)


class Residual:
    """left + right, where one of them is a dropout that waits, perhaps of a layer that waits, too."""

    later = Later

    def __call__(self, left: Any, right: Any) -> Any:
        waiting, x = (left, right) if isinstance(left, Later) else (right, left)
        p = _probability(waiting)
        if p is None or not servable(x) or isinstance(x, torch.fx.Proxy):
            return left.now() + right if waiting is left else left + right.now()
        value, bias, dim = waiting.inputs[0], None, -1
        if isinstance(value, Later):
            layer = value.function
            entry = _LAYERS.get(type(layer).forward)
            ours = entry is not None and entry.activated is None and layer.bias is not None and value.inputs
            if ours and entry is not None and servable(value.inputs[0]) and servable(layer.weight) and plain(layer):
                value, bias, dim = entry.without_bias(layer, *value.inputs, **value.named), layer.bias, entry.dim
            else:
                value = value.now()
        if not servable(value) or value.dtype != x.dtype or value.shape != x.shape:
            if bias is not None:  # as the layer would have
                value = functional.run(value, bias, _IDENTITY, dim, 1.0, None, "auto", False, None)
            dropped = waiting.function(value, *waiting.inputs[1:], **waiting.named)
            return dropped + x if waiting is left else x + dropped
        return functional.run_epilogue(
            value, bias, _IDENTITY, dim, 1.0, None, "auto", None, p, True, x, None
        )  # fmt: skip


residual = Residual()
_IDENTITY = registry.get("identity").resolve()


def _probability(waiting: Later) -> float | None:
    """Of a dropout that drops something now."""
    function = waiting.function
    if type(function) is nn.Dropout:
        on = function.training and plain(function) and not function.inplace
        return float(function.p) if on and 0 < function.p < 1 else None
    given = dict(zip(_DROPOUT, waiting.inputs[1:], strict=False)) | waiting.named
    p, training, inplace = (given.get(name, default) for name, default in _DROPOUT.items())
    usual = function is nn.functional.dropout and isinstance(p, (int, float)) and training is True and not inplace
    return float(p) if usual and 0 < p < 1 else None


_DROPOUT: dict[str, Any] = {"p": 0.5, "training": True, "inplace": False}  # torch.nn.functional.dropout's


def glu(input: Any, dim: int = -1) -> Any:
    """torch.nn.functional.glu, in one pass."""
    if servable(input) and isinstance(dim, int) and -input.dim() <= dim < input.dim() and input.size(dim) % 2 == 0:
        return fusedact.gated_act(input, None, "sigmoid", dim=dim, gate="second")
    return nn.functional.glu(input, dim)


def glu_forward(module: Any, input: Any) -> Any:
    """The forward of torch.nn.GLU once it is fused."""
    return glu(input, module.dim)


def chain(sequential: Any, input: Any) -> Any:
    """The forward of torch.nn.Sequential, with neighbours fused."""
    waiting = None  # a layer, until it is known what follows it
    for module in sequential._modules.values():
        if waiting is not None:
            if hasattr(type(module), ROLE):
                input, waiting = after(module, waiting, input), None
                continue
            input, waiting = waiting(input), None
        if type(module).forward in _LAYERS:
            waiting = module
        else:
            input = module(input)
    return input if waiting is None else waiting(input)


# Makers of what stands in a rewritten method. `live` holds what was read off the instance when it was fused, and is
# read again at each call: if it has changed, `formula` computes what the source says.

Check = Callable[[tuple[Any, ...]], bool]


@dataclass(frozen=True)
class Outside:
    """An activation module that the author calls but the model does not contain: its class stays what it is."""

    module: nn.Module
    role: Role
    found: tuple[Any, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Outside:
        """Such a module as it is now."""
        role = module_role(module)
        assert role is not None
        return cls(module, role, _as_found(module, role))

    def same(self, value: Any) -> bool:
        """Whether it is still that module, with the same settings and no hooks."""
        return value is self.module and plain(value) and _as_found(value, self.role) == self.found


def checker(expected: tuple[Any, ...]) -> Check:
    """Whether live values are those that were there at fusing; a module is the same if its role is."""
    wanted = tuple(found(e) if isinstance(e, nn.Module) else e for e in expected)

    def check(live: tuple[Any, ...]) -> bool:
        for value, want in zip(live, wanted, strict=True):
            if isinstance(want, Outside):
                if not want.same(value):
                    return False
            elif isinstance(value, nn.Module):
                if _as_found(value, getattr(type(value), ROLE, None)) != want or not plain(value):
                    return False
            elif value is not want and value != want:
                return False
        return True

    return check


def found(module: nn.Module) -> tuple[Any, ...]:
    """What an activation module computes now."""
    return _as_found(module, module_role(module))


def _as_found(module: nn.Module, role: Role | None) -> tuple[Any, ...]:
    """What the module computes, as far as it is an activation."""
    return (role, *(getattr(module, name) for name in role.names)) if role is not None else ()


def make_alone(match: Match, check: Check, formula: Callable[..., Any]) -> Callable[..., Any]:
    """An activation written out, of a tensor that others may read too."""
    kernel, scalars, gain, _ = Settings.of(match.resolved, match.gain)
    quick = _C.bias_act_ if match.inplace else _C.bias_act

    def fused(live: tuple[Any, ...], x: Any) -> Any:
        if direct(x) and check(live):
            try:
                return quick(x, None, None, kernel, scalars, -1, gain, None, None, "auto")
            except REFUSED:
                return formula(x, *live)
        if servable(x) and check(live):
            return functional.run(x, None, match.resolved, -1, match.gain, None, "auto", match.inplace, None)
        return formula(x, *live)

    return fused


def make_after(match: Match, check: Check, formula: Callable[..., Any]) -> Callable[..., Any]:
    """An activation written out, of a layer's result that nobody else reads."""
    settings = Settings.of(match.resolved, match.gain)

    def fused(live: tuple[Any, ...], layer: Any, *inputs: Any, **named: Any) -> Any:
        entry = _LAYERS.get(getattr(type(layer), "forward", None))
        if entry is not None and len(inputs) == 1 and not named and direct(inputs[0]) and check(live):
            result = together(layer, entry, inputs[0], settings)
            if result is not None:
                return result
        if (
            entry is None
            or not inputs
            or not servable(inputs[0])
            or not _has_servable_weight(layer)
            or (entry.activated is not None and not _normalises(entry, inputs[0], match))
            or not plain(layer)
            or not check(live)
        ):
            x = layer(*inputs, **named)
            if servable(x) and check(live):
                return functional.run(x, None, match.resolved, -1, match.gain, None, "auto", match.inplace, None)
            return formula(x, *live)
        if entry.activated is not None:
            return entry.activated(layer, inputs[0], match.resolved)
        product = entry.without_bias(layer, *inputs, **named)
        resolved = match.resolved
        ours = overwritable(resolved)
        return functional.run(product, layer.bias, resolved, entry.dim, match.gain, None, "auto", ours, None)

    return fused


def make_after_function(match: Match, check: Check, formula: Callable[..., Any], dim: int) -> Callable[..., Any]:
    """An activation written out, of torch's function of a layer: function(input, weight, bias, ...)."""
    settings = Settings.of(match.resolved, match.gain)

    def fused(live: tuple[Any, ...], function: Any, *inputs: Any, **named: Any) -> Any:
        bias = inputs[2] if len(inputs) > 2 else named.get("bias")
        if function is nn.functional.linear and direct(inputs[0]) and len(inputs) + len(named) <= 3:
            weight: Any = inputs[1] if len(inputs) > 1 else named.get("weight")
            usual = type(weight) in _PLAIN and (bias is None or type(bias) in _PLAIN)
            if usual and weight.dim() == 2 and check(live):
                try:
                    return activated_linear(inputs[0], weight, bias, settings)
                except (*REFUSED, ValueError):
                    return formula(function(*inputs, **named), *live)
        if bias is None or not servable(inputs[0]) or not servable(bias) or not check(live):
            return formula(function(*inputs, **named), *live)
        without = {**named, "bias": None} if "bias" in named else named
        product = function(*inputs[:2], *((None, *inputs[3:]) if len(inputs) > 2 else ()), **without)
        resolved = match.resolved
        return functional.run(product, bias, resolved, dim, match.gain, None, "auto", overwritable(resolved), None)

    return fused


def make_bias(match: Match, check: Check, formula: Callable[..., Any]) -> Callable[..., Any]:
    """An activation of x + parameter."""

    def fused(live: tuple[Any, ...], x: Any, bias: Any) -> Any:
        if servable(x) and servable(bias) and x.dtype == bias.dtype and check(live):
            wide = [d for d in range(-bias.dim(), 0) if bias.size(d) != 1]
            if len(wide) == 1 and x.dim() >= bias.dim() and x.size(wide[0]) == bias.size(wide[0]):
                vector = bias if bias.dim() == 1 else bias.reshape(-1)
                return functional.run(x, vector, match.resolved, wide[0], match.gain, None, "auto", False, None)
        return formula(x, bias, *live)

    return fused


def make_gate(gate: Gate, check: Check, formula: Callable[..., Any]) -> Callable[..., Any] | None:
    """activation(a) * b of two tensors, or of the halves of one; None if this build has no kernel for gates."""
    gated_act = getattr(fusedact, "gated_act", None)
    if gated_act is None:
        return None
    params = dict(gate.match.params)
    name = gate.match.row.name
    kernel, scalars, _ = gate.match.resolved
    more = (gate.limit, 1.0, gate.offset)
    operator = _C.gated_act

    def fused(live: tuple[Any, ...], first: Any, second: Any) -> Any:
        if direct(first) and type(second) is Tensor and first.shape == second.shape and check(live):
            a, b = (second, first) if gate.swapped else (first, second)
            halves = _halves(a, b)
            try:
                if halves is None:
                    return operator(a, b, None, None, kernel, scalars, -1, "first", "concat", *more)
                whole, dim, which, layout = halves
                return operator(whole, None, None, None, kernel, scalars, dim, which, layout, *more)
            except REFUSED:
                return formula(first, second, *live)
        if not (servable(first) and servable(second) and check(live)) or (
            first.shape != second.shape or first.dtype != second.dtype
        ):
            return formula(first, second, *live)
        a, b = (second, first) if gate.swapped else (first, second)
        settings = {"limit": gate.limit, "offset": gate.offset, **params}
        halves = None if torch.compiler.is_compiling() else _halves(a, b)
        if halves is None:
            return gated_act((a, b), None, name, **settings)
        whole, dim, which, layout = halves
        return gated_act(whole, None, name, dim=dim, gate=which, layout=layout, **settings)

    return fused


def _halves(a: Tensor, b: Tensor) -> tuple[Tensor, int, str, str] | None:
    """(whole, dim, which half `a` is, layout), if `a` and `b` are views of the two halves of one tensor.

    The whole carries the same gradient, and one pass writes it where two views would need a third to gather.
    """
    whole = a._base
    if type(a) is not Tensor or whole is None or whole is not b._base or whole.dim() != a.dim():
        return None
    different = [d for d in range(a.dim()) if whole.size(d) != a.size(d)]
    if len(different) != 1 or a.stride() != b.stride():
        return None
    dim = different[0]
    step, size = whole.stride(dim), a.size(dim)
    others = (d for d in range(a.dim()) if d != dim and a.size(d) > 1)
    starts = a.storage_offset() - whole.storage_offset(), b.storage_offset() - whole.storage_offset()
    if whole.size(dim) != 2 * size or min(starts) != 0 or any(a.stride(d) != whole.stride(d) for d in others):
        return None
    which = "first" if starts[0] == 0 else "second"
    if a.stride(dim) == step and max(starts) == size * step and size > 1:
        return whole, dim, which, "concat"
    if a.stride(dim) == 2 * step and max(starts) == step and size > 1:
        return whole, dim, which, "interleaved"
    return None
