"""Writes cubics.h: functions as hundreds of cubics, for values that read a row of a table for each lane (math.h).

    python csrc/cubics.py

Fitted as pieces.py fits. Needs mpmath and numpy. Knows nothing of the rest of the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pieces import (
    Function,
    Piece,
    Real,
    density,
    fit,
    gelu_tanh,
    gelu_tanh_slope,
    mish_gate,
    mish_slope,
    number,
    upper_tail,
)


@dataclass(frozen=True)
class Cubics:
    """f as a cubic in x - n / per_unit about each such number of [0, limit], or of [-limit, limit] if `signed`."""

    name: str
    means: str
    f: Function
    limit: float
    per_unit: int
    signed: bool = False
    slope: bool = False  # good to 4 ulp, and absolutely beside a root

    @property
    def numbers(self) -> range:
        last = round(self.limit * self.per_unit)
        return range(-last if self.signed else 0, last + 1)

    @property
    def rows(self) -> int:
        """A power of two, so that the low bits of n are a place in the table, whatever n is."""
        return 1 << (len(self.numbers) - 1).bit_length()

    def cubic(self, n: int) -> Piece:
        centre, half = Real(n) / self.per_unit, Real(1) / (2 * self.per_unit)
        low = centre - half if self.signed or n else Real(0)
        return Piece(centre, *fit(self, low, centre + half, centre, 3))


TABLES = [
    Cubics("gelu", "a Q(a), Q the upper tail of the normal distribution", lambda a: a * upper_tail(a), 5.75, 64),
    Cubics("gelu_slope", "Q(a) - a phi(a)", lambda a: upper_tail(a) - a * density(a), 5.75, 64, slope=True),
    Cubics("gelu_tanh", "minus GELU's tanh form at -a", lambda a: -gelu_tanh(-a), 5.375, 64),
    Cubics("gelu_tanh_slope", "its derivative at -a", lambda a: gelu_tanh_slope(-a), 5.375, 64, slope=True),
    Cubics("mish", "x tanh(softplus(x))", lambda x: x * mish_gate(x), 7.75, 64, signed=True),
    Cubics("mish_slope", "its derivative", mish_slope, 7.75, 32, signed=True, slope=True),
]


def text_of(table: Cubics) -> str:
    cubics = {n % table.rows: table.cubic(n) for n in table.numbers}
    worst = max(cubic.error for cubic in cubics.values())
    nothing = [Real(0)] * 4
    rows = [cubics[i].c if i in cubics else nothing for i in range(table.rows)]
    texts = ["{" + ", ".join(map(number, row)) + "}" for row in rows]
    lines = [f"struct {table.name} {{  // {table.means}; {worst:.1g}"]
    lines += [f"  static constexpr float limit = {table.limit}f;"]
    lines += [f"  static constexpr int per_unit = {table.per_unit};"]
    lines += [f"  alignas(64) static constexpr float row[{table.rows}][4] = {{"]
    lines += [",\n".join("    " + ", ".join(texts[i : i + 2]) for i in range(0, table.rows, 2)) + "};"]
    return "\n".join([*lines, "};"])


HEADER = """\
// Functions as cubics about n / per_unit for each n: written by cubics.py. Read by `piecewise` in math.h.
//
// row[n modulo their number][k] goes with (x - n / per_unit)^k. The number beside each name is the largest relative
// error before any rounding of the sum (of the slopes: beside a root, of a tenth of the largest value about that n).
// clang-format off
#pragma once

namespace fusedact::cubics {

"""
FOOTER = """

}  // namespace fusedact::cubics
"""


def main() -> None:
    text = HEADER + "\n\n".join(text_of(table) for table in TABLES) + FOOTER
    (Path(__file__).parent / "cubics.h").write_text(text)


if __name__ == "__main__":
    main()
