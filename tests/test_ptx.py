"""The CUDA kernels, executed without a GPU: the PTX that nvcc made, run by ptxrun with its checks (see ptx.py).

What is held here: the truth, by the CPU's accuracy contract; the CPU's very bits, since both compile the same functors
without contraction (cos and sin excepted, which are the machine's own); no access out of bounds, no read of
what nobody wrote, no race; each element read and written once; and sums that do not depend on the device's size.

A few activations for each dtype; with --slow all of them. No speed follows from any of this.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import pytest
import torch
from cases import ROWS, bound, kinks
from ptx import FLAGS, ROOT, STORAGE, Device, Run, library, unavailable
from test_accuracy import hold, truths
from torch import Tensor
from truth import triple

from fusedact import _C
from fusedact.registry import Activation, Bound, get

sys.path.append(str(ROOT / "benchmarks"))
pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

# One of each kind: kinks, polynomials with a rare branch, a tensor parameter, an infinite slope, float64 inside.
SAMPLE = {
    torch.float32: ("relu", "gelu", "swish", "prelu", "tanh", "signed_sqrt", "cos"),
    torch.float64: ("gelu", "elu", "hardtanh"),
    torch.bfloat16: ("relu", "silu", "softcap", "rrelu"),
    torch.float16: ("gelu_tanh", "leaky_relu", "mish"),
}
ALL = {dtype: tuple(row.name for row in ROWS) for dtype in STORAGE}
REST = [(d, n) for d in STORAGE for n in ALL[d] if n not in SAMPLE[d]]
slow = pytest.mark.slow(reason="compiles every kernel")
each = pytest.mark.parametrize(
    ("dtype", "name"),
    [pytest.param(d, n, id=f"{n}-{STORAGE[d]}") for d in STORAGE for n in SAMPLE[d]]
    + [pytest.param(d, n, id=f"{n}-{STORAGE[d]}", marks=slow) for d, n in REST],
)
dtypes = pytest.mark.parametrize("dtype", STORAGE, ids=STORAGE.get)

# [outer, channels, inner]: a Linear, odd channels, a channels_last image, NCHW with whole and odd rows, no channels.
SHAPES = [
    (5, 64, 1),
    (37, 10, 1),
    (9, 3, 1),
    (2, 3, 256),
    (2, 5, 49),
    (3, 2, 1029),
    (1, 1, 700),
    (70, 1, 3),
    (1, 300, 1),
]


def device(dtype: torch.dtype, name: str, units: int = 2048, **options: Any) -> Device:
    return _device(name not in SAMPLE[dtype], units).set(**options)


@functools.cache
def _device(every: bool, units: int) -> Device:
    return Device(*library(ALL if every else SAMPLE, units))


def scalars(row: Activation) -> tuple[float, ...]:
    return row.resolve()[1]


def clean(run: Run) -> Run:
    """Assert that ptxrun saw nothing wrong, and that every element of every result was written."""
    assert not run.reports, "\n".join(run.reports)
    assert not any(run.unwritten.values()), f"elements that nobody wrote: {run.unwritten}"
    return run


def same(got: Tensor, cpu: Tensor, of: str = "") -> None:
    """Assert the same bits, NaN for NaN; in 16 bits neighbours, for the CPU computes those by shorter formulas.

    There a zero may have either sign: mish(-0) is -0 by the shorter formula and 0 by the longer. What the CPU reads in
    tables, if that is what the function `of` does, has errors of its own in float32: some ulp of a product of two
    values, 2e-7 beside the root of a slope.
    """
    assert got.dtype == cpu.dtype
    equal = (got == cpu) & (got.signbit() == cpu.signbit()) | (got.isnan() & cpu.isnan())
    if got.dtype in (torch.bfloat16, torch.float16):
        equal |= (got.view(torch.int16).int() - cpu.view(torch.int16).int()).abs() <= 1
        equal |= (got == 0) & (cpu == 0)
    if got.dtype == torch.float32 and in_tables(of):
        equal |= torch.isclose(got, cpu, rtol=2.0**-20, atol=2.0**-20)
    differ = ~equal
    assert not differ.any(), (
        f"{int(differ.sum())} differ: {got[differ][:4].tolist()}, on the CPU {cpu[differ][:4].tolist()}"
    )


# What vectors read in tables (csrc/pieces.h, csrc/cubics.h) and a GPU computes from exponentials, in float32.
IN_TABLES = {
    "avx512": {"gelu", "gelu_tanh", "logsigmoid", "mish", "sigmoid", "silu", "softplus", "tanh"},
    "avx2": {"gelu", "gelu_tanh", "mish"},
}


def in_tables(name: str) -> bool:
    return name in IN_TABLES.get(_C.capability(), set())


def as_on_cpu(row: Activation) -> bool:
    """Whether the CPU's bits are to be had: with fused multiply-add, no function of a library's own, and no table."""
    return row.name not in {"cos", "sin"} and not in_tables(row.name) and _C.capability() != "default"


def limit(row: Activation, dtype: torch.dtype) -> Bound:
    """The CPU's bound. In float64 the truth here has errors of its own (1e-12): mpmath has judged the CPU's bits."""
    return Bound(8192, 8192, 8192, 1e-11) if dtype == torch.float64 else bound(row, dtype)


def sampled(dtype: torch.dtype, count: int) -> Tensor:
    """Values of every size, most of them where functions bend."""
    x = torch.randn(count, dtype=torch.float64) * torch.exp2(torch.randint(-6, 4, (count,)).double())
    return x.to(dtype)


def special(row: Activation, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    edges = [*kinks(row), 0.0, 1.0, 20.0, 80.0, 88.7, 104.0, info.max, info.tiny, info.tiny / 4, 1e-3, math.inf]
    x = torch.tensor(edges, dtype=torch.float64)
    x = torch.cat([x, -x, torch.tensor([math.nan, -0.0], dtype=torch.float64)]).to(dtype)
    return torch.cat(
        [x, torch.nextafter(x, torch.full_like(x, math.inf)), torch.nextafter(x, torch.full_like(x, -math.inf))]
    )


def ordinary(row: Activation, x: Tensor) -> Tensor:
    """Where there is a truth and no convention: finite, not a kink, and no square that float64 cannot hold."""
    plain = x.abs() < min(torch.finfo(x.dtype).max, 1e150)
    for edge in kinks(row):
        plain &= x != edge
    return plain


def cpu_backward(
    row: Activation, grad: Tensor, saved: Tensor, bias: Tensor | None, kind: str, gain: float = 1.0, clamp: Any = None
) -> Tensor:
    low, high = clamp or (None, None)
    args = (row.name, scalars(row), 1 if grad.dim() > 1 else -1, gain, low, high, kind, False, False)
    return torch.ops.fusedact.bias_act_backward(grad, saved, bias, None, *args)[0]


# ---- values ---------------------------------------------------------------------------------------------------------


@each
def test_forward_is_true(dtype: torch.dtype, name: str) -> None:
    row = get(name)
    x = torch.cat([sampled(dtype, 900), special(row, dtype)])
    y = clean(device(dtype, name).forward(name, x, (1, 1, len(x)), params=scalars(row)))["y"]
    plain = ordinary(row, x)
    here = x[plain]
    hold(row, here, {0: y[plain]}, truths(row, here, {}), limit(row, dtype))
    if as_on_cpu(row):
        same(y, torch.ops.fusedact.bias_act(x, None, None, name, scalars(row), -1, 1.0, None, None, "input"))


@each
def test_backward_is_true(dtype: torch.dtype, name: str) -> None:
    row = get(name)
    x = torch.cat([sampled(dtype, 400), special(row, dtype)])
    grad = torch.ones_like(x)
    for kind in row.saves:
        if kind == "mask":
            continue
        saved = (
            x
            if kind == "input"
            else torch.ops.fusedact.bias_act(x, None, None, name, scalars(row), -1, 1.0, None, None, "input")
        )
        run = clean(device(dtype, name).backward(name, grad, saved, (1, 1, len(x)), kind, params=scalars(row)))
        if kind == "input":
            plain = ordinary(row, x)
            here = x[plain]
            hold(row, here, {1: run["grad_x"][plain]}, truths(row, here, {}), limit(row, dtype))
        if as_on_cpu(row):
            same(run["grad_x"], cpu_backward(row, grad, saved, None, kind))


@each
def test_second_derivative_is_true(dtype: torch.dtype, name: str) -> None:
    row = get(name)
    if row.tensor_parameter is not None:
        row = get("silu") if name == "swish" and "silu" in SAMPLE[dtype] else row
    x = torch.cat([sampled(dtype, 300), special(row, dtype)])
    one = torch.ones_like(x)
    run = clean(device(dtype, name).double_backward(row.name, one, one, x, (1, 1, len(x)), params=scalars(row)))
    plain = ordinary(row, x)
    here = x[plain]
    hold(row, here, {1: run["grad_grad"][plain], 2: run["grad_x"][plain]}, truths(row, here, {}), limit(row, dtype))
    if as_on_cpu(row):
        args = (row.name, scalars(row), -1, 1.0, None, None, "input", False)
        grad_grad, grad_x, _ = torch.ops.fusedact.bias_act_double_backward(one, one, x, None, *args)
        same(run["grad_grad"], grad_grad)
        same(run["grad_x"], grad_x)


# ---- shapes ---------------------------------------------------------------------------------------------------------

CHEAP = {
    torch.float32: "relu",
    torch.float64: "hardtanh",
    torch.bfloat16: "relu",
    torch.float16: "leaky_relu",
}


def tensors(dtype: torch.dtype, shape: tuple[int, int, int], count: int) -> list[Tensor]:
    return [sampled(dtype, math.prod(shape)) for _ in range(count)]


def total(terms: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Per channel: the sum, and how far a sum in float32 of terms of this size may be from it."""
    terms = terms.double().reshape(shape)
    return terms.sum((0, 2)), 2.0**-20 * terms.abs().sum((0, 2))


