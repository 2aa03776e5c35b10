"""csrc/pieces.h and csrc/cubics.h: that every piece is its function, to what the file says; that every table is wanted.

The accuracy tests hold what the kernels make of it. Rounding may differ by one where another LAPACK fits, so the files
are not compared letter by letter with what pieces.py and cubics.py write.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

CSRC = Path(__file__).parent.parent / "csrc"
NAMES, CUBICS = (
    re.findall(r"^struct (\w+) {", (CSRC / f"{name}.h").read_text(), re.M) for name in ("pieces", "cubics")
)


@cache
def writer(name: str = "pieces") -> ModuleType:
    pytest.importorskip("mpmath")
    spec = importlib.util.spec_from_file_location(name, CSRC / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for their annotations, and cubics.py for pieces
    spec.loader.exec_module(module)
    return module


def cubics() -> ModuleType:
    writer()
    return writer("cubics")


def numbers(text: str) -> list[float]:
    return [float(writer().to_float(float(n))) for n in re.findall(r"(-?[\d.]+(?:e-?\d+)?)f", text)]


def test_the_tables_are_those_that_are_written() -> None:
    assert [table.name for table in writer().TABLES] == NAMES
    assert [table.name for table in cubics().TABLES] == CUBICS
    maths = (CSRC / "math.h").read_text() + (CSRC / "activations.h").read_text()
    assert {name for name in NAMES if f"pieces::{name}" not in maths} == set()
    assert {name for name in CUBICS if f"cubics::{name}" not in maths} == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_piece_is_its_function(name: str) -> None:
    pieces = writer()
    table = next(table for table in pieces.TABLES if table.name == name)
    struct = re.search(
        rf"^struct {name} {{.*?; (\S+), brief (\S+)\n(.*?)^}};", (CSRC / "pieces.h").read_text(), re.M | re.S
    )
    assert struct is not None
    body = struct[3]
    assert numbers(body.splitlines()[0]) == [pytest.approx(table.width or table.offset), pytest.approx(table.limit)]
    arrays = {}
    for label, text in re.findall(r"constexpr float (\w+)\[\].*?= {(.*?)};", body, re.S):
        arrays[label] = [numbers(row) for row in re.findall(r"[^{}]*\d[^{}]*", text)]
        assert {len(row) for row in arrays[label]} == {pieces.COUNT}
    [centres] = arrays["centre"]
    for i, (low, high) in table.pieces().items():
        centre = pieces.Real(centres[i])
        assert centre == 0 or low < centre < high
        points = [low + (high - low) * k / 8 for k in range(9)]
        true = [table.f(x) for x in points]
        largest = max(abs(y) for y in true)
        for label, stated in (("c", float(struct[1])), ("brief", float(struct[2]))):
            for x, y in zip(points, true, strict=True):  # the ends of a piece lie just outside the points of the fit
                got = sum(pieces.Real(column[i]) * (x - centre) ** k for k, column in enumerate(arrays[label]))
                size = max(abs(y), largest / 10) if table.slope else abs(y)
                assert abs(got - y) <= 2 * stated * size + 1e-30, f"{label} of piece {i} at {x}"


def test_every_float_finds_its_piece() -> None:
    """As the kernels number the pieces, in float32: by a sum that pushes all but the low bits out, or by upper bits."""
    pieces = writer()
    for table in pieces.TABLES:
        x = np.linspace(-table.limit if table.signed else 0, table.limit, 100_001, dtype=np.float32)
        if table.width:
            t = (x + np.float32(1.5 * 2**23 * table.width)).view(np.uint32)
        else:
            t = (x + np.float32(table.offset)).view(np.uint32) >> 19
        spans = table.pieces()
        low, high = (np.array([float(spans[i][k]) if i in spans else np.nan for i in range(32)]) for k in range(2))
        place = t & 31
        assert (low[place] - 1e-6 <= x).all(), table.name
        assert (x <= high[place] + 1e-6).all(), table.name


def rows_of(name: str) -> tuple[float, list[list[float]]]:
    """The error that the file states, and the table's rows."""
    struct = re.search(rf"^struct {name} {{.*?; (\S+)\n(.*?)^}};", (CSRC / "cubics.h").read_text(), re.M | re.S)
    assert struct is not None
    body = struct[2]
    table = next(table for table in cubics().TABLES if table.name == name)
    assert f"limit = {table.limit}f" in body
    assert f"per_unit = {table.per_unit};" in body
    assert f"row[{table.rows}][4]" in body
    rows = re.findall(r"{([^{}]+)}", body)
    return float(struct[1]), [numbers(row) for row in rows]


@pytest.mark.parametrize("name", CUBICS)
def test_every_cubic_is_its_function(name: str) -> None:
    table = next(table for table in cubics().TABLES if table.name == name)
    stated, rows = rows_of(name)
    assert len(rows) == table.rows
    assert rows[table.numbers[-1] + 1] == [0.0] * 4  # room is left, so that no number stands in another's place
    real = writer().Real
    for n in table.numbers:
        half = real(1) / (2 * table.per_unit)
        points = [half * k / 2 for k in range(0 if n == 0 and not table.signed else -2, 3)]
        true = [table.f(real(n) / table.per_unit + r) for r in points]
        largest = max(abs(y) for y in true)
        for r, y in zip(points, true, strict=True):
            got = sum(c * r**k for k, c in enumerate(rows[n % table.rows]))
            size = max(abs(y), largest / 10) if table.slope else abs(y)
            assert abs(got - y) <= 2 * stated * size, f"row {n} at {r}"


def test_every_float_finds_its_row() -> None:
    """As the kernels number the rows, in float32: by a sum that pushes all but the low bits out."""
    for table in cubics().TABLES:
        x = np.linspace(-table.limit if table.signed else 0, table.limit, 100_001, dtype=np.float32)
        magic = np.float32(1.5 * 2**23 / table.per_unit)
        place = (x + magic).view(np.uint32) & table.rows - 1
        n = np.round(x.astype(float) * table.per_unit).astype(int)
        assert (place == n % table.rows).all(), table.name
        assert set(n) == set(table.numbers), table.name
        r = x - ((x + magic) - magic)
        assert (r == x.astype(float) - n / table.per_unit).all(), table.name
