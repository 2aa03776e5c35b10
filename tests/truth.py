"""The truth in float64: value, first and second derivative of every activation, in forms that do not cancel.

Written by hand and independent of the code under test; tests/test_truth.py holds each against mpmath (tests/exact.py)
to 1e-12, so that it may judge float32, bfloat16 and float16 on hundreds of thousands of points. A name without an entry
here is judged by its row's own reference lambda (`triple`): a new row is tested without a new line.

Also here: what an ulp is, and where a function has its roots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]


def _select(condition: Tensor, yes: Triple, no: Triple) -> Triple:
    return tuple(torch.where(condition, a, b) for a, b in zip(yes, no, strict=True))  # type: ignore[return-value]


def _constant(x: Tensor, value: float) -> Triple:
    return torch.full_like(x, value), torch.zeros_like(x), torch.zeros_like(x)


def _line(x: Tensor, slope: float = 1.0, offset: float = 0.0) -> Triple:
    return slope * x + offset if offset else slope * x, torch.full_like(x, slope), torch.zeros_like(x)


def _step(x: Tensor, edge: float, below: Triple) -> Triple:
    return _select(x > edge, _line(x), below)


def _clip(x: Tensor, low: float, high: float) -> Triple:
    inside = _select(x < high, _line(x), _constant(x, high))
    return _select(x > low, inside, _constant(x, low))


def _scaled(triple: Triple, factor: float) -> Triple:
    return tuple(factor * t for t in triple)  # type: ignore[return-value]


def _sech2(x: Tensor) -> Tensor:
    e = torch.exp(-2 * x.abs())
    return 4 * e / (1 + e) ** 2


def _elu(x: Tensor, alpha: float, scale: float = 1.0, width: float = 1.0) -> Triple:
    e = torch.exp(x.clamp(max=0) / width)
    below = (
        scale * alpha * torch.expm1(x.clamp(max=0) / width),
        scale * alpha / width * e,
        scale * alpha / width**2 * e,
    )
    return _select(x > 0, _line(x, scale), below)


def _swish(x: Tensor, beta: float) -> Triple:
    """x * sigmoid(beta x); s and 1 - s both have all their digits."""
    s, c = torch.sigmoid(beta * x), torch.sigmoid(-beta * x)
    return x * s, s + beta * x * s * c, beta * s * c * (2 + beta * x * (c - s))


def _gelu(x: Tensor) -> Triple:
    cdf, pdf = torch.special.erfc(-x * math.sqrt(0.5)) / 2, torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return x * cdf, cdf + x * pdf, (2 - x * x) * pdf


def _gelu_tanh(x: Tensor) -> Triple:
    k = 2 * math.sqrt(2 / math.pi)  # .5 (1 + tanh u) is sigmoid(2u)
    u, u1, u2 = k * (x + 0.044715 * x**3), k * (1 + 3 * 0.044715 * x**2), k * 6 * 0.044715 * x
    s, c = torch.sigmoid(u), torch.sigmoid(-u)
    return x * s, s + x * u1 * s * c, 2 * u1 * s * c + x * s * c * (u2 + u1 * u1 * (c - s))


def _mish(x: Tensor) -> Triple:
    w = torch.exp(-x.abs())
    below, above = w * (w + 2), 1 + 2 * w
    t = torch.where(x < 0, below / (below + 2), above / (above + 2 * w * w))  # tanh(softplus(x))
    sech2 = 4 * (1 + w) ** 2 * torch.where(x < 0, 1 / (below + 2) ** 2, (w / (above + 2 * w * w)) ** 2)
    s, c = torch.sigmoid(x), torch.sigmoid(-x)
    q = s * sech2
    return x * t, t + x * q, q * (2 + x * (c - 2 * t * s))


def _softplus(x: Tensor, beta: float, threshold: float) -> Triple:
    z = beta * x
    s, c = torch.sigmoid(z), torch.sigmoid(-z)
    smooth = ((z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))) / beta, s, beta * s * c)
    return _select(z > threshold, _line(x), smooth)


def _sigmoid(x: Tensor) -> Triple:
    s, c = torch.sigmoid(x), torch.sigmoid(-x)
    return s, s * c, -s * c * torch.tanh(x / 2)  # 1 - 2s, without cancelling at 0


def _logsigmoid(x: Tensor) -> Triple:
    s, c = torch.sigmoid(x), torch.sigmoid(-x)
    return x.clamp(max=0) - torch.log1p(torch.exp(-x.abs())), c, -s * c


def _tanh(x: Tensor, cap: float = 1.0) -> Triple:
    t, q = torch.tanh(x / cap), _sech2(x / cap)
    return torch.where(x.abs() < 1e-100, x, cap * t), q, -2 * t * q / cap  # x / cap may be subnormal


def _tanhshrink(x: Tensor) -> Triple:
    t, y = torch.tanh(x), x * x
    near = (
        x * y * (1 / 3 + y * (-2 / 15 + y * (17 / 315 + y * (-62 / 2835 + y * (1382 / 155925 - y * 21844 / 6081075)))))
    )
    return torch.where(x.abs() < 0.05, near, x - t), t * t, 2 * t * _sech2(x)


def _softsign(x: Tensor) -> Triple:
    d = 1 + x.abs()
    return x / d, d**-2, -2 * torch.sign(x) * d**-3


def _situ(x: Tensor, beta: float) -> Triple:
    t, q = torch.tanh(x / beta), _sech2(x / beta)
    s, c = torch.sigmoid(x), torch.sigmoid(-x)
    d2 = s * (-2 * t * q / beta + 2 * q * c + beta * t * c * (c - s))
    return beta * t * s, q * s + beta * t * s * c, d2


def _hardsigmoid(x: Tensor) -> Triple:
    inside = ((x + 3) / 6, torch.full_like(x, 1 / 6), torch.zeros_like(x))
    return _select(x > -3, _select(x < 3, inside, _constant(x, 1.0)), _constant(x, 0.0))


def _hardswish(x: Tensor) -> Triple:
    inside = (x * (x + 3) / 6, (2 * x + 3) / 6, torch.full_like(x, 1 / 3))
    return _select(x > -3, _select(x < 3, inside, _line(x)), _constant(x, 0.0))


def _hard_mish(x: Tensor) -> Triple:
    inside = (x * (x + 2) / 2, x + 1, torch.ones_like(x))
    return _select(x >= -2, _select(x < 0, inside, _line(x)), _constant(x, 0.0))


def _hardshrink(x: Tensor, lambd: float) -> Triple:
    # NaN and a negative lambd both go through the outer branch, as in abs(x) <= lambd ? 0 : x.
    return _select((x >= -lambd) & (x <= lambd), _constant(x, 0.0), _line(x))


def _softshrink(x: Tensor, lambd: float) -> Triple:
    return _select(x > lambd, _line(x, 1, -lambd), _select(x < -lambd, _line(x, 1, lambd), _constant(x, 0.0)))


def _signed_sqrt(x: Tensor) -> Triple:
    r = x.abs().sqrt()
    return torch.sign(x) * r, 0.5 / r, -0.25 * torch.sign(x) / (r * x.abs())


def _end(value: float | None, default: float) -> float:
    return default if value is None else value


TRUTH: dict[str, Callable[..., Triple]] = {
    "identity": _line,
    "relu": lambda x: _step(x, 0, _constant(x, 0.0)),
    "relu6": lambda x: _clip(x, 0, 6),
    "leaky_relu": lambda x, negative_slope=0.01: _step(x, 0, _line(x, negative_slope)),
    "prelu": lambda x, weight=0.25: _step(x, 0, _line(x, weight)),
    "rrelu": lambda x, lower=1 / 8, upper=1 / 3: _step(x, 0, _line(x, (lower + upper) / 2)),
    "elu": lambda x, alpha=1.0: _elu(x, alpha),
    "celu": lambda x, alpha=1.0: _elu(x, alpha, width=alpha),
    "selu": lambda x: _elu(x, 1.6732632423543772848, 1.0507009873554804935),
    "gelu": lambda x, approximate="none": _gelu_tanh(x) if approximate == "tanh" else _gelu(x),
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda x: _swish(x, 1.702),
    "silu": lambda x: _swish(x, 1.0),
    "swish": lambda x, beta=1.0: _swish(x, beta),
    "mish": _mish,
    "softplus": lambda x, beta=1.0, threshold=20.0: _softplus(x, beta, threshold),
    "sigmoid": _sigmoid,
    "logsigmoid": _logsigmoid,
    "tanh": _tanh,
    "tanhshrink": _tanhshrink,
    "softsign": _softsign,
    "hardtanh": lambda x, min_val=-1.0, max_val=1.0: _clip(x, min_val, max_val),
    "clamp": lambda x, min=-1.0, max=1.0: _clip(x, _end(min, -math.inf), _end(max, math.inf)),
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "hardshrink": lambda x, lambd=0.5: _hardshrink(x, lambd),
    "softshrink": lambda x, lambd=0.5: _softshrink(x, lambd),
    "threshold": lambda x, threshold=0.0, value=0.0: _step(x, threshold, _constant(x, value)),
    "fatrelu": lambda x, threshold=0.0: _step(x, threshold, _constant(x, 0.0)),
    "squared_relu": lambda x: _select(x > 0, (x * x, 2 * x, torch.full_like(x, 2.0)), _constant(x, 0.0)),
    "hard_mish": _hard_mish,
    "softcap": lambda x, cap=30.0: _tanh(x, cap),
    "situ": lambda x, beta=4.0: _situ(x, beta),
    "elup1": lambda x: _select(x > 0, _line(x, 1, 1.0), (torch.exp(x.clamp(max=0)),) * 3),
    "square": lambda x: (x * x, 2 * x, torch.full_like(x, 2.0)),
    "signed_sqrt": _signed_sqrt,
    "cos": lambda x: (torch.cos(x), -torch.sin(x), -torch.cos(x)),
    "sin": lambda x: (torch.sin(x), torch.cos(x), -torch.sin(x)),
}


def triple(row: Any, x: Tensor, **params: Any) -> Triple:
    """f, f', f'' at x in float64: this file's, or the row's own reference where a new row has no entry yet."""
    x = x.detach().to(torch.float64)
    if row.name in TRUTH:
        return TRUTH[row.name](x, **params)
    x = x.clone().requires_grad_()
    _, scalars, _ = row.resolve(None, **params)
    value = row.reference(x, *scalars)
    first = _slope(value, x)
    return value.detach(), first.detach(), _slope(first, x).detach()


