"""What a module or a function of anyone's does: which activation it is, or which layer its bias can be taken from.

torch's own are looked up in the registry; others are probed (recognise.py) on a copy, if they keep nothing and change
nothing. Knows no third party.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fusedact.nn
from fusedact import registry
from fusedact.fusing.recognise import Match, identify
from fusedact.fusing.source import tensor_functions
from fusedact.nn import batch_norm
from fusedact.registry import Activation


class Settings(NamedTuple):
    """What the operator takes for an activation whose parameters are numbers."""

    kernel: str
    scalars: tuple[float, ...]
    gain: float
    overwrites: bool  # whether backward reads the output alone, so that the input may be overwritten

    @classmethod
    def of(cls, resolved: registry.Resolved, gain: float) -> Settings:
        """Of checked parameters, none of which is a tensor."""
        kernel, scalars, _ = resolved
        return cls(kernel, scalars, gain, registry.saves_output(kernel, scalars))


@dataclass(frozen=True)
class Role:
    """The activation that a module is: fixed, or with its parameters read off the module at each call."""

    row: Activation
    names: tuple[str, ...] = ()  # attributes of the module that are the row's parameters
    match: Match | None = None  # for modules that are not torch's: what they were found to compute

    @functools.cached_property
    def known(self) -> dict[Any, Settings]:
        """By the values of `names`: checking them takes 2 us."""
        return {}

    def __str__(self) -> str:
        return str(self.match) if self.match is not None else self.row.name


@functools.cache
def torch_activations() -> dict[type[nn.Module], Role]:
    """torch.nn's activation classes, exactly."""
    made = {}
    for row in registry.ROWS:
        base = row.torch_module
        if base is not None and base is not nn.Identity and row.noise is None:
            made[base] = Role(row, tuple(p.name for p in row.parameters))
    return made


@dataclass(frozen=True)
class Layer:
    """A layer of torch.nn whose product can run without its bias."""

    without_bias: Callable[..., Tensor]  # (layer, *inputs)
    dim: int  # of the channels, counted from the end
    activated: Callable[..., Tensor] | None = None  # (layer, input, resolved): the layer with its activation
    least: int = 0  # elements of the input from which `activated` is the faster one
    product: Callable[..., Tensor] | None = None  # (layer, input, weight): without_bias of plain tensors


def linear(layer: Any, input: Tensor, weight: Tensor) -> Tensor:
    """The product of a torch.nn.Linear."""
    return nn.functional.linear(input, weight)


def convolution(layer: Any, input: Tensor, weight: Tensor) -> Tensor:
    """The product of a convolution of torch.nn."""
    result: Tensor = layer._conv_forward(input, weight, None)
    return result


PRODUCTS: dict[Any, Callable[..., Tensor]] = {
    nn.Linear: linear, nn.Conv1d: convolution, nn.Conv2d: convolution, nn.Conv3d: convolution,
}  # fmt: skip


@functools.cache
def torch_layers() -> dict[Any, Layer]:
    """torch.nn's layers that fusedact.nn has with an activation, by their forward, which a subclass may keep."""
    made: dict[Any, Layer] = {}
    for name in fusedact.nn.layers.__all__:
        ours = getattr(fusedact.nn, name)
        base = getattr(nn, name, None)
        if base is not None and hasattr(ours, "without_bias"):
            made[base.forward] = Layer(ours.without_bias, ours.channel_dim, product=PRODUCTS.get(base))
    # All dimensions share it. BatchNorm2d and ReLU of 200,000 elements: 1.7 to 2.1 times the time of torch's two (the
    # scale and the running statistics are operators of their own); of 800,000: 0.7 to 0.9; of 3,200,000: 0.6 to 0.7.
    made[nn.BatchNorm2d.forward] = Layer(batch_norm.activated, 1, batch_norm.activated, 1 << 19)
    return made


@functools.cache
def product_functions() -> dict[int, tuple[Any, int]]:
    """torch's functions (input, weight, bias, ...) of those layers, by id, with the channels' dim."""
    functional = torch.nn.functional
    table = {
        "linear": -1, "conv1d": -2, "conv2d": -3, "conv3d": -4,
        "conv_transpose1d": -2, "conv_transpose2d": -3, "conv_transpose3d": -4,
    }  # fmt: skip
    found = {}
    for name, dim in table.items():
        for space in (functional, torch, torch._C._nn):
            function = getattr(space, name, None)
            if function is not None:
                found[id(function)] = (function, dim)
    return found


