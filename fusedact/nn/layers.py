"""Layers that end in an activation: subclasses of torch.nn's, whose product runs without its bias, so that one fused
operator adds bias and activation in one pass; and `BiasAct`, that operator as a module.

With `activation=None` a layer is exactly torch's. Parameters keep torch's names, so checkpoints move both ways; only
an activation that learns (PReLU's weight, a learnable Swish's beta) adds a key, under `activation.`.
Knows no activation by name.
"""

from __future__ import annotations

import difflib
import inspect
import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedact import gemm, registry
from fusedact.nn.activation import MODULES, Fused
from fusedact.registry import Limits

__all__ = [
    "BiasAct", "Bilinear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
    "Linear", "init_for_activation_",
]  # fmt: skip


_LAYERS_OWN = ("inplace", "device", "dtype")  # arguments of activation modules that a layer does not pass on


def _activation(activation: str | Fused | None, params: dict[str, Any], factory: dict[str, Any]) -> Any:
    """The module that stands for `activation` in a layer; `factory` holds device and dtype for what it learns."""
    if activation is None or isinstance(activation, Fused):
        if params:
            raise TypeError(f"unexpected arguments {', '.join(params)}: they belong to an activation given by name")
        return activation
    row = registry.get(activation)
    made = MODULES[row.name]
    takes = inspect.signature(made).parameters
    own = [p.name for p in takes.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in _LAYERS_OWN]
    unknown = [name for name in params if name not in own]
    if unknown:
        near = [match for name in unknown for match in difflib.get_close_matches(name, own, 1)]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise TypeError(f"{row.name} takes {', '.join(own) or 'no argument'}, but got {', '.join(unknown)}{hint}")
    required = {name: row.defaults()[name] for name in own if takes[name].default is inspect.Parameter.empty}
    factory = {name: value for name, value in factory.items() if name in takes}
    module: Any = made(**{**required, **params, **factory})
    row.resolve(**module.arguments())  # torch.nn's constructors check nothing
    return module


class Activated(nn.Module):
    """What the layers share: torch.nn's constructor, then `activation` and its parameters as keywords.

    Args:
        activation: a name from `fusedact.activations()`, a module of `fusedact.nn`, or None for torch's own layer.

    The remaining keywords are those of the activation's module (`negative_slope=`, `approximate=`, `num_parameters=`).

    Raises:
        TypeError, ValueError: an unknown activation or parameter, one out of range; the message says what is known.
    """

    activation: Any
    bias: Any
    channel_dim: ClassVar[int]  # of the output, counted from the end, so that unbatched inputs work too

    def __init__(self, *args: Any, activation: str | Fused | None = None, **kwargs: Any) -> None:
        own = {name: value for name, value in kwargs.items() if name in _arguments(type(self))}
        params = {name: value for name, value in kwargs.items() if name not in own}
        super().__init__(*args, **own)
        factory = {name: own.get(name) for name in ("device", "dtype")}
        self.activation = _activation(activation, params, factory)

    def _activate(self, product: Tensor) -> Tensor:
        result: Tensor = self.activation.bias_act(product, self.bias, dim=self.channel_dim, ours=True)
        return result

    def init_for_activation_(self) -> None:
        """Initialise for the activation, see `init_for_activation_`."""
        init_for_activation_(self)


def _arguments(layer: type[nn.Module]) -> set[str]:
    """The names of the arguments of the torch.nn class beneath `layer`."""
    base = next(c for c in layer.__mro__ if c.__module__.startswith("torch.nn"))
    return set(inspect.signature(base).parameters)


class Linear(Activated, nn.Linear):
    """activation(input @ weight.T + bias): torch.nn.Linear, fused with an activation.

    Shapes: input [*, in_features], output [*, out_features].
    """

    channel_dim = -1

    def forward(self, input: Tensor) -> Tensor:
        if self.activation is None:
            return nn.Linear.forward(self, input)
        act = self.activation
        resolved = gemm.resolve(act.row, input, self.weight, act.arguments())
        if act.tap is not None:
            watched: Tensor = act.tap.linear(input, self, resolved)
            return watched
        return gemm.run(input, self.weight, self.bias, resolved)

    def without_bias(self, input: Tensor) -> Tensor:
        """The product alone."""
        return F.linear(input, self.weight)


class Bilinear(Activated, nn.Bilinear):
    """activation(input1 A input2 + bias): torch.nn.Bilinear, fused with an activation.

    Shapes: inputs [*, in1_features] and [*, in2_features], output [*, out_features].
    """

    channel_dim = -1

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        if self.activation is None:
            return nn.Bilinear.forward(self, input1, input2)
        return self._activate(self.without_bias(input1, input2))

    def without_bias(self, input1: Tensor, input2: Tensor) -> Tensor:
        """The product alone."""
        return F.bilinear(input1, input2, self.weight)


class _Convolution(Activated):
    weight: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if self.activation is None:
            return cast(Tensor, super().forward(input))
        return self._activate(self.without_bias(input))

    def without_bias(self, input: Tensor) -> Tensor:
        """The product alone."""
        return cast(Tensor, cast(Any, self)._conv_forward(input, self.weight, None))


class Conv1d(_Convolution, nn.Conv1d):
    """torch.nn.Conv1d, fused with an activation. Shapes: input [N, C, L] or [C, L]."""

    channel_dim = -2