@pytest.mark.parametrize(("shift", "units"), [(0, 2048), (1, 2048), (0, 1)], ids=["aligned", "unaligned", "long"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
def test_shapes(dtype: torch.dtype, shape: tuple[int, int, int], shift: int, units: int) -> None:
    """`long`: units of as many steps as large tensors have, in small ones."""
    name = CHEAP[dtype]
    row, on = get(name), device(dtype, name, units)
    x, grad = tensors(dtype, shape, 2)
    vectors = [dtype] if dtype in (torch.float32, torch.float64) else [dtype, torch.float32]
    for of in vectors:
        bias = sampled(of, shape[1])
        run = clean(on.forward(name, x, shape, bias, params=scalars(row), shift=shift))
        options = (None, name, scalars(row), 1, 1.0, None, None, "input")
        same(run["y"], torch.ops.fusedact.bias_act(x.view(shape), bias, *options).flatten())

        run = clean(on.backward(name, grad, x, shape, "input", bias, params=scalars(row), grad_bias=of, shift=shift))
        same(run["grad_x"], cpu_backward(row, grad.view(shape), x.view(shape), bias, "input").flatten())
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        v = (x.view(shape).to(compute) + bias.to(compute).view(1, -1, 1)).flatten()
        true, allowed = total(grad.double() * triple(row, v)[1], shape)
        rounding = true.abs() * torch.finfo(of).eps + torch.finfo(of).tiny
        assert ((run["grad_bias"].double() - true).abs() <= allowed + rounding).all()

        run = clean(
            on.double_backward(name, grad, grad, x, shape, "input", bias, scalars(row), grad_bias=of, shift=shift)
        )
        assert (run["grad_bias"] == 0).all()  # piecewise linear


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 31, 1023, 1024, 1025, 2048, 2049])
@dtypes
def test_edges_of_packs_and_blocks(dtype: torch.dtype, n: int) -> None:
    name = CHEAP[dtype]
    row, x = get(name), sampled(dtype, n)
    for inplace in (False, True):
        run = clean(device(dtype, name).forward(name, x, (1, 1, n), params=scalars(row), inplace=inplace))
        same(run["y"], torch.ops.fusedact.bias_act(x, None, None, name, scalars(row), -1, 1.0, None, None, "input"))