def why_not_a_layer(module: nn.Module) -> str | None:
    """Why a layer that looks like torch's must be left alone, or None."""
    if any(isinstance(p, nn.UninitializedParameter) for p in module._parameters.values()):
        return "the layer is lazily initialised: run it once, then fuse"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "the layer is parametrised"
    if "forward" in module.__dict__:
        return "the layer's forward was replaced on the instance"
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks):
        return "the layer has hooks, which read what stands before the activation"
    if not is_layer(module) and isinstance(getattr(module, "bias", None), Tensor):
        return f"the layer is a {type(module).__name__}, whose bias cannot be taken out"
    if is_layer(module) and module._modules:
        return "the layer has modules of its own"
    if any(type(p) is not nn.Parameter for p in module._parameters.values() if p is not None):
        return "the layer's parameters are not plain ones"
    return None


def is_layer(module: nn.Module) -> bool:
    """Whether the module computes what one of torch's layers does, with its code."""
    return type(module).forward in torch_layers()


def takes_residual(module: nn.Module) -> bool:
    """Whether the module's bias can be added with a dropout and a residual."""
    if not is_layer(module) or why_not_a_layer(module) is not None:
        return False
    return torch_layers()[type(module).forward].activated is None and module.bias is not None


def module_role(module: Any) -> Role | None:
    """The activation that `module` is, or None."""
    if not isinstance(module, nn.Module):
        return None
    kind = type(module)
    role: Role | None = getattr(kind, "fusedact_role", None) or torch_activations().get(kind)
    if role is not None:
        return role
    if kind.__module__.startswith(("torch.", "fusedact.")) or "forward" in module.__dict__:
        return None
    if module._modules or module._parameters or module._buffers or not _takes_one(kind.forward, bound=True):
        return None
    key = _state(module)
    if key is not None and key in _PROBED:
        return _PROBED[key]
    role = _probed(module)
    if key is not None:
        _PROBED[key] = role
    return role


_PROBED: dict[Any, Role | None] = {}
_OWN = frozenset(nn.Module().__dict__)


def _state(module: nn.Module) -> Any:
    """The module's class and attributes as a key, or None if they have none."""
    held = {k: v for k, v in module.__dict__.items() if k not in _OWN}
    if not all(isinstance(v, (int, float, str, bool, type(None), types.FunctionType, types.BuiltinFunctionType))
               for v in held.values()):  # fmt: skip
        return None
    return type(module), tuple(sorted(held.items(), key=lambda item: item[0]))


def _probed(module: nn.Module) -> Role | None:
    forward = type(module).forward
    if not _keeps_nothing(forward):
        return None
    found: list[Match | None] = []
    for training in (True, False):
        probe = copy.copy(module)
        probe.__dict__ = dict(module.__dict__)
        probe.__dict__["training"] = training
        before = dict(probe.__dict__)
        try:
            found.append(identify(functools.partial(forward, probe)))
        except Exception:
            return None
        if probe.__dict__ != before:
            return None
    if found[0] is None or found[0] != found[1]:
        return None
    return Role(found[0].row, (), found[0])


def _takes_one(function: Any, bound: bool) -> bool:
    """Whether one positional argument is enough, and no more than one is needed."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[int(bound) :]
    except (TypeError, ValueError):
        return False
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    ):  # fmt: skip
        return False
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return all(p.default is not p.empty or p.kind in kinds for p in parameters[1:])


@functools.lru_cache(maxsize=4096)
def _keeps_nothing(function: Any) -> bool:
    """Whether the source, where there is one, stores nothing outside of its own names."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, IndexError, ValueError):
        return isinstance(function, torch.jit.ScriptFunction)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            return False
        if isinstance(node, (ast.Global, ast.Nonlocal, ast.Yield, ast.Await, ast.Import, ast.ImportFrom, ast.With)):
            return False
    return True


_FUNCTIONS: dict[Any, Match | None] = {}


def function_role(function: Any) -> Match | None:
    """The activation that a function of one tensor is, or None."""
    if isinstance(function, functools.partial):
        key: Any = (function.func, function.args, tuple(function.keywords.items()))
        inner = function.func
        if function.args or not (id(inner) in tensor_functions() or isinstance(inner, types.FunctionType)):
            return None
    else:
        key = inner = function
        if not isinstance(function, (types.FunctionType, types.BuiltinFunctionType, torch.jit.ScriptFunction)):
            return None
    try:
        if key in _FUNCTIONS:
            return _FUNCTIONS[key]
    except TypeError:
        return None
    result = None
    if id(inner) in tensor_functions() or (
        getattr(inner, "__module__", None) != "torch" and _takes_one(inner, bound=False) and _keeps_nothing(inner)
    ):
        result = identify(function)
    _FUNCTIONS[key] = result
    return result


def elementwise(target: Any) -> bool:
    """Whether a call of `target` may be part of an elementwise formula: the rest is found by computing it."""
    if id(target) in product_functions():
        return False
    if isinstance(target, nn.Module):
        return module_role(target) is not None
    return id(target) in tensor_functions() or function_role(target) is not None


def is_general(row: Activation) -> bool:
    """Arithmetic that torch has as a function but not as an activation: worth fusing behind a bias only."""
    return row.torch_module is None and row.replaces is not None
