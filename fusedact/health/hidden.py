"""Activations that an operator hides between other things: behind a batch normalisation, in a gated unit.

Neither the pre-activation nor, in a gate, the activation's output is ever in memory: on a watched step both are
computed again, by torch's operators and one pass that counts. Knows the modules' arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedact import functional, registry
from fusedact.gated import split
from fusedact.health.tap import Tap, through
from fusedact.nn.batch_norm import _BatchNormAct
from fusedact.nn.gated import GLU, GatedAct
from fusedact.registry import Activation

Hook = Callable[[Tap, Any, tuple[Any, ...], dict[str, Any], Tensor], None]


def row_of(module: nn.Module) -> Activation | None:
    """The row of the activation that the module hides, if it does."""
    if isinstance(module, _BatchNormAct):
        row: Activation = module.activation.row
        return row
    if isinstance(module, GatedAct):
        return registry.get(module.activation)
    return registry.get("sigmoid") if isinstance(module, GLU) else None


def hook_of(module: nn.Module, tap: Tap) -> Callable[..., None]:
    """A forward hook, with keyword arguments, that counts."""
    look: Hook = batch_norm if isinstance(module, _BatchNormAct) else gate
    return _Hook(tap, look)


class _Hook:
    """A copy of the model gets hooks that do nothing, for their taps do not listen."""

    def __init__(self, tap: Tap, look: Hook) -> None:
        self.tap, self.look = tap, look

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.look(self.tap, module, args, kwargs, output)


def batch_norm(tap: Tap, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    """The normalised values are the pre-activations, the gradient comes from the output's."""
    x: Tensor = args[0] if args else kwargs["input"]
    if not tap.listens(x) or x.numel() == 0:
        return
    running = not layer.training and layer.running_mean is not None
    mean, var = (layer.running_mean, layer.running_var) if running else (None, None)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        v = F.batch_norm(x.detach(), mean, var, layer.weight, layer.bias, not running, 0.0, layer.eps)
    cut = tap.cut(v, 1)
    tap.record(v[cut], output, 1, cut)
    if layer.activation.row.noise is None:  # a noise would be drawn anew
        resolved = layer.activation.row.resolve(x, **layer.activation.arguments())
        tap.follow_back(output, cut, 1, through(v[cut], resolved, 1, cut))


def gate(tap: Tap, unit: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    """The gate's half, after bias, limit and alpha, is the pre-activation."""
    given = dict(zip(("input", "bias"), args, strict=False)) | kwargs
    input, bias = given["input"], given.get("bias")
    pair = isinstance(input, (tuple, list))
    first = input[0] if pair else input
    if not tap.listens(first) or first.numel() == 0:
        return
    second = isinstance(unit, GLU) or unit.gate == "second"
    layout, dim = getattr(unit, "layout", "concat"), unit.dim % first.dim()
    along = [-1 if d == dim else 1 for d in range(first.dim())]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    halves = input if pair else split(input, dim, layout)
    biases = bias if pair or bias is None else split(bias, 0, layout)
    with torch.no_grad():
        v = halves[second].detach()
        if biases is not None and biases[second] is not None:
            v = v.to(wide) + biases[second].detach().to(wide).view(along)
        if getattr(unit, "limit", None) is not None:
            v = v.clamp(max=unit.limit)
        alpha = getattr(unit, "alpha", 1.0)
        v = (v if alpha == 1.0 else v * alpha).contiguous()
        kernel, scalars, weight = tap.row.resolve(None, **getattr(unit, "params", {})) if tap.row else ("", (), None)
        y = functional.run(v, None, (kernel, scalars, weight), dim, 1.0 / alpha, None, "auto", False, None)
    cut = tap.cut(v, dim)
    tap.record(v[cut], y, dim, cut)

    def pick(inputs: Any, outputs: Any) -> Tensor | None:
        gradient = inputs[second] if pair else inputs[0]
        return gradient if pair or gradient is None else split(gradient, dim, layout)[second]

    if output.grad_fn is not None and output.grad_fn.name() == "GatedActBackward0":
        tap.follow_back(output, cut, dim, pick)