@dtypes
def test_empty_tensors_launch_nothing(dtype: torch.dtype) -> None:
    name = CHEAP[dtype]
    assert not device(dtype, name).forward(name, torch.empty(0, dtype=dtype), (0, 4, 1)).launches


@dtypes
def test_more_units_than_blocks(dtype: torch.dtype) -> None:
    """One multiprocessor: blocks take several turns. The bits are those of a large device, sums included."""
    name = CHEAP[dtype]
    row = get(name)
    for shape in [(1, 1, 70_000), (300, 300, 1)]:
        x, grad = tensors(dtype, shape, 2)
        bias = sampled(dtype, shape[1])
        options: dict[str, Any] = {"bias": bias, "params": scalars(row), "grad_bias": dtype}
        forward, backward = [], []
        for sms in (1, 108):
            on = device(dtype, name, sms=sms)
            forward.append(clean(on.forward(name, x, shape, bias, params=scalars(row))))
            backward.append(clean(on.backward(name, grad, x, shape, **options)))
        same(forward[0]["y"], forward[1]["y"])
        assert forward[0].launches[0].grid[0] == 32 < forward[1].launches[0].grid[0]
        for result in ("grad_x", "grad_bias"):
            same(backward[0][result], backward[1][result])


# ---- masks, tensor parameters, gain and clamp -----------------------------------------------------------------------


