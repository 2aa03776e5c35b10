"""The monitor: finds a model's activations, listens to them while it is attached, and leaves nothing behind.

Listening is tap.py's affair (and hidden.py's), counting statistics.py's, judging verdicts.py's, showing show.py's.
"""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fusedact import registry
from fusedact.health import hidden, statistics, verdicts
from fusedact.health.statistics import Zones
from fusedact.health.tap import State, Tap
from fusedact.health.verdicts import Verdict
from fusedact.nn.activation import Fused
from fusedact.nn.batch_norm import _BatchNormAct
from fusedact.nn.layers import Activated, BiasAct
from fusedact.registry import Activation

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

M = TypeVar("M", bound=nn.Module)

_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention)
_watched: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()  # activation -> its name there


def row_of(module: nn.Module) -> Activation | None:
    """The row of an activation module, fused or torch.nn's; None for every other module, and for nn.Identity."""
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, Fused):
        return module.row
    row = hidden.row_of(module)
    if row is not None:
        return row
    classes = {row.torch_module: row for row in registry.ROWS if row.torch_module is not None}
    return next((classes[c] for c in type(module).__mro__ if c in classes), None)


def zones_of(module: nn.Module, row: Activation) -> Zones:
    """Where the activation saturates, with the module's parameters as they stand; of a learned one, the mean."""
    holder = getattr(module, "activation", module)  # behind a batch normalisation it is a module, in a gate a name
    params = {p.name: getattr(holder, p.name) for p in row.parameters if hasattr(holder, p.name)}
    params |= getattr(module, "params", {})
    tensor = row.tensor_parameter
    if tensor is not None and isinstance(params.get(tensor.name), Tensor):
        params[tensor.name] = float(params[tensor.name].detach().mean())
    kernel, scalars, _ = row.resolve(**params)
    return registry.get(kernel).saturation(*scalars)


