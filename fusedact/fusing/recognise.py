"""Which activation a piece of code computes, found by computing it and comparing with the registry's references.

A spelling is never looked at, so every spelling counts: `x * torch.sigmoid(x)`, `x / (1 + torch.exp(-x))` and a class
of anyone's that ends in `F.silu` are one row. What is compared: values and slopes in float64 on a grid that is dense
around 0, around the row's kinks and around every constant that the code uses, and values in float32 as far as 1e4.
Code is believed only if every operator it ran is elementwise. Knows rows and tensors; nothing of modules or sources.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fusedact import registry
from fusedact.registry import Activation

# An identity is no activation; a row that draws random numbers has no value to compare.
ROWS = tuple(row for row in registry.ROWS if row.noise is None and row.name != "identity")

# float64: constants are often written with ten digits (0.7978845608), and torch's own hardsigmoid has a float32 1/6
VALUE = {"rtol": 2e-9, "atol": 1e-10}
SLOPE = {"rtol": 1e-7, "atol": 1e-8}
SINGLE = {"rtol": 1e-4, "atol": 1e-5}  # float32: only to see that nothing overflows that the row would not


@dataclass(frozen=True)
class Match:
    """gain * row(x; params)."""

    row: Activation
    params: tuple[tuple[str, Any], ...] = ()
    gain: float = 1.0
    inplace: bool = False  # the code writes the result over its argument
    resolved: registry.Resolved = field(init=False, compare=False, repr=False)  # what the operator takes

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolved", self.row.resolve(**dict(self.params)))

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.params)
        return self.row.name + f"({shown})" * bool(shown) + f" × {self.gain}" * (self.gain != 1)


@dataclass(frozen=True)
class Gate:
    """match(min(a, limit)) * (clamp(b, -limit, limit) + offset); `swapped`: the code names b before a."""

    match: Match
    limit: float | None = None
    offset: float = 0.0
    swapped: bool = False

    def __str__(self) -> str:
        more = f", limit={self.limit}" * (self.limit is not None) + f", offset={self.offset:g}" * (self.offset != 0)
        return f"{self.match}{more}"


class Unsuitable(Exception):
    """The code ran an operator that is not elementwise, so its values on a grid say nothing."""


_ELEMENTWISE = {"hardswish", "hardswish_", "hardswish_backward", "log_sigmoid_forward", "log_sigmoid_backward"}
_HARMLESS = {
    "_to_copy",
    "detach",
    "lift_fresh",
    "lift_fresh_copy",
    "scalar_tensor",
    "ones_like",
    "zeros_like",
    "full_like",
}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what is not elementwise, and collects the constants."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.constants: set[float] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if torch.Tag.pointwise not in func.tags and name not in _ELEMENTWISE | _HARMLESS:
            raise Unsuitable(name)
        for value in (*args, *(kwargs or {}).values()):
            if (isinstance(value, (int, float)) and not isinstance(value, bool)) or (
                isinstance(value, Tensor) and value.dim() == 0
            ):
                self.constants.add(float(value))
        return func(*args, **(kwargs or {}))


def _grid(constants: Iterable[float]) -> Tensor:
    near = [s * c + d for c in constants if abs(c) < 1e4 for s in (1, -1) for d in (-1e-3, 0.0, 1e-3)]
    far = torch.logspace(-5, 4, 28, dtype=torch.float64)
    parts = [torch.linspace(-12, 12, 385, dtype=torch.float64), far, -far, torch.tensor(near, dtype=torch.float64)]
    grid: Tensor = torch.cat(parts).unique()  # type: ignore[no-untyped-call]
    return grid


_STEEP = 50.0  # slopes are compared within it: beyond, a formula's exp or cube overflows on its way back


def _slope(function: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        v = points.clone().requires_grad_()
        y = function(v * 1)  # not a leaf: the code may write over it
        if not y.requires_grad:
            raise Unsuitable("no gradient")
        (slope,) = torch.autograd.grad(y, v, torch.ones_like(y))
    return y.detach(), slope


def _close(a: Tensor, b: Tensor, rtol: float, atol: float) -> bool:
    return bool(torch.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True).all())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Probes leave the random state alone, and see neither autocast nor inference mode."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


def identify(function: Callable[[Tensor], Any], rows: Iterable[Activation] = ROWS) -> Match | None:
    """The row that `function` computes, or None. It is called a few times, with tensors of one and two dimensions."""
    with quiet():
        try:
            return _identify(function, tuple(rows))
        except Exception:  # whatever code of others raises when probed: it is then no activation
            return None


def _identify(function: Callable[[Tensor], Any], rows: tuple[Activation, ...]) -> Match | None:
    watch = _Watch()
    probe = torch.linspace(-3, 3, 13, dtype=torch.float64)
    given = probe.clone()
    with watch:
        first = function(given)
    if not isinstance(first, Tensor) or first.shape != probe.shape or first.dtype != probe.dtype:
        return None
    inplace = not torch.equal(given, probe)
    if inplace and first.data_ptr() != given.data_ptr():
        return None
    if not torch.equal(first, function(probe.clone())):  # random, or it keeps state
        return None
    constants = sorted(c for c in watch.constants if math.isfinite(c))
    few = torch.tensor(_SAMPLE, dtype=torch.float64)
    with watch:
        seen = function(few.clone()).tolist()
    for plain in (True, False):
        for row in rows:
            for params in _candidates(row, constants):
                sample = _sampled(row.name, tuple(params.items()))
                gain = 1.0 if plain else _gain(seen, sample)
                if gain is None or not all(_near(a, gain * b) for a, b in zip(seen, sample, strict=True)):
                    continue
                if _confirmed(function, row, params, gain, constants):
                    return Match(row, tuple(params.items()), gain, inplace)
    return None


# Values at these sort out nearly all rows and parameters; what is left is looked at closely.
_SAMPLE = (-23.0, -7.3, -2.9, -1.3, -0.63, -0.21, 0.17, 0.49, 1.1, 2.3, 4.7, 8.9, 29.0)


@functools.lru_cache(maxsize=1 << 16)
def _sampled(name: str, params: tuple[tuple[str, Any], ...]) -> tuple[float, ...]:
    few = torch.tensor(_SAMPLE, dtype=torch.float64)
    return tuple(_reference(registry.get(name), dict(params), few).tolist())


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= VALUE["atol"] + VALUE["rtol"] * abs(b)


def _gain(values: list[float], expected: tuple[float, ...]) -> float | None:
    """values / expected where that is largest, rounded to what a person would have written."""
    at = max(range(len(expected)), key=lambda i: min(abs(expected[i]), 1e3))
    ratio = values[at] / expected[at] if expected[at] != 0 else math.nan
    return float(f"{ratio:.15g}") if math.isfinite(ratio) and ratio != 0 else None


def _confirmed(
    function: Callable[[Tensor], Any], row: Activation, params: dict[str, Any], gain: float, constants: list[float]
) -> bool:
    """Whether `function` is gain * row on the whole grid: values, slopes, other shapes, and float32."""
    points = _grid([*constants, *row.kinks(*row.resolve(**params)[1])])
    steep = points[points.abs() <= _STEEP]
    folded = points[: points.numel() // 2 * 2].reshape(2, -1).clone()  # shape must not matter
    copies = points.clone(), points.float()
    with _Watch():
        values, single, square = function(copies[0]), function(copies[1]), function(folded)
    if single.dtype != torch.float32 or not torch.equal(square.flatten(), values[: square.numel()]):
        return False
    reference = functools.partial(_reference, row, params)
    expected = gain * reference(points)
    inner, slopes = _slope(function, steep)
    _, wanted = _slope(reference, steep)
    return (
        _close(values, expected, **VALUE)
        and torch.allclose(inner, values[points.abs() <= _STEEP], rtol=1e-12, equal_nan=True)
        and not bool((slopes == slopes[0]).all())  # a straight line
        and _close(slopes, gain * wanted, **SLOPE)
        and _close(single.double(), expected, **SINGLE)
    )


def _reference(row: Activation, params: dict[str, Any], v: Tensor) -> Tensor:
    kernel, scalars, _ = row.resolve(**params)
    return registry.get(kernel).reference(v, *scalars)


def _candidates(row: Activation, constants: list[float]) -> list[dict[str, Any]]:
    """Settings of the row's numeric parameters out of the constants that the code uses; at most a few hundred."""
    names = [p for p in row.parameters if p.choices is None]
    if not names:
        return [{}]
    pool = list(dict.fromkeys(v for c in constants for v in (c, -c) if abs(c) < 1e6))
    if len(names) == 1:
        pool += [1 / c for c in constants if c not in (0.0, 1.0, -1.0)]
    pool = pool[:24] if len(names) == 1 else pool[:14]
    choices = [dict.fromkeys([p.default, *pool, *([None] if p.open is not None else [])]) for p in names]
    settings = []
    for values in itertools.product(*choices):
        setting = {p.name: v for p, v in zip(names, values, strict=True)}
        try:
            row.resolve(**setting)
        except (ValueError, TypeError, ZeroDivisionError):
            continue
        settings.append(setting)
    return settings