@pytest.mark.parametrize("units", [2048, 1], ids=["short", "long"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
def test_masks(dtype: torch.dtype, shape: tuple[int, int, int], units: int) -> None:
    name = CHEAP[dtype]
    row, on = get(name), device(dtype, name, units)
    x, grad = tensors(dtype, shape, 2)
    bias = sampled(dtype, shape[1])
    run = clean(on.forward(name, x, shape, bias, params=scalars(row), mask=True))
    y, mask = torch.ops.fusedact.bias_act_mask(x.view(shape), bias, None, name, scalars(row), 1, 1.0, None, None)
    same(run["y"], y.flatten())
    assert torch.equal(run["mask"], mask)
    run = clean(on.backward(name, grad, mask, shape, "mask", params=scalars(row), grad_bias=dtype))
    same(run["grad_x"], cpu_backward(row, grad.view(shape), mask, None, "mask").flatten())


@pytest.mark.parametrize("extent", ["one", "channel"])
@pytest.mark.parametrize("name", ["prelu", "swish"])
def test_tensor_parameters(name: str, extent: str) -> None:
    dtype = torch.float32
    for shape in SHAPES:
        x, grad = tensors(dtype, shape, 2)
        bias, weight = sampled(dtype, shape[1]), sampled(dtype, shape[1] if extent == "channel" else 1).abs()
        row, on = get(name), device(dtype, name)
        options: dict[str, Any] = {"weight": weight, "extent": extent, "params": scalars(row)}
        run = clean(on.forward(name, x, shape, bias, **options))
        call = (name, scalars(row), 1, 1.0, None, None, "input")
        same(run["y"], torch.ops.fusedact.bias_act(x.view(shape), bias, weight, *call).flatten())
        run = clean(on.backward(name, grad, x, shape, "input", bias, **options, grad_bias=dtype, grad_weight=dtype))
        cpu = torch.ops.fusedact.bias_act_backward(grad.view(shape), x.view(shape), bias, weight, *call, True, True)
        same(run["grad_x"], cpu[0].flatten())
        for got, expected in zip((run["grad_bias"], run["grad_weight"]), cpu[1:], strict=True):
            size = grad.abs().sum() * 8  # two orders of summation: each within a few roundings of the terms
            assert ((got - expected).abs() <= 2**-22 * size).all()


def test_noise_in_place_of_a_parameter() -> None:
    dtype, name = torch.bfloat16, "rrelu"
    row = get(name)
    for shape, shift in [((3, 5, 1), 0), ((40, 64, 1), 0), ((40, 64, 1), 1)]:
        (x,), noise = tensors(dtype, shape, 1), torch.rand(math.prod(shape))
        run = clean(
            device(dtype, name).forward(name, x, shape, weight=noise, extent="full", params=scalars(row), shift=shift)
        )
        call = (name, scalars(row), 1, 1.0, None, None, "input")
        same(run["y"], torch.ops.fusedact.bias_act(x.view(shape), None, noise.view(shape), *call).flatten())


@each
def test_gain_and_clamp(dtype: torch.dtype, name: str) -> None:
    row, on, clamp = get(name), device(dtype, name), (-0.5, 0.75)
    if not as_on_cpu(row):
        pytest.skip("compared with the CPU's bits")
    x = torch.cat([sampled(dtype, 100), special(row, dtype)])
    shape, grad = (1, 1, len(x)), torch.ones_like(x)
    run = clean(on.forward(name, x, shape, params=scalars(row), gain=1.5, clamp=clamp))
    same(run["y"], torch.ops.fusedact.bias_act(x, None, None, name, scalars(row), -1, 1.5, *clamp, "input"))
    run = clean(on.backward(name, grad, x, shape, params=scalars(row), gain=1.5, clamp=clamp))
    same(run["grad_x"], cpu_backward(row, grad, x, None, "input", 1.5, clamp))


# ---- how it is built ------------------------------------------------------------------------------------------------


def test_the_flags_are_those_of_the_build() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    assert f"set(cuda_flags {' '.join(FLAGS)})" in text


# ---- what the hardware would see ------------------------------------------------------------------------------------


@each
def test_each_byte_moves_once(dtype: torch.dtype, name: str) -> None:
    """Whole packs: every input read once and every output written once, in full sectors."""
    row, on = get(name), device(dtype, name, units=1)
    n = 8192
    x, size = sampled(dtype, n), torch.empty((), dtype=dtype).element_size()
    # The machine's own sin and cos of float64 read their coefficients, 128 bytes which stay in the caches.
    table = 128 if name in ("cos", "sin") and dtype == torch.float64 else 0
    run = clean(on.forward(name, x, (1, 1, n), params=scalars(row)))
    moved(run, loads=n * size, stores=n * size, table=table)
    run = clean(on.backward(name, x, x, (1, 1, n), params=scalars(row)))
    moved(run, loads=2 * n * size, stores=n * size, table=table)


def moved(run: Run, loads: int, stores: int, table: int = 0) -> None:
    (launch,) = run.launches
    seen = launch.result.summary()
    assert seen["unique_read_bytes"] <= loads + table
    assert (seen["unique_written_bytes"], seen["store_bytes"]) == (stores, stores)
    assert 32 * seen["store_sectors"] == stores
    if not table:
        assert (seen["load_bytes"], seen["unique_read_bytes"], 32 * seen["load_sectors"]) == (loads, loads, loads)
    assert {row["width"] for row in launch.result.traffic() if row["space"] == "global"} == {16}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=slow)], ids=["sample", "all"])
