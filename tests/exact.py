"""The truth by mpmath: every activation as its defining formula, differentiated by second-order jets, never by hand.

Knows nothing of fusedact and nothing of floating point: a formula here may cancel as much as it likes, the working
precision (1500 bits) is above anything that float64 can ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
from mpmath import mp, mpf

PRECISION = 1500  # bits; 1 + erf(x) loses 1075 of them before float64 underflows


class Jet:
    """A value with its first and second derivative along x: arithmetic is Leibniz' rule, `chain` is Faa di Bruno's."""

    def __init__(self, value: Any, first: Any = 0, second: Any = 0) -> None:
        self.value, self.first, self.second = mpf(value), mpf(first), mpf(second)

    def chain(self, value: Any, first: Any, second: Any) -> Jet:
        """g(self), from g, g' and g'' at self.value."""
        return Jet(value, first * self.first, second * self.first**2 + first * self.second)

    def __neg__(self) -> Jet:
        return Jet(-self.value, -self.first, -self.second)

    def __add__(self, other: Any) -> Jet:
        other = jet(other)
        return Jet(self.value + other.value, self.first + other.first, self.second + other.second)

    def __sub__(self, other: Any) -> Jet:
        return self + -jet(other)

    def __mul__(self, other: Any) -> Jet:
        other = jet(other)
        return Jet(
            self.value * other.value,
            self.first * other.value + self.value * other.first,
            self.second * other.value + 2 * self.first * other.first + self.value * other.second,
        )

    def __truediv__(self, other: Any) -> Jet:
        other = jet(other)
        v = other.value
        return self * other.chain(1 / v, -1 / v**2, 2 / v**3)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Any) -> Jet:
        return jet(other) - self

    def __rtruediv__(self, other: Any) -> Jet:
        return jet(other) / self

    def __lt__(self, other: Any) -> bool:
        return bool(self.value < jet(other).value)

    def __gt__(self, other: Any) -> bool:
        return bool(self.value > jet(other).value)


def jet(x: Any) -> Jet:
    return x if isinstance(x, Jet) else Jet(x)


def exp(x: Jet) -> Jet:
    e = mp.exp(x.value)
    return x.chain(e, e, e)


def log(x: Jet) -> Jet:
    return x.chain(mp.log(x.value), 1 / x.value, -1 / x.value**2)


def tanh(x: Jet) -> Jet:
    t = mp.tanh(x.value)
    return x.chain(t, 1 - t**2, -2 * t * (1 - t**2))


def erf(x: Jet) -> Jet:
    slope = 2 / mp.sqrt(mp.pi) * mp.exp(-(x.value**2))
    return x.chain(mp.erf(x.value), slope, -2 * x.value * slope)


def sqrt(x: Jet) -> Jet:
    r = mp.sqrt(x.value)
    return x.chain(r, 1 / (2 * r), -1 / (4 * r**3))


def sin(x: Jet) -> Jet:
    s, c = mp.sin(x.value), mp.cos(x.value)
    return x.chain(s, c, -s)


def cos(x: Jet) -> Jet:
    s, c = mp.sin(x.value), mp.cos(x.value)
    return x.chain(c, -s, -c)


def sigmoid(x: Jet) -> Jet:
    return 1 / (1 + exp(-x))


def log1pexp(x: Jet) -> Jet:
    """log(1 + e^x); beyond the working precision it is x, or e^x, to every bit."""
    if x > PRECISION:
        return x
    return exp(x) if x < -PRECISION else log(1 + exp(x))


def clip(x: Jet, low: Any, high: Any) -> Jet:
    return x if x > low and x < high else jet(low if not x > low else high)


def shrink(x: Jet, edge: float, shift: float) -> Jet:
    return x - shift if x > edge else x + shift if x < -edge else jet(0)


def swish(x: Jet, beta: Any) -> Jet:
    return x * sigmoid(beta * x)


