"""PyTorch's own OpInfo sample inputs and error inputs, for each function that PyTorch has.

The answer is compared with torch's function in float64. Tolerances: fusedact's own bound (2 float32 ulp forward, 4 for
a slope; half an ulp of a 16-bit type) plus what torch's float64 formula itself loses: some cancel (1 + erf), 1e-15
absolute.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import DTYPES, ROWS, call, row_id
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo, SampleInput

from fusedact.registry import Activation

REPLACED = [row for row in ROWS if row.replaces]
OPINFO = {op.name: op for op in op_db if not op.variant_test_name}

rows = pytest.mark.parametrize("row", REPLACED, ids=row_id)
floats = pytest.mark.parametrize("dtype", DTYPES, ids=str)

FORWARD = {torch.float32: 2.0, torch.float64: 8.0, torch.bfloat16: 0.51, torch.float16: 0.51}  # times eps
SLOPE = {torch.float32: 4.0, torch.float64: 16.0, torch.bfloat16: 0.51, torch.float16: 0.51}

# Where torch's own float64 slope is off by more: it multiplies by a float32 1/6.
TORCH_SLOPE_ERROR = {"hardsigmoid": 2.0**-24}


def opinfo(row: Activation) -> OpInfo:
    return OPINFO[row.replaces.removeprefix("torch.")]


def arguments(row: Activation, sample: SampleInput) -> dict[str, Any]:
    """A sample's arguments by name: torch's order of parameters is the row's."""
    named = dict(zip([p.name for p in row.parameters], sample.args, strict=False)) | sample.kwargs
    if row.tensor_parameter:  # torch's channels are dim 1
        named["dim"] = 1 if sample.input.dim() > 1 else -1
    return named


def samples(row: Activation, dtype: torch.dtype) -> Iterator[tuple[Tensor, dict[str, Any], SampleInput]]:
    for original in opinfo(row).sample_inputs("cpu", dtype, requires_grad=False):
        for sample in (original, original.noncontiguous()):
            named = arguments(row, sample)
            known = {p.name: p for p in row.parameters}
            # torch.clamp with tensor bounds is another function: a binary one, which the row does not replace.
            if any(isinstance(v, Tensor) and not known[k].tensor for k, v in named.items()):
                continue
            yield sample.input, named, sample


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def test_every_replaced_function_has_an_opinfo() -> None:
    missing = [row.replaces for row in REPLACED if row.replaces.removeprefix("torch.") not in OPINFO]
    assert not missing, f"op_db has no entry for {missing}"


@rows
@floats
def test_sample_inputs(row: Activation, dtype: torch.dtype) -> None:
    ran = 0
    for x, named, sample in samples(row, dtype):
        if named.get("training"):
            continue  # random; test_autograd.py has it
        ran += 1
        leaf, theirs = x.detach().requires_grad_(), x.detach().double().requires_grad_()
        options = {k: v for k, v in named.items() if k != "inplace"}
        y = call(row, leaf, **options)
        torch_options = {k: wide(v) for k, v in sample.kwargs.items() if k != "inplace"}
        wanted = row.torch_function(theirs, *map(wide, sample.args), **torch_options)
        eps = torch.finfo(dtype).eps
        tiny = max(1e-15, torch.finfo(dtype).smallest_normal * eps)
        assert y.dtype == dtype
        assert y.shape == wanted.shape
        torch.testing.assert_close(y.double(), wanted, rtol=FORWARD[dtype] * eps, atol=tiny, equal_nan=True)
        grad = torch.ones_like(y)
        got = torch.autograd.grad(y, leaf, grad)[0].double()
        slope = torch.autograd.grad(wanted, theirs, grad.double())[0]
        # From a saved output the bound is 2^-23 of the largest |f'|, here at most 2; from the input, 2e-7 near a root.
        atol = 2e-7 if dtype != torch.float64 else 2e-15
        rtol = SLOPE[dtype] * eps + TORCH_SLOPE_ERROR.get(row.name, 0.0)
        torch.testing.assert_close(got, slope, rtol=rtol, atol=max(atol, eps), equal_nan=True)
        if named.get("inplace"):
            held = x.detach().clone()
            assert call(row, held, **named) is held
            torch.testing.assert_close(held, y.detach(), rtol=0, atol=0, equal_nan=True)
    if not ran:
        pytest.skip("all of PyTorch's samples are of another function (tensor bounds)")


@rows
def test_error_inputs(row: Activation) -> None:
    op = opinfo(row)
    if op.error_inputs_func is None:
        pytest.skip("PyTorch lists no error inputs for it")
    for case in op.error_inputs("cpu"):
        sample = case.sample_input
        if sample.input.dim() == 0:
            continue  # torch's prelu refuses a scalar; fusedact takes 0 dims everywhere
        try:
            row.torch_function(sample.input, *sample.args, **sample.kwargs)
        except Exception:
            with pytest.raises((TypeError, ValueError, RuntimeError, ZeroDivisionError)):
                call(row, sample.input, **arguments(row, sample))


@rows
def test_rejects_what_torch_rejects(row: Activation) -> None:
    """Complex, integer and boolean inputs: torch raises for most, fusedact for all (design.md, "Dtypes")."""
    for dtype in (torch.complex64, torch.int64, torch.bool, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")):
            call(row, torch.zeros(3).to(dtype))