# Functions of two tensors: a gate, or an activation of a sum.


def identify_gate(function: Callable[[Tensor, Tensor], Any], constants: Iterable[float] = ()) -> Gate | None:
    """How `function` gates one of its two arguments with an activation of the other, or None."""
    with quiet():
        try:
            for swapped in (False, True):
                ordered = (lambda a, b: function(b, a)) if swapped else function
                gate = _identify_gate(ordered, swapped)
                if gate is not None:
                    return gate
        except Exception:
            return None
    return None


def _identify_gate(function: Callable[[Tensor, Tensor], Any], swapped: bool) -> Gate | None:
    watch = _Watch()
    a, b = torch.linspace(-9, 9, 37, dtype=torch.float64)[:, None], torch.linspace(-9, 9, 41, dtype=torch.float64)
    a, b = (a + 0 * b).contiguous(), (0 * a + b).contiguous()
    copies = a.clone(), b.clone()
    with watch:
        values = function(*copies)
    if not isinstance(values, Tensor) or values.shape != a.shape:
        return None
    constants = sorted(c for c in watch.constants if math.isfinite(c))
    limits: list[float | None] = [None, *(c for c in constants if c > 0)]
    offsets = [0.0, *(c for c in constants if c != 0)]
    for limit, offset in itertools.product(limits, offsets):

        def value(v: Tensor, limit: float | None = limit, offset: float = offset) -> Tensor:
            return (v if limit is None else v.clamp(-limit, limit)) + offset

        at = 1.0 - offset  # where the value's factor is 1
        if limit is not None and abs(at) > limit:
            continue

        def gate(v: Tensor, at: float = at) -> Any:
            return function(v, torch.full_like(v, at))

        outer = gate(a)
        if not torch.allclose(values, outer * value(b), rtol=1e-9, atol=1e-11):
            continue
        match = identify(gate) if limit is None else _limited(gate, limit)
        if match is None or match.inplace:
            continue
        pair = a.clone().requires_grad_(), b.clone().requires_grad_()
        with torch.enable_grad():
            mine = torch.autograd.grad(function(*pair).sum(), pair)
            inner = pair[0] if limit is None else pair[0].clamp(max=limit)
            model = match.gain * _reference(match.row, dict(match.params), inner) * value(pair[1])
            theirs = torch.autograd.grad(model.sum(), pair)
        if all(_close(x, y, **SLOPE) for x, y in zip(mine, theirs, strict=True)):
            return Gate(match, limit, offset, swapped)
    return None


