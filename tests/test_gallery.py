"""The gallery: every row can be drawn, and the errors it shows are those that the accuracy contract allows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ROWS, row_id
from truth import TRUTH, ulp_error
from typer.testing import CliRunner

from fusedact import gallery, registry, testing
from fusedact.cli import app
from fusedact.registry import Activation

pytest.importorskip("matplotlib")
rows = pytest.mark.parametrize("row", ROWS, ids=row_id)


@rows
def test_every_row_can_be_drawn(row: Activation) -> None:
    """Three curves with their errors; kinks and zones where the row has them, inside what is drawn."""
    from matplotlib.figure import Figure

    figure = Figure()
    errors = [gallery.measure(row, dtype, 41) for dtype in (torch.float32, torch.bfloat16)]
    gallery.draw(row, figure, errors)
    left, right = figure.axes[0::2], figure.axes[1::2]
    assert [axes.get_ylabel() for axes in left] == ["f", "f'", "f''"]
    reach = gallery.span(row)
    kinks = row.kinks(*row.resolve()[1])
    assert all(abs(kink) < reach for kink in kinks)
    for axes in left:
        assert sum(line.get_linestyle() == ":" for line in axes.lines) == len(kinks)
        assert len(axes.patches) == len(row.saturation())
        assert axes.get_xlim() == (-reach, reach)
    assert [line.get_label().split(",")[0] for line in right[0].lines] == ["float32", "bfloat16"]


@rows
def test_the_errors_shown_are_the_errors(row: Activation) -> None:
    """Against the tests' own truth and ulp, not against the code that the gallery measures with."""
    if row.name not in TRUTH:
        pytest.skip("a row without an entry in tests/truth.py")
    errors = gallery.measure(row, torch.float32, 301)
    y = getattr(__import__("fusedact"), row.name)(errors.x.float())
    expected = ulp_error(y, TRUTH[row.name](errors.x)[0], torch.float32)
    torch.testing.assert_close(errors.ulp["forward"], expected, rtol=1e-3, atol=1e-6)
    bound = row.bound(torch.float32)
    assert errors.worst("forward") <= bound.forward
    assert errors.worst("derivative") <= bound.derivative
    assert errors.worst("second") <= bound.second


def test_errors_are_told_from_correct_rounding() -> None:
    """gelu as torch computes it would show: the gallery's measure is no formality."""
    row = registry.get("gelu")
    x = torch.linspace(-6, -3, 101, dtype=torch.float64).float()
    wrong = testing.ulp_error(torch.nn.functional.gelu(x), testing.truth(row, x)[0])
    assert wrong.max() > 100 * gallery.measure(row, torch.float32, 301).worst("forward")


def test_float64_is_held_against_mpmath() -> None:
    errors = gallery.measure(registry.get("tanh"), torch.float64, 9)
    assert len(errors.x) == 9
    assert 0 < errors.worst("derivative") <= 4


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plot", *arguments], env={"COLUMNS": "200"})


def test_command_line(tmp_path: Path) -> None:
    done = invoke("relu", "GELU", "--output", str(tmp_path), "--markdown")
    assert done.exit_code == 0, done.output
    assert "2 pictures in" in done.output
    for name in ("relu", "gelu"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "index.md").read_text()
    assert "## gelu" in page
    assert "](gelu.png)" in page
    assert "saturated (|f'| < 0.001): [-inf, 0]" in page
    assert "| f | 0.00 | 0.00 | 0.00 | 0.00 |" in page, "relu is exact"


def test_bad_command_lines(tmp_path: Path) -> None:
    done = invoke("glue")
    assert done.exit_code
    assert "did you mean gelu" in re.sub(r"\s+", " ", done.output)
    (tmp_path / "file").write_text("")
    done = invoke("relu", "--output", str(tmp_path / "file"))
    assert done.exit_code
    assert "plot: " in str(done.exception) + done.output
