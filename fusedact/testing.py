"""How far a result is from the truth: ulp distances, sweeps over every float, and the accuracy contract's check.

Used by the tests and by `python -m fusedact accuracy`. Knows the registry and what the functions return.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedact import registry
from fusedact.registry import Activation

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_BITS = dict(zip(DTYPES, (torch.int32, torch.int64, torch.int16, torch.int16), strict=True))  # of the same width
ORDERS = ("forward", "derivative", "second")


def ulp(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of `dtype` at `truth` (float64, any shape), as float64.

    Below the normal range it is one subnormal step.
    """
    info = torch.finfo(dtype)
    magnitude = truth.double().abs().nan_to_num(info.max).clamp(min=info.smallest_normal, max=info.max)
    _, exponent = torch.frexp(magnitude)
    return torch.ldexp(torch.full_like(magnitude, info.eps / 2), exponent)


def ulp_error(actual: Tensor, truth: Tensor, dtype: torch.dtype | None = None, low: Tensor | None = None) -> Tensor:
    """|actual - truth| in ulp of `dtype` (actual's own by default): 0.5 at most if it is correctly rounded.

    Args:
        actual: what was computed, any shape.
        truth: float64, of the same shape; `low`, if given, is the part of the truth that float64 could not hold.

    Returns:
        float64, of the same shape. NaN for NaN, and inf for what rounds to inf, count as 0; any other mismatch as inf.
    """
    dtype = dtype or actual.dtype
    info = torch.finfo(dtype)
    wide, truth = actual.double(), truth.double()
    error = (wide - truth - (0 if low is None else low)).abs() / ulp(truth, dtype)
    edge = info.max * (1 + info.eps / 4)  # what is beyond it rounds to inf; for float64 it is max itself
    over = truth.abs() >= edge if dtype != torch.float64 else truth.isinf()
    right = (wide.isnan() & truth.isnan()) | (over & wide.isinf() & (wide.sign() == truth.sign()))
    wrong = wide.isnan() | truth.isnan() | wide.isinf() | over & ~_near(wide, info.max)
    return torch.where(right, 0.0, torch.where(wrong, math.inf, error))


def _near(wide: Tensor, largest: float) -> Tensor:
    return wide.abs() >= largest  # finite, and as large as the dtype allows: one step from inf


