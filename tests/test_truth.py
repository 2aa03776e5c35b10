"""The references themselves: float64 formulas (truth.py) against mpmath jets (exact.py), both against known values."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from cases import ROWS, row_id
from exact import FORMULAS, exact
from truth import TRUTH, triple

from fusedact.registry import Activation

PARAMETERS = {
    "leaky_relu": {"negative_slope": 0.3},
    "elu": {"alpha": 0.7},
    "celu": {"alpha": 1.3},
    "gelu": {"approximate": "tanh"},
    "swish": {"beta": 1.702},
    "softplus": {"beta": 0.8, "threshold": 5.0},
    "hardtanh": {"min_val": -0.3, "max_val": 2.0},
    "clamp": {"min": None, "max": 0.4},
    "hardshrink": {"lambd": 1.1},
    "softshrink": {"lambd": 0.9},
    "threshold": {"threshold": 0.2, "value": -3.0},
    "fatrelu": {"threshold": 0.1},
    "softcap": {"cap": 4.0},
    "situ": {"beta": 25.0},
    "rrelu": {"lower": 0.1, "upper": 0.2},
    "prelu": {"weight": -0.4},
}


def points() -> list[float]:
    draw = random.Random(2).uniform
    everywhere = [draw(-1, 1) * 2.0**e for e in range(-140, 127, 3)]
    return everywhere + [draw(-6, 6) for _ in range(120)] + [draw(-30, 30) for _ in range(40)]


CASES = [(name, {}) for name in FORMULAS] + list(PARAMETERS.items())


def test_both_tables_hold_the_same_names() -> None:
    assert set(TRUTH) == set(FORMULAS)


@pytest.mark.parametrize(
    ("name", "params"), CASES, ids=lambda v: v if isinstance(v, str) else ",".join(v) or "defaults"
)
def test_float64_formulas_agree_with_mpmath(name: str, params: dict[str, object]) -> None:
    at = points()
    wanted = torch.tensor([[float(v) for v in jet] for jet in exact(name, at, **params)], dtype=torch.float64).T
    got = torch.stack(TRUTH[name](torch.tensor(at, dtype=torch.float64), **params))
    # Relative, down to far below the smallest float32: 1e-12 is five orders finer than the bounds it will judge.
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-46)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("sigmoid", [-1.0, 0.0, 1.0], [0.26894142136999512, 0.5, 0.73105857863000488]),
        ("tanh", [-1.0, 0.0, 1.0], [-0.76159415595576489, 0.0, 0.76159415595576489]),
        ("relu", [-1.0, 0.0, 1.0], [0.0, 0.0, 1.0]),
        ("gelu", [-6.0], [-6 * 9.865876450377e-10]),
    ],
)
def test_known_values(name: str, x: list[float], y: list[float]) -> None:
    got = TRUTH[name](torch.tensor(x, dtype=torch.float64))[0]
    torch.testing.assert_close(got, torch.tensor(y, dtype=torch.float64), rtol=1e-8, atol=0)


def test_largest_slopes() -> None:
    x = torch.linspace(-8, 8, 16001, dtype=torch.float64)
    for name, largest in (("sigmoid", 0.25), ("tanh", 1.0)):
        slope = TRUTH[name](x)[1]
        assert abs(slope.max() - largest) < 1e-15
        assert x[slope.argmax()].abs() < 1e-12


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_references_of_the_rows_agree(row: Activation) -> None:
    """`fusedact.reference`, which other tests differentiate, to 1e-11 of its own size, derivatives included."""
    if row.name not in TRUTH:
        pytest.skip("no second opinion on this row")
    x = torch.tensor(points(), dtype=torch.float64)
    x = x[x.abs() < 1e30]
    without_entry = SimpleNamespace(name="", resolve=row.resolve, reference=row.reference)
    for got, wanted in zip(triple(without_entry, x), TRUTH[row.name](x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-15)