class Monitor:
    """Watches the activations of a model while it is attached. Made by `fusedact.monitor`."""

    def __init__(
        self,
        model: nn.Module,
        every: int = 1,
        *,
        elements: int | None = None,
        skip: Collection[str] = (),
        dims: Mapping[str, int] | None = None,
        by_hand: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"monitor watches an nn.Module, but got {type(model).__name__}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of steps, 1 or more, but got {every!r}")
        if elements is not None and (not isinstance(elements, int) or elements < 1):
            raise ValueError(f"elements must be None or a whole number, 1 or more, but got {elements!r}")
        self.model, self.every, self.elements, self.by_hand = model, every, elements, by_hand
        found = _activations(model)
        unknown = [name for name in (*skip, *(dims or {})) if name not in found]
        if unknown:
            raise ValueError(f"the model has no activation {', '.join(unknown)}; it has {', '.join(found) or 'none'}")
        self._found = {name: entry for name, entry in found.items() if name not in skip}
        self._dims = dict(dims or {})
        if not self._found:
            raise ValueError(
                f"{type(model).__name__} has no activation module to watch: neither one of torch.nn or fusedact.nn, "
                "nor a layer with activation=. Functions called in forward (F.relu) are not seen: make them modules"
            )
        self._state = State(every, elements)
        self._finalizer: weakref.finalize[[list[Callable[[], None]]], Monitor] | None = None

    def attach(self) -> Monitor:
        """Start to listen. Counts go on from where they were.

        Raises:
            RuntimeError: this monitor is attached, or another one watches one of the activations; nothing is attached.
        """
        if self.attached:
            raise RuntimeError("this monitor is attached already: detach it first")
        for name, (module, _, _) in self._found.items():
            if module in _watched:
                raise RuntimeError(
                    f"{name} is watched by another monitor (as {_watched[module]}): monitors cannot be nested; "
                    "detach the other one first"
                )
        undo: list[Callable[[], None]] = []
        try:
            if not self.by_hand:
                undo.append(self.model.register_forward_pre_hook(_Begin(self._state)).remove)
            for name, (module, row, dim) in self._found.items():
                tap = Tap(self._state, name, row, zones_of(module, row), self._dims.get(name, dim))
                self._state.taps.append(tap)
                _watched[module] = name
                undo.append(_Forget(module))
                if isinstance(module, Fused):
                    module.tap = tap
                elif hidden.row_of(module) is not None:
                    hook = hidden.hook_of(module, tap)
                    undo.append(module.register_forward_hook(hook, with_kwargs=True).remove)
                else:
                    undo.append(module.register_forward_pre_hook(tap.pre_hook).remove)
                    undo.append(module.register_forward_hook(tap.hook).remove)
            if not self.by_hand:  # last, as the model may be an activation itself
                undo.append(self.model.register_forward_hook(_End(self._state), always_call=True).remove)
        except BaseException:
            _undo(undo)
            raise
        undo.append(self._state.taps.clear)
        undo.append(self._state.end)
        self._finalizer = weakref.finalize(self, _left_open, undo)
        self._finalizer.atexit = False
        return self

    def detach(self) -> None:
        """Stop to listen; the model is as it was before. What was counted stays. Does nothing if not attached."""
        if self._finalizer is not None:
            detached = self._finalizer.detach()
            self._finalizer = None
            if detached is not None:
                _undo(detached[2][0])

    @property
    def attached(self) -> bool:
        """Whether the monitor listens."""
        return self._finalizer is not None

    def __enter__(self) -> Monitor:
        return self.attach()

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def begin_step(self) -> None:
        """Say that a step begins, where `by_hand` was asked for: what runs until `end_step` belongs to it."""
        self._state.begin()

    def end_step(self) -> None:
        """Say that the forward pass of a step is over."""
        self._state.end()

    def reset(self) -> None:
        """Forget what was counted."""
        state = self._state
        state.order.clear()
        state.sums.clear()
        state.calls = state.steps = 0

    @property
    def watching(self) -> bool:
        """Whether a step that is watched has begun, and its forward pass has not ended."""
        return self._state.active

    @property
    def seen(self) -> bool:
        """Whether anything was counted."""
        return bool(self._state.order)

    @property
    def steps(self) -> int:
        """How many steps were watched."""
        return self._state.steps

    def to_dict(self) -> dict[str, Any]:
        """Everything that was counted, and the verdicts, as plain Python values.

        `activations` maps names, in the order in which they first ran, to shares (`zeros`, `saturated`), `mean`, `std`,
        `min`, `max`, counts (`nan`, `inf`), the histogram of the `pre-activations`, the `gradient` of the loss with
        respect to them (None if no backward came by), and all of it `per channel`.

        Raises:
            RuntimeError: nothing was watched yet.
        """
        if not self._state.order:
            raise RuntimeError(
                "the monitor has seen nothing yet: attach it and call the model (itself, not a part of it, and not one "
                "that torch.compile has compiled)"
            )
        found = {
            name: {"activation": self._state.rows[name].name, **self._state.sums[name].summary()}
            for name in self._state.order
        }
        for name, judged in verdicts.judge(found, self._state.rows).items():
            found[name]["verdicts"] = [verdict._asdict() for verdict in judged]
        ran = {name.split(" (")[0] for name in found}
        unseen = [name for name in self._found if name not in ran]
        return {
            "every": self.every,
            "steps": self.steps,
            "calls": self._state.calls,
            "not seen": unseen,
            "activations": found,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """`to_dict` as JSON, written to `path` if one is given. JSON has no NaN and no infinity: they become null."""
        text = json.dumps(_finite(self.to_dict()), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    def verdicts(self) -> dict[str, list[Verdict]]:
        """What is wrong with each activation, in words; an empty list for one that is fine."""
        return {
            name: [Verdict(**verdict) for verdict in found["verdicts"]]
            for name, found in self.to_dict()["activations"].items()
        }

    def report(self, console: Console | None = None) -> None:
        """Print a table with the verdicts and, below it, what to try."""
        from fusedact.health import show

        show.report(self.to_dict(), console)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the histograms of the pre-activations and the gradient norm against depth; into a PNG file if named."""
        from fusedact.health import show

        return show.plot(self.to_dict(), path)

    def scalars(self) -> dict[str, float]:
        """Numbers for a logger: `zeros`, `saturated`, `mean`, `std`, `gradient_norm`, each as `kind/activation`."""
        found: dict[str, float] = {}
        for name, one in self.to_dict()["activations"].items():
            for key in ("zeros", "saturated", "mean", "std"):
                found[f"{key}/{name}"] = one[key]
            if one["gradient"] is not None:
                found[f"gradient_norm/{name}"] = one["gradient"]["norm"]
        return found

    def write_tensorboard(self, writer: Any, step: int | None = None) -> None:
        """Write `scalars` and the histograms to a torch.utils.tensorboard.SummaryWriter."""
        step = self._state.calls if step is None else step
        for key, value in self.scalars().items():
            writer.add_scalar(key, value, step)
        width = (statistics.HIGH - statistics.LOW) / statistics.BINS
        for name, one in self.to_dict()["activations"].items():
            counts = one["pre-activations"]["counts"]
            middles = [statistics.LOW + (n + 0.5) * width for n in range(len(counts))]
            writer.add_histogram_raw(
                f"pre-activations/{name}",
                min=statistics.LOW,
                max=statistics.HIGH,
                num=sum(counts),
                sum=sum(c * m for c, m in zip(counts, middles, strict=True)),
                sum_squares=sum(c * m * m for c, m in zip(counts, middles, strict=True)),
                bucket_limits=[middle + width / 2 for middle in middles],
                bucket_counts=counts,
                global_step=step,
            )


class _Begin:
    """The model's forward pre-hook."""

    def __init__(self, state: State | None) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and self.state is not None:
            self.state.begin()

    def __deepcopy__(self, memo: Any) -> _Begin:
        return type(self)(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (None,)


class _End(_Begin):
    """The model's forward hook; it runs after an exception, too."""

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:
        if not torch.compiler.is_compiling() and self.state is not None:
            self.state.end()


class _Forget:
    """Undoes what attach did to an activation's module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = weakref.ref(module)

    def __call__(self) -> None:
        module = self.module()
        if module is not None:
            _watched.pop(module, None)
            if isinstance(module, Fused):
                module.__dict__.pop("tap", None)


def _undo(steps: list[Callable[[], None]]) -> None:
    for step in reversed(steps):
        step()


def _left_open(steps: list[Callable[[], None]]) -> None:
    _undo(steps)
    warnings.warn(
        "a monitor was left open and is detached now: use `with fusedact.monitor(model)`, or call detach()",
        ResourceWarning,
        stacklevel=2,
    )


def _activations(model: nn.Module) -> dict[str, tuple[nn.Module, Activation, int | None]]:
    """Name -> module, row, and the dimension of its channels, if what comes before it tells: None leaves it to rank.

    An activation inside a layer has the layer's name. One that is used twice is found once.
    """
    found: dict[str, tuple[nn.Module, Activation, int | None]] = {}
    inside = {
        id(layer.activation): name
        for name, layer in model.named_modules()
        if isinstance(layer, (Activated, BiasAct)) and layer.activation is not None
    }
    behind = {id(layer.activation) for layer in model.modules() if isinstance(layer, _BatchNormAct)}
    dim: int | None = None
    for name, module in model.named_modules():
        row = row_of(module) if id(module) not in behind else None
        if row is not None:
            found[inside.get(id(module), name) or type(model).__name__] = (module, row, dim)
        elif isinstance(module, _CHANNELS_LAST):
            dim = -1
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)):
            dim = 1
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def monitor(
    model: nn.Module,
    every: int = 1,
    *,
    elements: int | None = None,
    skip: Collection[str] = (),
    dims: Mapping[str, int] | None = None,
    by_hand: bool = False,
) -> Monitor:
    """Watch the health of a model's activations: `with fusedact.monitor(model) as m: train(); m.report()`.

    Activation modules of torch.nn and fusedact.nn and layers with `activation=` are watched, per channel: zeros,
    saturated values (|f'| < 1e-3), mean, std, least, largest, NaN and inf, a histogram of the pre-activations, and the
    gradient's norm and zeros.

    Args:
        model: any nn.Module; while the monitor is attached it carries hooks, afterwards nothing.
        every: watch each n-th call of the model; the calls between cost one hook.
        elements: read at most about so many elements of an activation per step, evenly spaced and others each time;
            None reads all of them, on the CPU, where they are counted as they are computed, and on CUDA, in one pass
            more. On other devices, and in builds without CUDA, where the counting is torch's and takes several
            passes, None is 16,000.
        skip: names of activations to leave alone.
        dims: name -> the dimension of its channels, where it is not the one that the layer before it, or the rank of
            its input, suggests.
        by_hand: count steps by `begin_step` and `end_step` instead of by calls of the model, for training loops that
            call parts of it.

    Returns:
        A `Monitor`, which is a context manager; `attach` and `detach` do the same by hand.

    Raises:
        TypeError: `model` is no module; later, from the model's forward: an activation was given integers.
        ValueError: the model has no activation, or an argument is wrong.
        RuntimeError: from `attach`: monitors are nested.
    """
    return Monitor(model, every, elements=elements, skip=skip, dims=dims, by_hand=by_hand)
