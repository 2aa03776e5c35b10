"""Errors as rows: the call, the exception, what the message says: got, expected, how to fix, all reasons at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import ROWS, call, row_id

import fusedact
from fusedact.registry import Activation, Parameter

x = torch.zeros(8, 128, 32)
half = torch.zeros(8, 128, 32, dtype=torch.bfloat16)
rows = pytest.mark.parametrize("row", ROWS, ids=row_id)

# (call, exception, patterns: every one must be found in the message)
ERRORS: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
    # Shapes.
    (
        lambda: fusedact.gelu(x, torch.zeros(64), dim=1),
        ValueError,
        ["64 elements", "128 channels", "dim 1", r"8, 128, 32"],
    ),
    (lambda: fusedact.gelu(x, torch.zeros(128)), ValueError, ["128 elements", "32 channels"]),
    (lambda: fusedact.gelu(x, torch.zeros(32, 1)), ValueError, ["bias", r"\[32, 1\]", "one dim"]),
    (lambda: fusedact.gelu(x, torch.zeros(())), ValueError, ["bias", "one dim"]),
    (lambda: fusedact.gelu(x, torch.zeros(32), dim=3), ValueError, ["dim is 3", "3 dims", r"\[-3, 2\]"]),
    (lambda: fusedact.gelu(x, torch.zeros(32), dim=-4), ValueError, ["dim is -4", r"\[-3, 2\]"]),
    (lambda: fusedact.prelu(x, weight=torch.zeros(3), dim=1), ValueError, ["3", "128 channels"]),
    # Dtypes and devices.
    (lambda: fusedact.gelu(x.int()), TypeError, ["int32", "float32, float64, bfloat16 or float16"]),
    (lambda: fusedact.gelu(x.to(torch.complex64)), TypeError, ["complex64", "float32"]),
    (lambda: fusedact.gelu(x, torch.zeros(32).double()), TypeError, ["bias is", "float64", "float32"]),
    (
        lambda: fusedact.gelu(half, torch.zeros(32).half()),
        TypeError,
        ["bias is", "float16", "bfloat16", "float32"],
    ),
    (lambda: fusedact.gelu(x, torch.zeros(32, device="meta")), ValueError, ["meta", "cpu", r"\.to\("]),
    (lambda: fusedact.gelu(x, out=torch.empty(8, 128, 32).double()), TypeError, ["out is", "float64"]),
    (lambda: fusedact.gelu([1.0]), TypeError, ["input", "Tensor"]),
    (lambda: fusedact.gelu(x, 0.5), TypeError, ["bias", "Tensor"]),
    (lambda: fusedact.leaky_relu(x, 0.5), TypeError, ["bias", "negative_slope=0.5"]),
    # All reasons at once.
    (
        lambda: fusedact.gelu(x.int(), torch.zeros(5), dim=1, save="mask"),
        TypeError,
        ["int32", "5 elements", "save='mask'", "3 problems|4 problems"],
    ),
    (lambda: fusedact.hardtanh(x, min_val="a", max_vall=2), TypeError, ["min_val", "'a'", "max_vall", "max_val"]),
    # Names.
    (lambda: fusedact.bias_act(x, None, "gellu"), ValueError, ["'gellu'", "gelu", r"activations\(\)"]),
    (lambda: fusedact.bias_act(x, None, "xyzzy"), ValueError, ["xyzzy", r"activations\(\)"]),
    (lambda: fusedact.bias_act(x, None, torch.relu), TypeError, ["name"]),
    (lambda: fusedact.bias_act(x, None, "gelu", aproximate="tanh"), TypeError, ["aproximate", "approximate"]),
    (lambda: fusedact.relu(x, negative_slope=0.1), TypeError, ["negative_slope", "no parameter"]),
    (lambda: fusedact.gelu(x, approximate="erf"), ValueError, ["'erf'", "'none'", "'tanh'"]),
    # Parameters.
    (lambda: fusedact.celu(x, alpha=0), ZeroDivisionError, ["alpha"]),
    (lambda: fusedact.rrelu(x, lower=0.5, upper=0.1), ValueError, ["lower", "upper", "0.5", "0.1"]),
    (lambda: fusedact.hardtanh(x, min_val=2, max_val=1), ValueError, ["min_val", "max_val"]),
    (lambda: fusedact.softshrink(x, lambd=-1), ValueError, ["lambd", "-1"]),
    (lambda: fusedact.softplus(x, beta=0), ValueError, ["beta", "0"]),
    (lambda: fusedact.leaky_relu(x, negative_slope=torch.zeros(3)), TypeError, ["negative_slope", "number", "tensor"]),
    # What backward saves.
    (lambda: fusedact.gelu(x, save="output"), ValueError, ["save='output'", "save='input'"]),
    (lambda: fusedact.gelu(x, save="mask"), ValueError, ["save='mask'", "save='input'"]),
    (lambda: fusedact.gelu(x, save="everything"), ValueError, ["everything", "auto", "input", "output", "mask"]),
    (lambda: fusedact.sigmoid(x, save="output", gain=2.0), ValueError, ["save='output'", "gain"]),
    (lambda: fusedact.sigmoid(x, save="output", clamp=0.5), ValueError, ["save='output'", "clamp"]),
    (lambda: fusedact.leaky_relu(x, negative_slope=-0.1, save="output"), ValueError, ["save='output'", "invertible"]),
    # Clamp, gain, out.
    (lambda: fusedact.gelu(x, clamp=(1.0, -1.0)), ValueError, ["clamp"]),
    (lambda: fusedact.gelu(x, clamp=-1.0), ValueError, ["clamp"]),
    (lambda: fusedact.gelu(x, clamp="a"), TypeError, ["clamp"]),
    (lambda: fusedact.gelu(x, gain="a"), TypeError, ["gain"]),
    (lambda: fusedact.gelu(x, inplace=True, out=x), TypeError, ["inplace", "out"]),
    # Modules.
    (lambda: fusedact.nn.Linear(3, 4, activation="gellu"), ValueError, ["gellu", "gelu"]),
    (lambda: fusedact.nn.Linear(3, 4, activation="relu", alpha=1), TypeError, ["alpha"]),
    (lambda: fusedact.nn.BiasAct(4, "celu", alpha=0), ZeroDivisionError, ["alpha"]),
    # Memory.
    (lambda: fusedact.memory.set_limit(-1), ValueError, ["-1"]),
    (lambda: fusedact.memory.set_limit("many"), ValueError, ["many", "512MB"]),
    (lambda: fusedact.memory.set_limit(1.5), TypeError, ["1.5"]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: "+".join(e[2])[:50])
def test_errors(error: tuple[Callable[[], Any], type[Exception], list[str]]) -> None:
    make, exception, patterns = error
    with pytest.raises(exception) as raised:
        make()
    for pattern in patterns:
        raised.match(pattern)


def parameters() -> list[tuple[Activation, Parameter]]:
    return [(row, p) for row in ROWS for p in row.parameters]


@pytest.mark.parametrize(("row", "parameter"), parameters(), ids=lambda v: v.name)
def test_every_parameter_is_checked(row: Activation, parameter: Parameter) -> None:
    """A wrong type and an illegal value raise, and name the parameter; NaN is never legal."""
    for value in (object(), "nonsense", [1.0]):
        with pytest.raises((TypeError, ValueError), match=parameter.name):
            call(row, torch.zeros(3), **{parameter.name: value})
    if parameter.choices is None:
        with pytest.raises((ValueError, ZeroDivisionError), match=parameter.name):
            call(row, torch.zeros(3), **{parameter.name: math.nan})


@rows
def test_near_misses_of_a_name_are_named(row: Activation) -> None:
    wrong = row.name + "q"
    with pytest.raises(ValueError, match=wrong) as raised:
        call(wrong, torch.zeros(3))
    near = difflib.get_close_matches(wrong, [r.name for r in ROWS], n=1, cutoff=0.6)
    assert near
    assert near[0] in str(raised.value).removeprefix(f"no activation is called '{wrong}'")


@rows
def test_impossible_saves_raise(row: Activation) -> None:
    for save in {"output", "mask"} - set(row.saves):
        with pytest.raises(ValueError, match=f"save='{save}'"):
            call(row, torch.zeros(3), save=save)


@rows
def test_a_device_without_a_kernel_raises(row: Activation) -> None:
    """Nothing falls back silently. (The Meta device computes shapes; privateuse backends have no kernel.)"""
    sparse = torch.eye(3).to_sparse()
    with pytest.raises((NotImplementedError, RuntimeError, TypeError, ValueError)):
        call(row, sparse)
