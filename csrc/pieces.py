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
VALUES, SLOPES, BRIEF = 5e-8, 7e-8, 3e-6  # relative errors: of results, of derivatives, of either in 16 bits


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
    """f as a polynomial on each of 32 pieces of [0, limit], or of [-limit, limit] if `signed`.

    The pieces are as wide as `width`, about its multiples; or their number is the last bit of the exponent and the
    first four of the mantissa of x + offset, which goes through two octaves: pieces become narrower where the offset
    is negative, wider where it is not.
    """

    name: str
    means: str
    f: Function
    limit: float
    width: float = 0.0
    offset: float = 0.0
    signed: bool = False
    slope: bool = False  # good to 4 ulp, and absolutely beside a root

    def pieces(self) -> dict[int, tuple[Real, Real]]:
        """Where each piece begins and ends, by its place in the table."""
        least = -self.limit if self.signed else 0.0
        if self.width:
            first = -COUNT // 2 if self.signed else 0
            ends = {n % COUNT: ((n - 0.5) * self.width, (n + 0.5) * self.width) for n in range(first, first + COUNT)}
        else:
            octave = 2.0 ** np.floor(np.log2(min(abs(self.offset), abs(self.limit + self.offset))))
            ends = {}
            for start, size in ((octave * k * (1 + i / 16), octave * k / 16) for k in (1, 2) for i in range(16)):
                place = int(np.float32(start).view(np.uint32)) >> 19 & COUNT - 1
                sums = (start, start + size) if self.offset > 0 else (-start - size, -start)
                ends[place] = sums[0] - self.offset, sums[1] - self.offset
        kept = {i: (max(low, least), min(high, self.limit)) for i, (low, high) in ends.items()}
        return {i: (Real(low), Real(high)) for i, (low, high) in kept.items() if low < high}


TABLES = [
    Table("silu", "a sigma(-a)", lambda a: a * sigmoid(-a), 15.7, width=0.5),
    Table("silu_slope", "the derivative of x sigma(x) at -a", silu_slope, 11.75, offset=4.125, slope=True),
    Table(
        "gelu", "a Q(a), Q the upper tail of the normal distribution", lambda a: a * upper_tail(a), 5.375, offset=-7.375
    ),
    Table("gelu_slope", "Q(a) - a phi(a)", lambda a: upper_tail(a) - a * density(a), 5.375, offset=-7.375, slope=True),
    Table("gelu_tanh", "minus GELU's tanh form at -a", lambda a: -gelu_tanh(-a), 5.375, offset=-7.375),
    Table("gelu_tanh_slope", "its derivative at -a", lambda a: gelu_tanh_slope(-a), 5.375, offset=-7.375, slope=True),
    Table("mish_gate", "tanh(softplus(x)), which mish multiplies by x", mish_gate, 7.7, width=0.5, signed=True),
    Table("mish_slope", "its derivative", mish_slope, 7.7, width=0.5, signed=True, slope=True),
    Table("sigmoid", "sigma(-a)", lambda a: sigmoid(-a), 15.7, width=0.5),
    Table("softplus", "log(1 + e^-a)", lambda a: mp.log1p(mp.exp(-a)), 15.7, width=0.5),
    Table("tanh", "tanh(a), which is 1 from 9.02 on", mp.tanh, 11.75, offset=4.0625),
]


def to_float(x: Real) -> Real:
    return Real(float(np.float32(float(x))))


@dataclass(frozen=True)
class Piece:
    centre: Real
    c: list[Real]
    error: float  # the largest relative one


def centre_of(table: Table, low: Real, high: Real) -> Real:
    """Near the middle, where f is very nearly a float, so that the first coefficient has no error (Gal 1986)."""
    if low == 0 and table.f(Real(0)) == 0:
        return Real(0)
    step = Real(2) ** -14
    middle = mp.nint((low + high) / 2 / step) * step
    best = middle, Real(1)
    for i in range(int((high - low) / 8 / step)):  # to one side and the other
        x = middle + (i + 1) // 2 * (-1) ** i * step
        y = table.f(x)
        lost = abs(to_float(y) / y - 1)
        if lost < best[1]:
            best = x, lost
        if lost < Real(2) ** -32:
            break
    return best[0]


def fit(table: Table, low: Real, high: Real, centre: Real, degree: int) -> tuple[list[Real], float]:
    """The coefficients about a centre, floats, and the largest relative error."""
    half, count = (high - low) / 2, 30
    nodes = [(low + high) / 2 - centre + half * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    values = [table.f(centre + r) for r in nodes]
    sizes = np.array([float(abs(v)) for v in values])
    weight = 1 / (np.maximum(sizes, max(sizes.min(), sizes.max() / 10)) if table.slope else sizes)
    scaled = np.array([float(r / half) for r in nodes])
    coefficients = [to_float(table.f(centre))]
    left = [v - coefficients[0] for v in values]
    for j in range(1, degree + 1):
        powers = np.array([[s**k for k in range(j, degree + 1)] for s in scaled])
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


def fitted(table: Table, enough: float) -> dict[int, Piece]:
    """Every piece, with the least degree that is good enough for all."""
    spans = table.pieces()
    centres = {i: centre_of(table, *span) for i, span in spans.items()}
    for degree in range(2, 12):
        pieces = {i: Piece(centres[i], *fit(table, *span, centres[i], degree)) for i, span in spans.items()}
        if max(piece.error for piece in pieces.values()) < enough:
            return pieces
    raise ValueError(f"{table.name}: no degree is good enough")


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


def columns(pieces: dict[int, list[Real]]) -> list[list[Real]]:
    nothing = [Real(0)] * len(next(iter(pieces.values())))
    return [list(column) for column in zip(*(pieces.get(i, nothing) for i in range(COUNT)), strict=True)]


def text_of(table: Table) -> str:
    pieces, brief = fitted(table, SLOPES if table.slope else VALUES), fitted(table, BRIEF)
    [centres] = columns({i: [p.centre] for i, p in pieces.items()})
    index = f"width = {table.width}f" if table.width else f"offset = {table.offset}f"
    worst = [max(p.error for p in some.values()) for some in (pieces, brief)]
    lines = [f"struct {table.name} {{  // {table.means}; {worst[0]:.1g}, brief {worst[1]:.1g}"]
    lines += [f"  static constexpr float {index}, limit = {table.limit}f;"]
    lines += ["  alignas(64) static constexpr float centre[] = {", rows(centres) + "};"]
    for name, some in (("c", pieces), ("brief", brief)):
        lines += [f"  alignas(64) static constexpr float {name}[][{COUNT}] = {{"]
        lines += [",\n".join("    {\n" + rows(c) + "}" for c in columns({i: p.c for i, p in some.items()})) + "};"]
    return "\n".join([*lines, "};"])


HEADER = """\
// Functions as polynomials piece by piece: written by pieces.py, which says how. Read by `piecewise` in math.h.
//
// c[k] goes with (x - centre)^k; brief is shorter, for results of 16 bits. With a width, the piece about n * width is
// at n modulo 32; with an offset, its place is the last bit of the exponent and the first four of the mantissa of
// x + offset. The numbers beside each name are the largest relative errors before any rounding of the sum (of the
// slopes: beside a root, of a tenth of the piece's largest value).
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
