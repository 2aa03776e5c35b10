"""Writes pieces.h: functions as 32 polynomials each, for values that look coefficients up (math.h).

    python csrc/pieces.py

Each piece is fitted by weighted least squares, driven to minimax by Lawson's reweighting, and rounded to float one
coefficient at a time, refitting the rest. Needs mpmath and numpy. Knows nothing of the rest of the project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath as mp
import numpy as np

mp.mp.dps = 40
Real = mp.mpf
Function = Callable[[Real], Real]
COUNT = 32  # what two vectors of AVX-512 hold


def upper_tail(a: Real) -> Real:
    """Of the normal distribution: 1 - Phi(a)."""
    return mp.erfc(a / mp.sqrt(2)) / 2


def density(a: Real) -> Real:
    return mp.exp(-a * a / 2) / mp.sqrt(2 * mp.pi)


def sigmoid(t: Real) -> Real:
    return 1 / (1 + mp.exp(-t))


LINEAR, CUBIC = 2 * mp.sqrt(2 / mp.pi), 2 * mp.sqrt(2 / mp.pi) * Real("0.044715")  # of GELU's tanh form, as x sigma(t)


def gelu_tanh(x: Real) -> Real:
    return x * sigmoid(LINEAR * x + CUBIC * x**3)


def gelu_tanh_slope(x: Real) -> Real:
    s = sigmoid(LINEAR * x + CUBIC * x**3)
    return s + x * (LINEAR + 3 * CUBIC * x**2) * s * (1 - s)


def silu_slope(a: Real) -> Real:
    return sigmoid(-a) * (1 - a * sigmoid(a))


def mish_gate(x: Real) -> Real:
    w = mp.exp(x)
    return w * (2 + w) / (2 + 2 * w + w**2)


def mish_slope(x: Real) -> Real:
    w = mp.exp(x)
    return w * (4 * (1 + x) + w * (6 + 4 * x) + 4 * w**2 + w**3) / (2 + 2 * w + w**2) ** 2


@dataclass(frozen=True)
class Table:
    """f on pieces of `width`, a power of two, about its multiples from first * width on; good where |x| <= limit."""

    name: str
    means: str
    f: Function
    width: float
    degree: int
    limit: float
    first: int = 0
    slope: bool = False  # 4 ulp, and absolute beside a root; else the value at the centre is in two parts


TABLES = [
    Table("silu", "a sigma(-a)", lambda a: a * sigmoid(-a), 0.5, 5, 15.7),
    Table("silu_slope", "the derivative of x sigma(x) at -a", silu_slope, 0.5, 6, 15.7, slope=True),
    Table("gelu", "a Q(a), Q the upper tail of the normal distribution", lambda a: a * upper_tail(a), 0.25, 6, 5.12),
    Table("gelu_slope", "Q(a) - a phi(a)", lambda a: upper_tail(a) - a * density(a), 0.25, 6, 5.37, slope=True),
    Table("gelu_tanh", "minus GELU's tanh form at -a", lambda a: -gelu_tanh(-a), 0.25, 7, 4.87),
    Table("gelu_tanh_slope", "its derivative at -a", lambda a: gelu_tanh_slope(-a), 0.25, 7, 5.62, slope=True),
    Table("mish_gate", "tanh(softplus(x)), which mish multiplies by x", mish_gate, 0.5, 6, 7.7, first=-16),
    Table("mish_slope", "its derivative", mish_slope, 0.5, 6, 7.7, first=-16, slope=True),
    Table("sigmoid", "sigma(-a)", lambda a: sigmoid(-a), 0.5, 5, 15.7),
    Table("softplus", "log(1 + e^-a)", lambda a: mp.log1p(mp.exp(-a)), 0.5, 5, 15.7),
    Table("tanh", "tanh(a), which is 1 from 9.02 on", mp.tanh, 0.5, 7, 15.7),
]


def to_float(x: Real) -> Real:
    return Real(float(np.float32(float(x))))


def fit(table: Table, n: int) -> tuple[list[Real], float]:
    """What the first coefficient lost, then the coefficients, about n * width; and the largest relative error."""
    centre, half = n * Real(table.width), Real(table.width) / 2
    low = Real(0) if n == 0 and table.first == 0 else -half
    count = 30
    nodes = [(low + half) / 2 + (half - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    values = [table.f(centre + r) for r in nodes]
    sizes = np.array([float(abs(v)) for v in values])
    weight = 1 / (np.maximum(sizes, max(sizes.min(), sizes.max() / 10)) if table.slope else sizes)
    scaled = np.array([float(r / half) for r in nodes])
    middle = table.f(centre)
    first = to_float(middle)
    rest = Real(0) if table.slope else to_float(middle - first)
    coefficients = [rest, first]
    left = [v - first - rest for v in values]
    for j in range(1, table.degree + 1):
        powers = np.array([[s**k for k in range(j, table.degree + 1)] for s in scaled])
        wanted = np.array([float(v) for v in left])
        lawson, best = np.ones(count), (np.inf, wanted)
        for _ in range(12):
            scale = weight * np.sqrt(lawson)
            found = np.linalg.lstsq(powers * scale[:, None], wanted * scale, rcond=None)[0]
            error = np.abs((powers @ found - wanted) * weight)
            if error.max() < best[0]:
                best = error.max(), found
            lawson = lawson * error / (lawson * error).sum() * count + 1e-9
        coefficients.append(to_float(best[1][0] / float(half) ** j))
        left = [v - coefficients[-1] * r**j for v, r in zip(left, nodes, strict=True)]
    return coefficients, max(abs(float(v)) * w for v, w in zip(left, weight, strict=True))


def number(x: Real) -> str:
    text = f"{float(x):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def rows(values: list[Real]) -> str:
    lines, line = [], "     "
    for value in values:
        item = f" {number(value)},"
        if len(line) + len(item) > 119:
            lines.append(line)
            line = "     "
        line += item
    return "\n".join([*lines, line.rstrip(",")])


def text_of(table: Table) -> str:
    used = range(table.first, min(COUNT + table.first, int(table.limit / table.width + 0.5) + 1))
    fitted = {n % COUNT: fit(table, n) for n in used}
    nothing = [Real(0)] * (table.degree + 2), 0.0
    columns = list(zip(*(fitted.get(i, nothing)[0] for i in range(COUNT)), strict=True))
    worst = max(error for _, error in fitted.values())
    lines = [f"struct {table.name} {{  // {table.means}; {worst:.1g}"]
    lines += [f"  static constexpr float width = {table.width}f, limit = {table.limit}f;"]
    if not table.slope:
        lines += ["  alignas(64) static constexpr float rest[] = {", rows(list(columns[0])) + "};"]
    lines += [f"  alignas(64) static constexpr float c[][{COUNT}] = {{"]
    lines += [",\n".join("    {\n" + rows(list(column)) + "}" for column in columns[1:]) + "};", "};"]
    return "\n".join(lines)


HEADER = """\
// Functions as polynomials piece by piece: written by pieces.py, which says how. Read by `piecewise` in math.h.
//
// Piece n is about n * width, and stands at n modulo 32. c[0] + rest is the value at its centre; c[k] goes with r^k.
// The number beside each name is the largest relative error before any rounding of the sum (of the slopes: beside a
// root, of a tenth of the piece's largest value).
// clang-format off
#pragma once

namespace fusedact::pieces {

"""
FOOTER = """

}  // namespace fusedact::pieces
"""


def main() -> None:
    text = HEADER + "\n\n".join(text_of(table) for table in TABLES) + FOOTER
    (Path(__file__).parent / "pieces.h").write_text(text)


if __name__ == "__main__":
    main()