def _limited(gate: Callable[[Tensor], Any], limit: float) -> Match | None:
    """The row below the limit, if the gate is constant above it."""
    watch = _Watch()
    points = torch.linspace(-12, limit, 301, dtype=torch.float64)
    beyond = torch.linspace(limit, limit + 9, 10, dtype=torch.float64)
    with watch:
        values, above = gate(points), gate(beyond)
    if not _close(above, values[-1].expand(10), 1e-12, 0.0):
        return None
    constants = sorted(c for c in watch.constants if math.isfinite(c))
    for row in ROWS:
        for params in _candidates(row, constants):
            if _close(values, _reference(row, params, points), **VALUE):
                return Match(row, tuple(params.items()))
    return None


def of_a_sum(function: Callable[[Tensor, Tensor], Any]) -> bool:
    """Whether `function(a, b)` depends on a + b alone."""
    with quiet():
        try:
            a, b = torch.linspace(-9, 9, 37, dtype=torch.float64), torch.linspace(-9, 9, 41, dtype=torch.float64)
            a, b = (a[:, None] + 0 * b).contiguous(), (0 * a[:, None] + b).contiguous()
            copies = a.clone(), b.clone()
            with _Watch():
                values = function(*copies)
            return torch.allclose(values, function(a + b, torch.zeros_like(a)), rtol=1e-12, atol=1e-12)
        except Exception:
            return False