def every(dtype: torch.dtype, stride: int = 1, chunk: int = 1 << 20) -> Iterator[Tensor]:
    """Every value of `dtype` but NaN, or every `stride`-th of their bit patterns, in pieces of at most `chunk`."""
    bits = torch.finfo(dtype).bits
    for start in range(-(1 << (bits - 1)), 1 << (bits - 1), stride * chunk):
        stop = min(start + stride * chunk, (1 << (bits - 1)) - 1)  # the last pattern is a NaN
        count = -(-(stop - start) // stride)
        x = (start + stride * torch.arange(count)).to(_BITS[dtype]).view(dtype)
        yield x[~x.isnan()]


def some(count: int = 200) -> Tensor:
    """Some float64 values, too many of which to compare with mpmath takes long: half from [-40, 40], half from all."""
    generator = torch.Generator().manual_seed(0)
    near = torch.rand(count // 2, dtype=torch.float64, generator=generator) * 80 - 40
    return torch.cat([near, *every(torch.float64, (1 << 64) // (count - count // 2))])


def derivatives(f: Callable[[Tensor], Tensor], x: Tensor, orders: int = 3) -> list[Tensor]:
    """[f(x), f'(x), f''(x)] of an elementwise f by autograd, the first `orders` of them."""
    x = x.detach().requires_grad_(orders > 1)
    results = [f(x)]
    for order in range(1, orders):
        last = results[-1]
        if not last.requires_grad:  # a constant: its derivative is 0
            results.append(torch.zeros_like(x))
            continue
        (next_one,) = torch.autograd.grad(
            last, x, torch.ones_like(last), create_graph=order + 1 < orders, materialize_grads=True
        )
        results.append(next_one)
    return [result.detach() for result in results]


def truth(row: Activation, x: Tensor, orders: int = 3, **params: Any) -> list[Tensor]:
    """[f, f', f''] of a row at x, from its reference, in float64."""
    kernel, scalars, _ = row.resolve(**params)
    reference = registry.get(kernel).reference
    return derivatives(lambda v: reference(v, *scalars), x.double(), orders)


def exact(row: Activation, x: Tensor, orders: int = 3, **params: Any) -> list[tuple[Tensor, Tensor]]:
    """[f, f', f''] of a row at x, each as the sum of two float64, from its formula with mpmath. For a few points."""
    import mpmath  # type: ignore[import-untyped]

    kernel, _, _ = row.resolve(**params)
    row = registry.get(kernel)
    space = {name: getattr(mpmath.mp, name) for name in ("exp", "expm1", "log1p", "erfc", "sqrt", "tanh", "cos", "sin")}
    space["erfc"] = lambda v: mpmath.erfc(v) if abs(v) < 10**6 else mpmath.mpf(0 if v > 0 else 2)  # its own limit
    values = {name: mpmath.mpf(v) for name, v in {**row.defaults(), **params}.items() if not isinstance(v, str)}
    code = compile(row.formula, row.name, "eval")

    def f(x: Any) -> Any:
        return eval(code, {**space, "pi": mpmath.mp.pi, **values, "x": x})

    def at(point: float) -> list[tuple[float, float]]:
        # Central differences with a step of 1e-78 |x|, which is never over a kink at 0. The digits are enough for a
        # second difference of 1e-324 h^2 beside 1.
        size = min(abs(point), 1.0) or 1.0
        with mpmath.workdps(600 - 2 * math.floor(math.log10(size))):
            x, h = mpmath.mpf(point), mpmath.mpf(2) ** -260 * size
            here, left, right = f(x), f(x - h), f(x + h)
            values = [here, (right - left) / (2 * h), (right - 2 * here + left) / h**2][:orders]
            return [(float(v), float(v - float(v)) if math.isfinite(float(v)) else 0.0) for v in values]

    pairs = torch.tensor([at(point) for point in x.double().tolist()], dtype=torch.float64).reshape(-1, orders, 2)
    return [(pairs[:, order, 0], pairs[:, order, 1]) for order in range(orders)]


def near_root(row: Activation, x: Tensor, order: int, **params: Any) -> Tensor:
    """Where the derivative of `order` has a root within 0.1 of x (bool, of x's shape)."""
    x = x.double()

    def at(x: Tensor) -> Tensor:
        return truth(row, x, order + 1, **params)[order]

    left, right = at(x - 0.1), at(x + 0.1)
    crosses = left.sign() * right.sign() < 0  # not where it is 0 on a whole side: there the result must be 0
    touches = (x.abs() <= 0.1) & (at(torch.zeros_like(x)) == 0) & (left != 0) & (right != 0)
    if (x + 0.1 == x).any():  # float64 cannot step by 0.1 there: a step of Newton's method says how far the root is
        here = truth(row, x, order + 2, **params)
        crosses = torch.where(x + 0.1 == x, here[order].abs() < 0.1 * here[order + 1].abs(), crosses)
    return crosses | touches


@dataclass
class Worst:
    """The largest error found, and where: in ulp, or near roots, for what exceeds `limit` ulp, absolute."""

    limit: float
    ulp: float = 0.0
    x: float = math.nan
    near_root: float = 0.0  # absolute
    count: int = 0
    total: float = 0.0  # of the errors in ulp

    @property
    def mean(self) -> float:
        """The mean error in ulp."""
        return self.total / self.count if self.count else 0.0

    def update(self, x: Tensor, error: Tensor, absolute: Tensor, near: Tensor | None) -> None:
        """Take one more piece of a sweep into account."""
        self.count += x.numel()
        if near is not None:
            near = near & (error > self.limit)
            if near.any():
                self.near_root = max(self.near_root, float(absolute[near].nan_to_num(math.inf).max()))
            error = torch.where(near, 0.0, error)
        self.total += float(error.sum())
        if x.numel() and float(error.max()) > self.ulp:
            self.ulp, self.x = float(error.max()), float(x[error.argmax()])


def away_from_kinks(row: Activation, x: Tensor, **params: Any) -> Tensor:
    """x without the row's kinks, where a derivative is a convention and not a limit."""
    _, scalars, _ = row.resolve(**params)
    keep = torch.ones_like(x, dtype=torch.bool)
    for kink in row.kinks(*scalars):
        keep &= x.double() != kink
    return x[keep]


def measure(
    row: Activation,
    f: Callable[[Tensor], Tensor],
    pieces: Iterator[Tensor] | list[Tensor],
    orders: int = 3,
    **params: Any,
) -> list[Worst]:
    """The largest errors of f and its derivatives against the row's truth, over all pieces of a sweep.

    float64 pieces are compared with mpmath (slow: a few hundred points), others with the float64 reference.
    Infinite inputs are left out: what happens there is a convention that has its own tests.
    """
    worst: list[Worst] = []
    for piece in pieces:
        worst = worst or [Worst(getattr(row.bound(piece.dtype), order)) for order in ORDERS[:orders]]
        x = away_from_kinks(row, piece[piece.isfinite()], **params)
        got = derivatives(f, x, orders)
        if x.dtype == torch.float64:
            expected = exact(row, x, orders, **params)
        else:
            expected = [(value, torch.zeros_like(value)) for value in truth(row, x, orders, **params)]
        for order, (result, (high, low)) in enumerate(zip(got, expected, strict=True)):
            near = near_root(row, x, order, **params) if order else None
            absolute = (result.double() - high - low).abs()
            worst[order].update(x, ulp_error(result, high, low=low), absolute, near)
    return worst
