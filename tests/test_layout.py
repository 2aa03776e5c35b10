"""Shapes and strides: every layout and bias dim give the answer of the contiguous case, and dense strides are kept.

The answer itself is held to plain float64 torch code here (`expected`), not to a kernel.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cases import DTYPES, ROWS, call, kinks, layouts, row_id, smooth_points
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from truth import triple

from fusedact.registry import Activation

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
floats = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# One step of the result's dtype, and what a slope in float32 may be off beside a root (design.md); a bias gradient
# adds up to 2^10 such terms here.
LIMITS = {
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.float64: {"rtol": 1e-14, "atol": 1e-14},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-6},
    torch.float16: {"rtol": 2**-11, "atol": 1e-6},
}


def along(bias: Tensor, x: Tensor, dim: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = -1
    return bias.reshape(shape)


def expected(row: Activation, x: Tensor, bias: Tensor | None, dim: int, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, grad_x and grad_bias in float64, for x + bias rounded as the kernels may round it (float32 or float64)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = x.to(wide) if bias is None else x.to(wide) + along(bias.to(wide), x, dim)
    value, slope, _ = triple(row, v)
    grad_x = grad.double() * slope
    others = [d for d in range(x.dim()) if d != dim % x.dim()] if x.dim() else []
    return value, grad_x, grad_x.sum(others) if others else grad_x


def agree(row: Activation, x: Tensor, bias: Tensor | None, dim: int, **options) -> None:
    leaf = x.detach().requires_grad_()
    bias_leaf = None if bias is None else bias.detach().clone().requires_grad_()
    y = call(row, leaf, bias_leaf, dim=dim, **options)
    grad = torch.linspace(-1.3, 1.7, y.numel(), dtype=torch.float64).to(y.dtype).view(y.shape)
    wanted = expected(row, x, bias, dim, grad)
    limit = LIMITS[x.dtype]
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.detach().double(), wanted[0], **limit)
    leaves = [leaf] if bias_leaf is None else [leaf, bias_leaf]
    grads = torch.autograd.grad(y, leaves, grad)
    torch.testing.assert_close(grads[0].double(), wanted[1], **limit)
    if bias is not None:
        assert grads[1].dtype == bias.dtype
        assert grads[1].shape == bias.shape
        spread = max(1.0, x.numel() / max(1, bias.numel())) ** 0.5
        bias_limit = LIMITS[bias.dtype]
        torch.testing.assert_close(
            grads[1].double(), wanted[2], rtol=bias_limit["rtol"], atol=bias_limit["atol"] * spread
        )


@rows
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
def test_every_layout_and_dim(row: Activation, dim: int) -> None:
    x = smooth_points(row, (3, 5, 7, 4), dtype=torch.float32)
    bias = torch.zeros(x.size(dim))
    bias[::2] = 2.0**-6  # exact in every sum that matters: x + bias crosses no kink
    for _, view in layouts(x):
        agree(row, view, bias, dim)
        agree(row, view, None, dim)


@rows
@floats
def test_every_dtype(row: Activation, dtype: torch.dtype) -> None:
    x = smooth_points(row, (5, 33), dtype=dtype)
    # A slope that follows from an output rounded to 16 bits has its own bound in test_accuracy.py.
    agree(row, x, torch.full((33,), 2.0**-6, dtype=dtype), 1, save="input")
    if dtype.itemsize == 2:
        agree(row, x, torch.full((33,), 2.0**-6), -1, save="input")  # float32 beside 16 bits


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (0, 5), (1, 1, 1), (2, 3, 5, 7, 2), (1, 64), (64, 1)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    x = torch.linspace(-3, 3, math.prod(shape)).view(shape)
    for row in ROWS:
        agree(row, x, None, -1)
        for dim in range(-x.dim(), x.dim()):
            agree(row, x, torch.full((x.size(dim),), 0.011), dim)


@pytest.mark.parametrize("length", [*range(1, 40), 63, 64, 65, 127, 128, 129, 1023, 1024, 1025])
def test_odd_lengths(length: int) -> None:
    """A bias as long as the row, a bias of one, and each dtype: sizes around every vector width and its multiples."""
    for dtype in DTYPES:
        x = torch.linspace(-2.9, 3.1, 3 * length, dtype=torch.float64).to(dtype).view(3, length)
        agree(ROWS_BY_NAME["silu"], x, torch.full((length,), 0.0107, dtype=dtype), 1)
        agree(ROWS_BY_NAME["relu"], x.t(), torch.full((length,), 0.0107, dtype=dtype), 0)
        agree(ROWS_BY_NAME["gelu"], x, torch.full((3,), 0.0107, dtype=dtype), 0)


ROWS_BY_NAME = {row.name: row for row in ROWS}


@floats
def test_misaligned_storage(dtype: torch.dtype) -> None:
    room = torch.linspace(-3, 3, 3 * 41 + 40, dtype=torch.float64).to(dtype)
    bias_room = torch.full((64,), 0.013, dtype=dtype)
    for start in range(17):
        x = room[start : start + 123].view(3, 41)
        agree(ROWS_BY_NAME["gelu"], x, bias_room[start : start + 41], 1)


def test_strides_are_kept_as_pytorch_keeps_them() -> None:
    x = torch.randn(2, 3, 4, 5)
    cases = [*layouts(x), ("expanded", torch.randn(3, 1, 5).expand(3, 4, 5)), ("size one", torch.randn(4, 1).t())]
    cases += [("stride of size one", torch.randn(4).as_strided((4, 1), (1, 7)))]
    cases += [("channels_last_3d", torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d))]
    for name, view in cases:
        wanted = torch.empty_like(view)  # the same rule as torch's unary operators
        got = call("gelu", view)
        assert got.stride() == wanted.stride(), f"{name}: {view.stride()} gave {got.stride()}, torch {wanted.stride()}"
        leaf = view.detach().requires_grad_()
        y = call("gelu", leaf)
        grad = torch.autograd.grad(y, leaf, torch.ones_like(y))[0]
        torch.testing.assert_close(grad, torch.autograd.grad(torch.nn.functional.gelu(leaf).sum(), leaf)[0])


def test_expanded_inputs_and_gradients() -> None:
    for row in ROWS:
        x = smooth_points(row, (3, 1, 5), dtype=torch.float64).expand(3, 4, 5)
        agree(row, x, torch.zeros(4, dtype=torch.float64), 1)
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(call(row, leaf).sum(), leaf)  # sum() sends an expanded gradient
        torch.testing.assert_close(grad, triple(row, x)[1])


def test_gradient_in_another_layout_than_the_output() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for _, view in layouts(x):
        for _, grad in layouts(torch.randn_like(x)):
            leaf, bias = view.detach().requires_grad_(), torch.randn(3, dtype=torch.float64, requires_grad=True)
            got = torch.autograd.grad(call("silu", leaf, bias, dim=1), [leaf, bias], grad)
            wanted = torch.autograd.grad(torch.nn.functional.silu(leaf + bias[:, None, None]), [leaf, bias], grad)
            torch.testing.assert_close(got, wanted)


def test_bias_may_be_strided() -> None:
    x, wide = torch.randn(6, 10), torch.randn(10, 3)
    for bias in (wide[:, 1], torch.randn(1).expand(10), torch.randn(10).flip(0), torch.randn(21)[1::2]):
        torch.testing.assert_close(call("tanh", x, bias), torch.tanh(x + bias))


def test_out_and_inplace_take_any_layout() -> None:
    x = torch.randn(2, 3, 4, 5)
    bias = torch.randn(3)
    wanted = call("mish", x, bias, dim=1)
    for name, view in layouts(x):
        out = torch.full_like(view, 7.0)
        assert call("mish", view, bias, dim=1, out=out) is out
        torch.testing.assert_close(out, wanted, rtol=0, atol=0, msg=f"out, {name}")
        for target_name, target in layouts(torch.zeros_like(x)):
            call("mish", view, bias, dim=1, out=target)
            torch.testing.assert_close(target, wanted, rtol=0, atol=0, msg=f"{name} into {target_name}")
        held = view.clone(memory_format=torch.preserve_format) if name != "gapped" else view
        version = held._version
        assert call("mish", held, bias, dim=1, inplace=True) is held
        assert held._version > version
        torch.testing.assert_close(held, wanted, rtol=0, atol=0, msg=f"inplace, {name}")


def test_gaps_between_elements_are_not_written() -> None:
    room = torch.full((4, 20), 3.0)
    call("sigmoid", torch.zeros(4, 10), out=room[:, ::2])
    assert (room[:, ::2] == 0.5).all()
    assert (room[:, 1::2] == 3.0).all()
    call("sigmoid", room[:, ::2], inplace=True)
    assert (room[:, 1::2] == 3.0).all()


@st.composite
def problems(draw) -> tuple[str, dict, Tensor, Tensor | None, int]:
    """A row with legal parameters, a tensor with permuted, sliced and offset strides, a bias for one of its dims."""
    row = draw(st.sampled_from(ROWS))
    params = {}
    for p in row.parameters:
        if p.samples and draw(st.booleans()):
            params[p.name] = draw(st.sampled_from(p.samples))
    try:
        row.resolve(None, **params)
    except (ValueError, TypeError):
        params = {}
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.lists(st.integers(0, 9), min_size=0, max_size=4))
    steps = [draw(st.sampled_from((1, 1, 1, 2, 3))) for _ in sizes]
    offset = draw(st.integers(0, 5))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    room = torch.randn(math.prod(n * s for n, s in zip(sizes, steps, strict=True)) + offset, generator=generator) * 3
    x = room.to(dtype)[offset:].view([n * s for n, s in zip(sizes, steps, strict=True)])
    for d, step in enumerate(steps):
        x = x.narrow(d, 0, x.size(d))[(slice(None),) * d + (slice(None, None, step),)]
    x = x.permute(draw(st.permutations(range(x.dim()))))
    if not x.dim() or draw(st.booleans()):
        return row.name, params, x, None, -1
    dim = draw(st.integers(-x.dim(), x.dim() - 1))
    bias_dtype = torch.float32 if dtype.itemsize == 2 and draw(st.booleans()) else dtype
    return row.name, params, x, torch.randn(x.size(dim), generator=generator).to(bias_dtype), dim


@hypothesis_settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_any_problem(problem) -> None:
    """Over shapes, strides, dtypes and parameters: values within 2 ulp (0.51 for 16 bits) of the truth."""
    name, params, x, bias, dim = problem
    row = ROWS_BY_NAME[name]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = x.to(wide) if bias is None else x.to(wide) + along(bias.to(wide), x, dim)
    got = call(row, x, bias, dim=dim, **params)
    assert got.shape == x.shape
    assert got.stride() == torch.empty_like(x).stride()
    torch.testing.assert_close(got.double(), triple(row, v, **params)[0], **LIMITS[x.dtype])

    leaf = x.detach().requires_grad_()
    leaves = [leaf] if bias is None else [leaf, bias.requires_grad_()]
    y = call(row, leaf, bias, dim=dim, save="input", **params)
    grads = torch.autograd.grad(y, leaves, torch.ones_like(y))
    slopes = triple(row, v, **params)[1]
    # v may fall onto a kink; a convention holds there, which test_kinks.py has
    smooth = torch.ones_like(v, dtype=torch.bool)
    for kink in (*kinks(row, **params), 0.0):
        smooth &= v != kink
    torch.testing.assert_close(grads[0].double()[smooth], slopes[smooth], **LIMITS[x.dtype])
    if bias is not None and smooth.all():
        others = [d for d in range(x.dim()) if d != dim % x.dim()]
        wanted = slopes.sum(others) if others else slopes
        limit = LIMITS[bias.dtype] | {"atol": LIMITS[bias.dtype]["atol"] * max(1, x.numel())}
        torch.testing.assert_close(grads[1].double(), wanted, **limit)


@pytest.mark.slow(reason="2^31 elements: 6.5 GB of memory and a minute")
def test_more_than_2_31_elements() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    if free < 10 * 2**30:
        pytest.skip(f"needs 10 GiB of free memory, has {free / 2**30:.1f}")
    n = 2**31 + 5
    x = torch.zeros(n, dtype=torch.bfloat16)
    x[-5:] = torch.arange(1, 6)
    x[2**31 - 2 :][:2] = -1
    call("relu", x, inplace=True)
    assert x[-5:].tolist() == [1, 2, 3, 4, 5]
    assert x[2**31 - 2] == 0
    assert x[0] == 0
