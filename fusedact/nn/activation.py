"""One module class per row of the registry, made here: subclasses of torch.nn's class where torch has one.

A class holds its row; its constructor arguments and their checks are torch's, or follow from the row's parameters.
Knows no activation by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from fusedact import functional, registry
from fusedact.registry import Activation, Limits


class Fused:
    """What the module classes share: the row, and the call with the module's attributes as parameters."""

    row: ClassVar[Activation]
    names: ClassVar[tuple[str, ...]]  # of the row's parameters, which are the module's attributes
    function: ClassVar[Callable[..., Tensor]]
    inplace: bool = False  # for the classes of torch.nn that have no such argument
    tap: Any = None  # a monitor's health.tap.Tap, while it listens

    def arguments(self) -> dict[str, Any]:
        """The activation's parameters as they stand now: numbers, the learned tensor, `training`."""
        return {name: getattr(self, name) for name in self.names}

    def bias_act(
        self,
        input: Tensor,
        bias: Tensor | None = None,
        *,
        dim: int = 1,
        gain: float = 1.0,
        clamp: Limits = None,
        save: str = "auto",
        inplace: bool = False,
        ours: bool = False,
        scale: Tensor | None = None,
        dropout_p: float = 0.0,
        training: bool = True,
        residual: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`fusedact.bias_act` with this module's activation and parameters: what layers call.

        `ours` says that nobody else reads `input`, so that it may be overwritten where backward does not need it.
        """
        resolved = self.row.resolve(input, **self.arguments())
        if scale is not None or residual is not None or dropout_p != 0:
            run = functional.run_epilogue if self.tap is None else self.tap.epilogue
            return run(input, bias, resolved, dim, gain, clamp, save, scale, dropout_p, training, residual, generator)
        ours = ours and overwritable(resolved)
        if self.tap is not None:
            watched: Tensor = self.tap.bias_act(input, bias, resolved, dim, gain, clamp, save, inplace, ours)
            return watched
        return functional.run(input, bias, resolved, dim, gain, clamp, save, inplace or ours, None)

    def forward(self, input: Tensor) -> Tensor:
        """The activation of `input`, of its shape and dtype."""
        if not self.names and self.tap is None:
            return type(self).function(input, inplace=self.inplace)
        # a parameter with several elements has them along dim 1, as torch.nn.PReLU's
        return self.bias_act(input, dim=1 if input.dim() > 1 else -1, inplace=self.inplace)


def overwritable(resolved: registry.Resolved) -> bool:
    """Whether a tensor that nobody else reads is best overwritten: half the traffic, and no fresh memory."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False  # the bias may have a batch dimension that the tensor lacks
    kernel, scalars, weight = resolved
    return not torch.is_grad_enabled() or (weight is None and registry.saves_output(kernel, scalars))


class Own(Fused, nn.Module):
    """Base of the classes that torch.nn lacks: arguments are the row's parameters, then `inplace`."""

    def __init__(self, *values: Any, **params: Any) -> None:
        super().__init__()
        given = inspect.signature(type(self)).bind(*values, **params).arguments
        self.inplace = given.pop("inplace", False)
        self.row.resolve(**given)
        for p in self.row.parameters:
            setattr(self, p.name, given.get(p.name, p.default))

    def extra_repr(self) -> str:
        """The parameters, as the constructor takes them."""
        shown = [f"{p.name}={getattr(self, p.name)}" for p in self.row.parameters]
        return ", ".join(shown + ["inplace=True"] * self.inplace)


class Learnable(Fused, nn.Module):
    """Base of the classes that torch.nn lacks and whose parameter may learn (Swish's beta).

    Args:
        value: of the parameter; the first one, under the parameter's own name.
        learnable: make it an nn.Parameter of `num_parameters` elements, which lie along dim 1 of the input.
    """

    def __init__(
        self,
        value: float | None = None,
        learnable: bool = False,
        num_parameters: int = 1,
        inplace: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **params: Any,
    ) -> None:
        super().__init__()
        parameter = cast(registry.Parameter, self.row.tensor_parameter)
        if value is not None:
            params[parameter.name] = value
        self.row.resolve(**params)
        self.init = float(params.get(parameter.name, parameter.default))
        self.learnable, self.num_parameters, self.inplace = learnable, num_parameters, inplace
        if not learnable and num_parameters != 1:
            raise ValueError(f"num_parameters is {num_parameters}, but only a learnable {parameter.name} has several")
        if learnable:
            setattr(self, parameter.name, nn.Parameter(torch.empty(num_parameters, device=device, dtype=dtype)))
            self.reset_parameters()
        else:
            setattr(self, parameter.name, self.init)

    def reset_parameters(self) -> None:
        """Set the learned parameter back to its initial value."""
        if self.learnable:
            nn.init.constant_(getattr(self, cast(registry.Parameter, self.row.tensor_parameter).name), self.init)

    def extra_repr(self) -> str:
        """The parameters, as the constructor takes them."""
        shown = [f"{cast(registry.Parameter, self.row.tensor_parameter).name}={self.init}"]
        if self.learnable:
            shown.append(f"learnable=True, num_parameters={self.num_parameters}")
        return ", ".join(shown + ["inplace=True"] * self.inplace)


def _module(row: Activation) -> type[nn.Module]:
    """The class of one row."""
    base = row.torch_module
    bases = (Fused, base) if base is not None else ((Learnable,) if row.tensor_parameter else (Own,))
    replaced = f" A subclass of torch.nn.{row.module}, with its arguments." if base is not None else ""
    body = {
        "row": row,
        "function": staticmethod(functional.FUNCTIONS[row.name]),
        "names": tuple(p.name for p in row.parameters),
        "__module__": __name__,
        "__doc__": f"f(x) = {row.formula}, fused.{replaced}\n\n    Source: {row.source}\n    ",
    }
    if base is nn.Identity:  # without a bias there is nothing to do, not even a copy
        body["forward"] = nn.Identity.forward
    made = type(row.module, bases, body)
    made.__signature__ = signature(row, made)  # type: ignore[attr-defined]
    return made


def signature(row: Activation, made: type[nn.Module]) -> inspect.Signature:
    """The true signature of a module's constructor: torch.nn's, or the row's parameters and what the base adds."""
    if row.torch_module is not None:
        return inspect.Signature(list(inspect.signature(row.torch_module.__init__).parameters.values())[1:])
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [inspect.Parameter(p.name, kind, default=p.default, annotation="float") for p in row.parameters]
    if issubclass(made, Learnable):
        own += [
            p for p in inspect.signature(Learnable.__init__).parameters.values()
            if p.name not in ("self", "value") and p.kind is not p.VAR_KEYWORD
        ]  # fmt: skip
    else:
        own.append(inspect.Parameter("inplace", kind, default=False, annotation="bool"))
    return inspect.Signature(own)


MODULES: dict[str, type[nn.Module]] = {row.name: _module(row) for row in registry.ROWS}
globals().update({made.__name__: made for made in MODULES.values()})

__all__ = [made.__name__ for made in MODULES.values()]
