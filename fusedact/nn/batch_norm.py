"""Batch normalisation fused with the activation after it: subclasses of torch.nn's, with its arguments and state_dict.

With running statistics (eval mode) the layer is one pass: a scale and a bias per channel, then the activation. With
those of the batch it is one pass for the statistics and one for the rest, and two backward.
Knows no activation by name.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import has_torch_function_variadic

from fusedact import _C, functional, registry
from fusedact.nn.activation import Fused
from fusedact.nn.layers import _activation, _arguments

__all__ = ["BatchNormAct1d", "BatchNormAct2d", "BatchNormAct3d"]


class _BatchNormAct(_BatchNorm):
    """What the three share.

    Args:
        activation: a name from `fusedact.activations()`, or a module of `fusedact.nn`.

    The other arguments are torch's, and the remaining keywords those of the activation's module. Parameters and buffers
    keep torch's names and meaning (`momentum=None`, `track_running_stats=False`, `affine=False`), so checkpoints move
    both ways; what an activation learns stands under `activation.`. (`SyncBatchNorm.convert_sync_batchnorm` takes this
    for a plain BatchNorm, and would drop the activation.)
    """

    activation: Any

    def __init__(self, *args: Any, activation: str | Fused = "relu", **kwargs: Any) -> None:
        own = {name: value for name, value in kwargs.items() if name in _arguments(type(self))}
        params = {name: value for name, value in kwargs.items() if name not in own}
        super().__init__(*args, **own)
        factory = {name: own.get(name) for name in ("device", "dtype")}
        self.activation = _activation(activation, params, factory)

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: as torch.nn's class; the channels are dim 1. channels_last is kept.

        Raises:
            ValueError: the wrong number of dims or channels, or one value per channel in training.
        """
        return activated(self, input, self.activation.row.resolve(input, **self.activation.arguments()))


def activated(layer: Any, input: Tensor, resolved: registry.Resolved) -> Tensor:
    """activation(layer(input)) for any BatchNorm of torch.nn, with the activation's parameters already checked."""
    layer._check_input_dim(input)
    if not layer.training and layer.running_mean is not None and layer.running_var is not None:
        return _with(layer, input, resolved, layer.running_mean, layer.running_var)
    factor = layer.momentum or 0.0
    if layer.training and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:  # the average over all batches
            factor = 1.0 / float(layer.num_batches_tracked)
    count = input.numel() // max(input.size(1), 1)
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
    kernel, scalars, weight = resolved
    arguments = (input, layer.weight, layer.bias, weight, layer.eps, kernel, scalars)
    if is_dynamo_compiling() or has_torch_function_variadic(input, layer.weight, layer.bias, weight):
        output, mean, var = torch.ops.fusedact.batch_norm_act(*arguments)
    else:
        output, mean, var = _C.batch_norm_act(*arguments)
    if layer.training and layer.running_mean is not None and layer.running_var is not None and count > 0:
        with torch.no_grad():
            layer.running_mean.mul_(1 - factor).add_(mean, alpha=factor)
            layer.running_var.mul_(1 - factor).add_(var, alpha=factor * count / (count - 1))
    return cast(Tensor, output)


def _with(layer: Any, input: Tensor, resolved: registry.Resolved, mean: Tensor, var: Tensor) -> Tensor:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    scale = torch.rsqrt(var.to(dtype) + layer.eps)
    if layer.weight is not None:
        scale = scale * layer.weight.to(dtype)
    shift = -mean.to(dtype) * scale
    if layer.bias is not None:
        shift = shift + layer.bias.to(dtype)
    return functional.run_epilogue(input, shift, resolved, 1, 1.0, None, "auto", scale, 0.0, False, None, None)


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """activation(torch.nn.BatchNorm1d(...)(input)), fused. Shapes: [N, C] or [N, C, L]."""


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """activation(torch.nn.BatchNorm2d(...)(input)), fused. Shapes: [N, C, H, W]."""


class BatchNormAct3d(_BatchNormAct, nn.BatchNorm3d):
    """activation(torch.nn.BatchNorm3d(...)(input)), fused. Shapes: [N, C, D, H, W]."""