def test_budgets(every: bool) -> None:
    """Registers, spills, stack, widths and bytes, as `python benchmarks/budgets.py --check` prints them."""
    from budgets import budgets

    judged = ALL if every else {dtype: SAMPLE[dtype] for dtype in (torch.float32, torch.bfloat16)}
    found = list(budgets(judged, library(ALL if every else SAMPLE, units=1)))
    assert len(found) > 3 * sum(map(len, judged.values())) - 3
    missed = [f"{b.activation} {b.dtype} {b.kernel}: {fault}" for b in found for fault in b.faults]
    assert not missed, "\n".join(missed)


@pytest.mark.parametrize("seed", [1, 2])
@each
def test_nothing_rests_on_order_or_on_approximations(dtype: torch.dtype, name: str, seed: int) -> None:
    row, shape = get(name), (40, 24, 1)
    x, grad = tensors(dtype, shape, 2)
    bias = sampled(dtype, shape[1])
    options: dict[str, Any] = {"bias": bias, "params": scalars(row), "grad_bias": dtype}
    plain = clean(device(dtype, name).backward(name, grad, x, shape, **options))
    shaken = clean(
        device(dtype, name, approx="perturb", shuffle=True, seed=seed).backward(name, grad, x, shape, **options)
    )
    same(plain["grad_x"], shaken["grad_x"])
    same(plain["grad_bias"], shaken["grad_bias"])