def _slope(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, elementwise; zeros where y does not depend on x at all."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    grad = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)[0]
    return torch.zeros_like(x) if grad is None else grad


def ulp(true: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of `dtype` at a float64 value; the subnormal step below the normal range."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(true.abs().clamp(min=info.tiny))[1] - 1
    return torch.ldexp(torch.full_like(true, info.eps), exponent.to(torch.float64))


def ulp_error(got: Tensor, true: Tensor, dtype: torch.dtype) -> Tensor:
    """|got - true| in ulp of the true value. Beyond the largest finite number both count as the next power of two."""
    largest = torch.finfo(dtype).max
    top = largest if dtype == torch.float64 else 2.0 ** math.ceil(math.log2(largest))
    got, true = got.to(torch.float64).clamp(-top, top), true.clamp(-top, top)
    error = (got - true).abs() / ulp(true, dtype)
    return torch.where(got.isnan() | true.isnan(), torch.where(got.isnan() & true.isnan(), 0.0, math.inf), error)


def near_roots(function: Callable[[Tensor], Triple], x: Tensor, here: Triple, reach: float = 0.1) -> list[Tensor]:
    """For f, f' and f'': where it has a root within `reach` of x: a change of sign, or a valley that touches zero."""
    return [_near_root(b, h, a, reach) for b, h, a in zip(function(x - reach), here, function(x + reach), strict=True)]


def _near_root(behind: Tensor, here: Tensor, ahead: Tensor, reach: float) -> Tensor:
    crossing = torch.sign(ahead) * torch.sign(behind) < 0
    valley = (ahead.abs() > here.abs()) & (behind.abs() > here.abs()) & (ahead * behind > 0)
    touch = valley & (here.abs() < 0.3 * torch.maximum(ahead.abs(), behind.abs()))
    return crossing | touch | (here == 0)


# Their roots go on for ever, beyond where float64 can step by 0.1; the slope at a root is 1.
PERIODIC = {"cos", "sin"}
