"""Listening to one activation: what is called while a monitor is attached, and what it counts where.

An activation of fusedact.nn calls its tap, which runs the operator that counts as it computes; one of torch.nn is
looked at from forward hooks, in one pass; one that an operator hides between other things is computed again. Gradients
are counted by the operator's own backward, or read from the autograd node of the output. Knows no model, no verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import has_torch_function_unary
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fusedact import _C, functional, gemm, registry
from fusedact.health import statistics
from fusedact.health.statistics import Sums, Zones
from fusedact.registry import Activation, Limits, Resolved

ELEMENTS = 16_000  # read per activation and step where the extension does not count
_PLAIN = (Tensor, nn.Parameter)


class State:
    """What the taps of one monitor share. They hold this and not the monitor, so that a forgotten one can be freed."""

    def __init__(self, every: int, elements: int | None) -> None:
        self.every, self.elements = every, elements
        self.calls = self.steps = 0
        self.active = False
        self.order: list[str] = []  # of the activations, as they first ran
        self.sums: dict[str, Sums] = {}
        self.rows: dict[str, Activation] = {}
        self.taps: list[Tap] = []

    def begin(self) -> None:
        self.active = self.calls % self.every == 0
        self.calls += 1
        if self.active:
            self.steps += 1
            for tap in self.taps:
                tap.turn = 0

    def end(self) -> None:
        self.active = False


class Tap:
    """Listens to one activation. A copy of the model gets taps that listen to nothing."""

    def __init__(
        self,
        state: State | None = None,
        name: str = "",
        row: Activation | None = None,
        zones: Zones = (),
        dim: int | None = None,
    ) -> None:
        self.state, self.name, self.row, self.zones, self.dim = state, name, row, zones, dim
        self.bounds = statistics.flat(zones)
        self.turn = 0  # how often the activation has run in this step
        self.before: tuple[Tensor, Tensor] | None = None  # an input about to be overwritten: its counts

    def __deepcopy__(self, memo: Any) -> Tap:
        return Tap()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tap, ()

    # ---- what layers and modules of fusedact.nn call -----------------------------------------------------------------

    def bias_act(
        self, input: Tensor, bias: Tensor | None, resolved: Resolved, dim: int, gain: float, clamp: Limits, save: str,
        inplace: bool, ours: bool,
    ) -> Tensor:  # fmt: skip
        """`functional.run`; counted in the same pass where it can be. `ours`: input may be overwritten."""
        listens = self.listens(input)
        if not listens or inplace or save == "mask" or not self.counts_within(input):
            if not listens:
                return functional.run(input, bias, resolved, dim, gain, clamp, save, inplace or ours, None)
            return self._around(input, bias, resolved, dim, gain, clamp, save, inplace)
        kernel, scalars, weight = resolved
        if bias is None and (weight is None or weight.numel() == 1):
            dim = self.channels(input)
        low, high = (None, None) if clamp is None else registry.bounds(clamp)
        sums = self.begin(input.size(dim), input.numel(), input.device)
        if sums.channels != input.size(dim):
            return self._around(input, bias, resolved, dim, gain, clamp, save, False, sums)
        settings = (weight, kernel, scalars, dim, gain, low, high, save)
        return _C.bias_act_statistics(
            input, bias, *settings, self.bounds, sums.values, sums.histogram, sums.gradient
        )  # fmt: skip

    def linear(self, input: Tensor, layer: nn.Linear, resolved: Resolved) -> Tensor:
        """`gemm.run`; counted tile by tile where it can be, for the pre-activation is never in memory."""
        if not self.listens(input) or input.dim() == 0 or input.numel() == 0:
            return gemm.run(input, layer.weight, layer.bias, resolved)
        out, channels = input.numel() // input.size(-1) * layer.weight.size(0), layer.weight.size(0)
        if self.counts_within(input):
            kernel, scalars, param = resolved
            sums = self.begin(channels, out, input.device)
            if sums.channels == channels:
                settings = (param, kernel, scalars, 1.0, None, None, "auto")
                where = (self.bounds, sums.values, sums.histogram, sums.gradient)
                return _C.linear_act_statistics(input, layer.weight, layer.bias, *settings, *where)
            self.forget(out)
        output = gemm.run(input, layer.weight, layer.bias, resolved)
        dim = output.dim() - 1
        cut = self.cut(output, dim)
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
            bias = None if layer.bias is None else layer.bias.to(wide)
            v = F.linear(input[cut[:-1]].to(wide), layer.weight.to(wide), bias)
        self.record(v, output, dim, cut)
        self.follow_back(output, cut, dim, through(v, resolved, dim, cut))
        return output

    def epilogue(
        self, input: Tensor, bias: Tensor | None, resolved: Resolved, dim: int, gain: float, clamp: Limits, save: str,
        scale: Tensor | None, dropout_p: float, training: bool, residual: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:  # fmt: skip
        """`functional.run_epilogue`, in which the activation's output is never in memory: computed again."""
        output = functional.run_epilogue(
            input, bias, resolved, dim, gain, clamp, save, scale, dropout_p, training, residual, generator
        )
        if self.listens(input) and input.numel() and input.dim():
            dim %= input.dim()
            along = [-1 if d == dim else 1 for d in range(input.dim())]
            wide = torch.float64 if input.dtype == torch.float64 else torch.float32
            with torch.no_grad():
                v = input.detach().to(wide)
                v = v if scale is None else v * scale.detach().to(wide).view(along)
                v = v if bias is None else v + bias.detach().to(wide).view(along)
                y = functional.run(v, None, resolved, dim, gain, clamp, "auto", False, None)
            cut = self.cut(v, dim)
            self.record(v[cut], y, dim, cut)
            if scale is None:  # else the input's gradient is another one
                self.follow_back(output, cut, dim, lambda inputs, _: inputs[0])
        return output

    # ---- what torch.nn's modules are listened to by ------------------------------------------------------------------

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module's forward pre-hook: the input is looked at now if it will be overwritten."""
        self.before = None  # of a forward that raised
        if getattr(module, "inplace", False) and args and isinstance(args[0], Tensor) and self.listens(args[0]):
            x = args[0].detach()
            if x.numel() and x.dim():
                self.before = self._seen(x)

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A module's forward hook."""
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        before, self.before = self.before, None
        if self.listens(args[0]) and output.numel() and output.dim():
            dim = self.channels(output)
            cut = self.cut(output, dim)
            self.record(args[0].detach()[cut] if before is None else before, output, dim, cut)
            self.follow_back(output, cut, dim)

    # ---- the parts -------------------------------------------------------------------------------------------------

    def listens(self, input: Tensor) -> bool:
        """Whether this call is counted.

        Raises:
            TypeError: it should be, but the input is not floating-point.
        """
        if (
            torch.compiler.is_compiling()  # first: a compiled graph must not be guarded by what changes each step
            or self.state is None
            or not self.state.active
            or torch._C._are_functorch_transforms_active()
            or hasattr(input, "_local_tensor")  # a DTensor: no machine sees all of it
        ):
            return False
        if not input.is_floating_point():
            raise TypeError(
                f"monitor: {self.name} was given a tensor of {input.dtype}, but only floating-point tensors are "
                f"watched; convert its input, or leave it out: monitor(model, skip=[{self.name!r}])"
            )
        return True

    def counts_within(self, input: Tensor) -> bool:
        """Whether an operator that counts as it computes takes this input: all of a plain tensor."""
        return (
            type(input) in _PLAIN
            and statistics.counted_by_us(input)
            and input.dim() > 0
            and input.numel() > 0
            and self.state is not None
            and self.state.elements is None
            and forward_ad._current_level < 0
            and not is_in_torch_dispatch_mode()
            and not has_torch_function_unary(input)
        )

    def channels(self, input: Tensor) -> int:
        """The dimension of the channels."""
        dim = self.dim
        if dim is None or not -input.dim() <= dim < input.dim():
            dim = -1 if input.dim() in (1, 3) else 1
        return dim % input.dim()

    def cut(self, t: Tensor, dim: int) -> tuple[slice, ...]:
        """Which elements are read."""
        assert self.state is not None
        limit = self.state.elements
        if limit is None and not statistics.counted_by_us(t):
            limit = ELEMENTS
        return statistics.slices(t.shape, dim % t.dim(), limit, self.state.steps)

    def begin(self, channels: int, elements: int, device: torch.device) -> Sums:
        """Where this run of the activation is counted. Not for so many channels, if their number has changed."""
        assert self.state is not None
        assert self.row is not None
        self.turn += 1
        name = self.name if self.turn == 1 else f"{self.name} ({self.turn})"
        sums = self.state.sums.get(name)
        if sums is None:
            sums = self.state.sums[name] = Sums.empty(channels, device)
            self.state.order.append(name)
            self.state.rows[name] = self.row
        elif sums.channels != channels and sums.channels != 1:
            sums.pool()
        sums.steps += 1
        sums.elements += elements
        return sums

    def forget(self, elements: int) -> None:
        """Take the last `begin` back."""
        assert self.state is not None
        name = self.name if self.turn == 1 else f"{self.name} ({self.turn})"
        self.turn -= 1
        self.state.sums[name].steps -= 1
        self.state.sums[name].elements -= elements

    def _around(
        self, input: Tensor, bias: Tensor | None, resolved: Resolved, dim: int, gain: float, clamp: Limits, save: str,
        inplace: bool, begun: Sums | None = None,
    ) -> Tensor:  # fmt: skip
        """`functional.run` with a pass before, or after."""
        if begun is not None:
            self.forget(input.numel())
        if input.numel() == 0 or input.dim() == 0:
            return functional.run(input, bias, resolved, dim, gain, clamp, save, inplace, None)
        if bias is None and (resolved[2] is None or resolved[2].numel() == 1):
            dim = self.channels(input)
        dim %= input.dim()
        with torch.no_grad():
            cut = self.cut(input, dim)
            v = input.detach()[cut]
            if bias is not None:
                along = [-1 if d == dim else 1 for d in range(input.dim())]
                v = v + bias.detach().to(v.dtype if v.dtype == torch.float64 else torch.float32).view(along)
            seen = self._seen(v, dim) if inplace else v
        output = functional.run(input, bias, resolved, dim, gain, clamp, save, inplace, None)
        self.record(seen, output, dim, cut)
        self.follow_back(output, cut, dim)
        return output

    def _seen(self, v: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
        """The counts of a pre-activation, to be added when the output is there."""
        if dim is None:
            dim = self.channels(v)
            v = v[self.cut(v, dim)]
        values = statistics.empty_sums(v.size(dim), v.device)
        histogram = torch.zeros(statistics.BINS, dtype=torch.float64, device=v.device)
        with torch.no_grad():
            statistics.count(values, histogram, v, None, dim, self.zones)
        return values, histogram

    @torch.no_grad()
    def record(self, v: Tensor | tuple[Tensor, Tensor], output: Tensor, dim: int, cut: tuple[slice, ...]) -> None:
        """Count one run: its pre-activation (or its counts) where `cut` reads it, and its output."""
        sums = self.begin(output.size(dim), output.numel(), output.device)
        y = output.detach()[cut]
        whole = sums.channels == y.size(dim)
        values = sums.values if whole else statistics.empty_sums(y.size(dim), y.device)
        if isinstance(v, tuple):
            values += v[0].masked_fill(v[0].isinf(), 0.0)
            sums.histogram += v[1]
            statistics.count(values, None, None, y, dim)
        elif v.dtype == y.dtype:
            statistics.count(values, sums.histogram, v, y, dim, self.zones)
        else:  # a 16-bit output of what was added up in float32
            statistics.count(values, sums.histogram, v, None, dim, self.zones)
            statistics.count(values, None, None, y, dim)
        if not whole:
            add = statistics.pooled(values)
            sums.values[:7] += add[:7]
            sums.values[7] = torch.minimum(sums.values[7], add[7])
            sums.values[8] = torch.maximum(sums.values[8], add[8])
        if y.numel() < output.numel():  # a NaN in what was not read would go unseen
            sums.unfinished += ~output.detach().sum(dtype=torch.float32).isfinite()

    def follow_back(self, output: Tensor, cut: tuple[slice, ...], dim: int, pick: Pick | None = None) -> None:
        """Listen for the gradient at the output's node."""
        node = output.grad_fn
        if node is not None and self.state is not None:
            name = self.name if self.turn == 1 else f"{self.name} ({self.turn})"
            node.register_hook(GradientTap(self.state, name, cut, dim, pick or own(output.shape)))


# From a node's gradients, of its inputs and of its outputs, to that of the pre-activation.
Pick = Callable[[Any, Any], "Tensor | None"]


def own(shape: torch.Size) -> Pick:
    """That of the node's input, for a node that is the activation; of its output, where the input needs none."""

    def pick(inputs: Any, outputs: Any) -> Tensor | None:
        return next((g for g in (*inputs[:1], *outputs[:1]) if g is not None and g.shape == shape), None)

    return pick


def through(v: Tensor, resolved: Resolved, dim: int, cut: tuple[slice, ...]) -> Pick:
    """g f'(v), for a node that ends in the activation; `v` is what `cut` reads, and so is the result."""
    kernel, scalars, weight = resolved

    def pick(inputs: Any, outputs: Any) -> Tensor | None:
        if outputs[0] is None:
            return None
        with torch.enable_grad():
            x = v.detach().requires_grad_()
            fixed = None if weight is None else weight.detach()
            y = functional.run(x, None, (kernel, scalars, fixed), dim, 1.0, None, "input", False, None)
        (found,) = torch.autograd.grad(y, x, outputs[0][cut].to(y.dtype), materialize_grads=True)
        return found

    pick.cuts = True  # type: ignore[attr-defined]
    return pick


class GradientTap:
    """Counts the gradient of an activation's input, once backward comes by the node of its output."""

    def __init__(self, state: State, name: str, cut: tuple[slice, ...], dim: int, pick: Pick) -> None:
        self.state, self.name, self.cut, self.dim, self.pick = state, name, cut, dim, pick

    @torch.no_grad()
    def __call__(self, inputs: Any, outputs: Any) -> None:
        sums, gradient = self.state.sums.get(self.name), self.pick(inputs, outputs)
        if gradient is None or sums is None:
            return
        read = gradient if hasattr(self.pick, "cuts") else gradient[self.cut]
        if read.size(self.dim) == sums.channels:
            statistics.count(sums.gradient, None, None, read, self.dim)
        elif sums.channels == 1:
            statistics.count(sums.gradient, None, None, read.unsqueeze(-1), -1)
