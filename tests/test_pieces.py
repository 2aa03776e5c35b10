"""csrc/pieces.h: that every piece is its function, to what the file says of it; and that every table is wanted.

The accuracy tests hold what the kernels make of it. Rounding may differ by one where another LAPACK fits, so the file
is not compared letter by letter with what pieces.py writes.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
NAMES = re.findall(r"^struct (\w+) {", (CSRC / "pieces.h").read_text(), re.M)


@cache
def writer() -> ModuleType:
    pytest.importorskip("mpmath")
    spec = importlib.util.spec_from_file_location("pieces", CSRC / "pieces.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pieces"] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def numbers(text: str) -> list[float]:
    return [float(writer().to_float(float(n))) for n in re.findall(r"(-?[\d.]+(?:e-?\d+)?)f", text)]


def test_the_tables_are_those_that_are_written() -> None:
    assert [table.name for table in writer().TABLES] == NAMES
    maths = (CSRC / "math.h").read_text() + (CSRC / "activations.h").read_text()
    assert {name for name in NAMES if f"pieces::{name}" not in maths} == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_piece_is_its_function(name: str) -> None:
    pieces = writer()
    table = next(table for table in pieces.TABLES if table.name == name)
    struct = re.search(rf"^struct {name} {{.*?; ([\d.e-]+)\n(.*?)^}};", (CSRC / "pieces.h").read_text(), re.M | re.S)
    assert struct is not None
    stated, body = float(struct[1]), struct[2]
    width, limit = numbers(body.splitlines()[0])
    assert (width, limit) == (table.width, pytest.approx(table.limit))
    arrays = [numbers(array) for array in re.findall(r"{([^{}]*)}", body)]
    rest = arrays.pop(0) if "rest[]" in body else [0.0] * pieces.COUNT
    assert [len(array) for array in arrays] == [pieces.COUNT] * (table.degree + 1)
    last = min(pieces.COUNT + table.first, int(limit / width + 0.5) + 1)
    for n in range(table.first, last):
        points = [width * (k / 8 - 0.5) for k in range(9)]
        points = [r for r in points if r >= 0 or n != 0 or table.first != 0]
        true = [table.f(pieces.Real(n * width) + r) for r in points]
        largest = max(abs(y) for y in true)
        for r, y in zip(points, true, strict=True):  # the ends of a piece lie just outside the points of the fit
            got = rest[n] + sum(pieces.Real(column[n]) * pieces.Real(r) ** k for k, column in enumerate(arrays))
            size = max(abs(y), largest / 10) if table.slope else abs(y)
            assert abs(got - y) <= 2 * stated * size + 1e-30, f"piece {n} at {r}"