class Conv2d(_Convolution, nn.Conv2d):
    """torch.nn.Conv2d, fused with an activation. Shapes: input [N, C, H, W] or [C, H, W]; channels_last is kept."""

    channel_dim = -3


class Conv3d(_Convolution, nn.Conv3d):
    """torch.nn.Conv3d, fused with an activation. Shapes: input [N, C, D, H, W] or [C, D, H, W]."""

    channel_dim = -4


class _Transposed(Activated):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.activation is None:
            return cast(Tensor, super().forward(input, output_size))
        return self._activate(self.without_bias(input, output_size))

    def without_bias(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The product alone."""
        layer: Any = self
        if layer.padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros' for {type(self).__name__}, but got {layer.padding_mode!r}")
        dims = len(layer.kernel_size)
        output_padding = layer._output_padding(
            input, output_size, layer.stride, layer.padding, layer.kernel_size, dims, layer.dilation
        )
        product = _TRANSPOSED[dims - 1]
        result: Tensor = product(
            input, layer.weight, None, layer.stride, layer.padding, output_padding, layer.groups, layer.dilation
        )
        return result


_TRANSPOSED: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)  # without the classes' checks


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d, fused with an activation. Shapes: input [N, C, L] or [C, L]."""

    channel_dim = -2


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d, fused with an activation. Shapes: input [N, C, H, W] or [C, H, W]."""

    channel_dim = -3


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d, fused with an activation. Shapes: input [N, C, D, H, W] or [C, D, H, W]."""

    channel_dim = -4


class BiasAct(nn.Module):
    """clamp(gain * activation(input + bias)), with a bias that learns, zero at first.

    With dropout_p, and called with a residual: residual + dropout(clamp(gain * activation(input + bias))), as the end
    of a transformer's block (`BiasAct(768, "identity", dim=-1, dropout_p=0.1)(x, residual)`).

    Args:
        num_features: input.size(dim), the number of elements of the bias.
        activation: a name from `fusedact.activations()`, or a module of `fusedact.nn`.
        dim: the dimension of the input along which the bias runs.
        gain, clamp, save, dropout_p: as for `fusedact.bias_act`; dropout in training only.

    The remaining keywords are those of the activation's module (`negative_slope=`, `approximate=`, `learnable=`, ...);
    what it learns stands under `activation.` in the state_dict.
    """

    def __init__(
        self,
        num_features: int,
        activation: str | Fused = "relu",
        dim: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        gain: float = 1.0,
        clamp: Limits = None,
        save: str = "auto",
        dropout_p: float = 0.0,
        **params: Any,
    ) -> None:
        super().__init__()
        self.num_features, self.dim, self.gain, self.clamp, self.save = num_features, dim, gain, clamp, save
        self.dropout_p = dropout_p
        registry.bounds(clamp)
        if not 0 <= dropout_p <= 1:
            raise ValueError(f"dropout_p must be in [0, 1], but got {dropout_p}")
        self.activation = _activation(activation, params, {"device": device, "dtype": dtype})
        self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the bias to zero."""
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Any shape with num_features elements in `dim`; residual and result have the same."""
        result: Tensor = self.activation.bias_act(
            input,
            self.bias,
            dim=self.dim,
            gain=self.gain,
            clamp=self.clamp,
            save=self.save,
            dropout_p=self.dropout_p if self.training else 0.0,
            residual=residual,
        )
        return result

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults."""
        shown = [f"{self.num_features}", f"dim={self.dim}"]
        shown += [f"gain={self.gain}"] * (self.gain != 1) + [f"clamp={self.clamp}"] * (self.clamp is not None)
        shown += [f"dropout_p={self.dropout_p}"] * (self.dropout_p != 0)
        return ", ".join(shown + [f"save={self.save!r}"] * (self.save != "auto"))


@torch.no_grad()
def init_for_activation_(layer: Activated) -> None:
    """Initialise a layer for its activation: weight ~ N(0, gain^2 / fan_in), bias 0. Offered, never done unasked.

    `gain` is torch.nn.init.calculate_gain of the nonlinearity that the activation's row names; fan_in counts what one
    output sums over (for transposed convolutions too, where torch.nn.init takes the other fan).

    Raises:
        TypeError: `layer` is not one of this file's layers.
    """
    if not isinstance(layer, Activated):
        raise TypeError(f"init_for_activation_ takes a layer of fusedact.nn, but got {type(layer).__name__}")
    weight: Any = layer.weight
    if isinstance(layer, _Transposed):
        fan_in = weight[0, 0].numel() * weight.size(0) // int(layer.groups)  # type: ignore[arg-type]
    else:
        fan_in = weight[0].numel()
    nn.init.normal_(weight, std=gain(layer.activation) / math.sqrt(max(fan_in, 1)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def gain(activation: Fused | None) -> float:
    """calculate_gain for an activation module, or None; the slope of leaky ones is read off it."""
    if activation is None:
        return 1.0
    _, scalars, weight = activation.row.resolve(**activation.arguments())
    slope = (float(weight.detach().mean()) if weight is not None else scalars[0]) if scalars else None
    init = activation.row.init
    return nn.init.calculate_gain(cast(Any, init), slope if init == "leaky_relu" else None)
