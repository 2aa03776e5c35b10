"""Where the coefficients in math.h come from: weighted least squares in high precision, driven to minimax by
Lawson's reweighting, then rounded to the type one coefficient at a time, refitting the rest.

    python csrc/minimax.py [NAME ...]      prints the arrays of math.h with the relative error of each

Needs mpmath. Knows nothing of the rest of the project.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp

mp.mp.dps = 90
SQRT2PI = mp.sqrt(2 * mp.pi)


def tail(a: mp.mpf) -> mp.mpf:
    """exp(a^2 / 2) times the upper tail of the normal distribution at a (Mills' ratio / sqrt(2 pi))."""
    return mp.exp(a * a / 2) * mp.erfc(a / mp.sqrt(2)) / 2


def slope(a: mp.mpf) -> mp.mpf:
    """tail(a) - a phi(0): exp(a^2 / 2) times the derivative of GELU at -a."""
    return tail(a) - a / SQRT2PI


def tail_far(s: mp.mpf) -> mp.mpf:
    """a tail(a) as a function of s = 1 / a^2."""
    return tail(1 / mp.sqrt(s)) / mp.sqrt(s) if s > mp.mpf(10) ** -4 else (1 - s + 3 * s**2 - 15 * s**3) / SQRT2PI


def tail_lifted(a: mp.mpf) -> mp.mpf:
    """tail(a) e^(a / 2), which hardly varies on [0, 5]: a better conditioned polynomial than tail itself."""
    return tail(a) * mp.exp(a / 2)


def slope_far(s: mp.mpf) -> mp.mpf:
    return s * tail_far(s) - 1 / SQRT2PI


def folded(a: float) -> mp.mpf:
    """(a - 4) / (a + 4): the positive numbers on [-1, 1]."""
    return (mp.mpf(a) - 4) / (mp.mpf(a) + 4)


def unfolded(t: mp.mpf) -> mp.mpf:
    return 4 * (1 + t) / (1 - t)


ROOT = mp.findroot(slope, 0.7517915)


@dataclass(frozen=True)
class Fit:
    """f(x) ~ P(x) on [lo, hi], relative error."""

    name: str
    f: Callable[[mp.mpf], mp.mpf]
    lo: mp.mpf
    hi: mp.mpf
    degree: int
    dtype: str = "float"
    weight: Callable[[mp.mpf], mp.mpf] | None = None  # of the error; 1 / f if None


def log1p_series(s2: mp.mpf) -> mp.mpf:
    s = mp.sqrt(s2)
    return (mp.atanh(s) / s - 1) / s2 if s2 > 0 else mp.mpf(1) / 3


def log1p_rest(z: mp.mpf) -> mp.mpf:
    return (mp.log1p(z) - z) / z**2 if z > 0 else mp.mpf(-1) / 2


def centre(f: Callable[[mp.mpf], mp.mpf], near: int = 2) -> mp.mpf:
    """The float nearest to `near` at which f is very nearly one too: rounding the first coefficient costs nothing."""
    step = mp.mpf(2) ** -22
    for i in range(10000):
        c = near + (i // 2 if i % 2 else -(i // 2)) * step
        if abs(f(c) / to_dtype(f(c), "float") - 1) < mp.mpf(10) ** -10:
            return c
    raise ArithmeticError("no centre found")


def tanhshrink_series(x2: mp.mpf) -> mp.mpf:
    x = mp.sqrt(x2)
    return (x - mp.tanh(x)) / x**3 if x2 > 0 else mp.mpf(1) / 3


def exp_series(r: mp.mpf) -> mp.mpf:
    return (mp.expm1(r) - r) / r**2 if abs(r) > mp.mpf(10) ** -30 else mp.mpf(1) / 2 + r / 6


def slope_over_root(a: mp.mpf) -> mp.mpf:
    return slope(a) / (ROOT - a) if abs(ROOT - a) > mp.mpf(10) ** -40 else -mp.diff(slope, ROOT)


def to_dtype(x: mp.mpf, dtype: str) -> mp.mpf:
    if dtype == "double":
        return mp.mpf(float(x))
    return mp.mpf(struct.unpack("f", struct.pack("f", float(x)))[0])


def log1p_weight(z: mp.mpf) -> mp.mpf:
    """What an error of log1p_rest is worth, relative to log(1 + z)."""
    return z**2 / mp.log1p(z) + mp.mpf(10) ** -9 if z > 0 else mp.mpf(10) ** -9


def exp_weight(r: mp.mpf) -> mp.mpf:
    return r**2 / mp.exp(r) + mp.mpf(10) ** -9


HALF_LN2 = mp.log(2) / 2 * mp.mpf("1.002")  # a little more: the reduction may round to the neighbour
TAIL_CENTRE, SLOPE_CENTRE, MILLS_CENTRE = centre(tail_lifted), centre(slope_over_root), centre(tail, near=3)
FITS = [
    Fit("exp", exp_series, -HALF_LN2, HALF_LN2, 4, weight=exp_weight),
    Fit("exp", exp_series, -HALF_LN2, HALF_LN2, 10, dtype="double"),
    Fit("log1p_short", log1p_rest, mp.mpf(0), mp.mpf(1), 9),
    Fit("log1p", log1p_series, mp.mpf(0), mp.mpf(1) / 9, 10, dtype="double"),
    Fit("tanhshrink", tanhshrink_series, mp.mpf(0), mp.mpf(1), 16, dtype="double"),
    Fit("tail", lambda t: tail(unfolded(t)) * (unfolded(t) + 4), mp.mpf(-1), folded(39), 22, dtype="double"),
    Fit("slope", lambda t: slope_over_root(unfolded(t)), mp.mpf(-1), folded(39), 20, dtype="double"),
    Fit("tail_short", lambda t: tail_lifted(TAIL_CENTRE + t), -TAIL_CENTRE, 5 - TAIL_CENTRE, 13),
    Fit("tail_far", tail_far, mp.mpf(0), mp.mpf(1) / 16, 7),
    Fit("slope_far", slope_far, mp.mpf(0), mp.mpf(1) / 16, 6),
    Fit("slope_short", lambda t: slope_over_root(SLOPE_CENTRE + t), -SLOPE_CENTRE, 5 - SLOPE_CENTRE, 12),
    Fit("mills_short", lambda t: tail(MILLS_CENTRE + t), -MILLS_CENTRE, 5 - MILLS_CENTRE, 15),
    # For results that will be rounded to 16 bits.
    Fit("exp_brief", exp_series, -HALF_LN2, HALF_LN2, 3, weight=exp_weight),
    Fit("log1p_brief", log1p_rest, mp.mpf(0), mp.mpf(1), 5, weight=log1p_weight),
    Fit("tail_brief", lambda t: tail_lifted(2 + t), mp.mpf(-2), mp.mpf(3), 9),
    Fit("mills_brief", lambda t: tail(2 + t), mp.mpf(-2), mp.mpf(3), 11),
    Fit("slope_brief", lambda t: slope_over_root(2 + t), mp.mpf(-2), mp.mpf(3), 9),
]


def nodes(fit: Fit, count: int) -> list[mp.mpf]:
    cheb = [mp.cos(mp.pi * (mp.mpf(2) * i + 1) / (2 * count)) for i in range(count)]
    return [(fit.lo + fit.hi) / 2 + (fit.hi - fit.lo) / 2 * c for c in cheb]


def solve(fit: Fit, fixed: dict[int, mp.mpf], rounds: int) -> list[mp.mpf]:
    """The coefficients; those in `fixed` are kept."""
    width = fit.degree + 1
    xs = nodes(fit, 6 * width)
    fs = [fit.f(x) for x in xs]
    scales = [fit.weight(x) if fit.weight else 1 / f for x, f in zip(xs, fs, strict=True)]
    free = [j for j in range(width) if j not in fixed]
    lawson = [mp.mpf(1)] * len(xs)
    best: tuple[mp.mpf, list[mp.mpf]] | None = None
    for _ in range(rounds):
        rows, rhs = [], []
        for x, f, w, scale in zip(xs, fs, lawson, scales, strict=True):
            row = [x**j * scale * mp.sqrt(w) for j in range(width)]
            rows.append([row[j] for j in free])
            rhs.append(f * scale * mp.sqrt(w) - sum(row[j] * c for j, c in fixed.items()))
        if free:
            a, b = mp.matrix(rows), mp.matrix(rhs)
            x = mp.lu_solve(a.T * a, a.T * b)
            coef = [fixed[j] if j in fixed else x[free.index(j)] for j in range(width)]
        else:
            coef = [fixed[j] for j in range(width)]
        errors = [abs(evaluate(coef, x) - f) * abs(scale) for x, f, scale in zip(xs, fs, scales, strict=True)]
        worst = max(errors)
        if best is None or worst < best[0]:
            best = worst, coef
        total = sum(w * e for w, e in zip(lawson, errors, strict=True))
        lawson = [w * e / total * len(xs) + mp.mpf(10) ** -12 for w, e in zip(lawson, errors, strict=True)]
        if not free:
            break
    assert best is not None
    return best[1]


def evaluate(coef: list[mp.mpf], x: mp.mpf) -> mp.mpf:
    return sum(c * x**j for j, c in enumerate(coef))


def fit_rounded(fit: Fit) -> tuple[list[mp.mpf], mp.mpf, mp.mpf]:
    ideal = solve(fit, {}, 30)
    fixed: dict[int, mp.mpf] = {}
    coef = ideal
    for j in range(fit.degree + 1):
        fixed[j] = to_dtype(coef[j], fit.dtype)
        coef = solve(fit, fixed, 4)
    xs = nodes(fit, 997)

    def worst(c: list[mp.mpf]) -> mp.mpf:
        weight = fit.weight or (lambda x: 1 / fit.f(x))
        return max(abs((evaluate(c, x) - fit.f(x)) * weight(x)) for x in xs)

    return coef, worst(ideal), worst(coef)


def main(names: list[str]) -> None:
    suffix = {"float": "f", "double": ""}
    for fit in FITS:
        if names and fit.name not in names:
            continue
        coef, ideal, rounded = fit_rounded(fit)
        print(f"// {fit.name}, {fit.dtype}: relative error {mp.nstr(ideal, 3)}, rounded {mp.nstr(rounded, 3)}")
        digits = 9 if fit.dtype == "float" else 17
        print(", ".join(mp.nstr(c, digits) + suffix[fit.dtype] for c in coef))
    centres = {"tail": TAIL_CENTRE, "slope": SLOPE_CENTRE, "mills": MILLS_CENTRE}
    print("// centres: " + ", ".join(f"{name} {mp.nstr(c, 12)}" for name, c in centres.items()))
    root = to_dtype(ROOT, "float")
    print(f"// root of GELU' at -{mp.nstr(ROOT, 40)}: float {mp.nstr(root, 9)} + {mp.nstr(ROOT - root, 9)}")
    root = to_dtype(ROOT, "double")
    print(f"// double {mp.nstr(root, 17)} + {mp.nstr(ROOT - root, 17)}")


if __name__ == "__main__":
    main(sys.argv[1:])