def elu(x: Jet, alpha: Any, scale: Any = 1, width: Any = 1) -> Jet:
    return scale * x if x > 0 else (exp(x / width) - 1) * scale * alpha


def gelu(x: Jet, approximate: str) -> Jet:
    if approximate == "tanh":
        return x * (1 + tanh((x + x * x * x * mpf(0.044715)) * mp.sqrt(2 / mp.pi))) / 2
    return x * (1 + erf(x / mp.sqrt(2))) / 2


def softplus(x: Jet, beta: float, threshold: float) -> Jet:
    return x if x * beta > threshold else log1pexp(x * beta) / beta


SELU = {"alpha": 1.6732632423543772848170429916717, "scale": 1.0507009873554804934193349852946}

FORMULAS: dict[str, Callable[..., Jet]] = {
    "identity": lambda x: x,
    "relu": lambda x: x if x > 0 else jet(0),
    "relu6": lambda x: clip(x, 0, 6),
    "leaky_relu": lambda x, negative_slope=0.01: x if x > 0 else x * negative_slope,
    "prelu": lambda x, weight=0.25: x if x > 0 else x * weight,
    "rrelu": lambda x, lower=1 / 8, upper=1 / 3: x if x > 0 else x * ((mpf(lower) + mpf(upper)) / 2),
    "elu": lambda x, alpha=1.0: elu(x, alpha),
    "celu": lambda x, alpha=1.0: elu(x, alpha, width=alpha),
    "selu": lambda x: elu(x, **SELU),
    "gelu": lambda x, approximate="none": gelu(x, approximate),
    "gelu_tanh": lambda x: gelu(x, "tanh"),
    "quick_gelu": lambda x: swish(x, mpf("1.702")),
    "silu": lambda x: swish(x, 1),
    "swish": lambda x, beta=1.0: swish(x, beta),
    "mish": lambda x: x * tanh(log1pexp(x)),
    "softplus": lambda x, beta=1.0, threshold=20.0: softplus(x, beta, threshold),
    "sigmoid": sigmoid,
    "logsigmoid": lambda x: -log1pexp(-x),
    "tanh": tanh,
    "tanhshrink": lambda x: x - tanh(x),
    "softsign": lambda x: x / (1 + (x if x > 0 else -x)),
    "hardtanh": lambda x, min_val=-1.0, max_val=1.0: clip(x, min_val, max_val),
    "clamp": lambda x, min=-1.0, max=1.0: clip(x, -mp.inf if min is None else min, mp.inf if max is None else max),
    "hardsigmoid": lambda x: clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * clip(x + 3, 0, 6) / 6,
    "hardshrink": lambda x, lambd=0.5: x if x > lambd or x < -lambd else jet(0),
    "softshrink": lambda x, lambd=0.5: shrink(x, lambd, lambd),
    "threshold": lambda x, threshold=0.0, value=0.0: x if x > threshold else jet(value),
    "fatrelu": lambda x, threshold=0.0: x if x > threshold else jet(0),
    "squared_relu": lambda x: x * x if x > 0 else jet(0),
    "hard_mish": lambda x: x * clip(x + 2, 0, 2) / 2,
    "softcap": lambda x, cap=30.0: tanh(x / cap) * cap,
    "situ": lambda x, beta=4.0: tanh(x / beta) * beta * sigmoid(x),
    "elup1": lambda x: elu(x, 1) + 1,
    "square": lambda x: x * x,
    "signed_sqrt": lambda x: sqrt(x) if x > 0 else -sqrt(-x) if x < 0 else jet(0),
    "cos": cos,
    "sin": sin,
}


def exact(name: str, points: list[float], **params: Any) -> list[tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]]:
    """f, f' and f'' at each (finite, not a kink) point."""
    with mp.workprec(PRECISION):
        jets = [FORMULAS[name](Jet(x, 1), **params) for x in points]
        return [(j.value, j.first, j.second) for j in jets]
