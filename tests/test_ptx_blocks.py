"""The CUDA kernels of the operators around an activation, executed without a GPU, as test_ptx.py does for bias_act.

Held to the CPU's bits, which the operators' own tests hold to the truth; sums, and softmax, which adds up in another
order, to the truth. And: no report of ptxrun, every element written, each byte moved once.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from typing import Any

import pytest
import torch
from ptx import (
    DTYPE,
    ROOT,
    STORAGE,
    Device,
    Gated,
    GruArgs,
    GruBackwardArgs,
    LstmArgs,
    LstmBackwardArgs,
    MaxoutArgs,
    MaxoutBackwardArgs,
    Shape,
    SoftmaxArgs,
    SoftmaxBackwardArgs,
    blocks_library,
    unavailable,
)
from test_ptx import ALL, as_on_cpu, clean, same, sampled, scalars, special
from torch import Tensor

from fusedact.health.statistics import BINS, COUNTED, empty_sums
from fusedact.registry import get

sys.path.append(str(ROOT / "benchmarks"))
pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

SAMPLE = {
    torch.float32: ("gelu", "identity", "prelu"),
    torch.float64: ("elu", "identity"),
    torch.bfloat16: ("identity", "silu"),
    torch.float16: ("gelu_tanh", "identity"),
}
MAIN = {torch.float32: "gelu", torch.float64: "elu", torch.bfloat16: "silu", torch.float16: "gelu_tanh"}
slow = pytest.mark.slow(reason="compiles every kernel")
each = pytest.mark.parametrize(
    ("dtype", "name"),
    [pytest.param(d, n, id=f"{n}-{STORAGE[d]}") for d in STORAGE for n in SAMPLE[d]]
    + [pytest.param(d, n, id=f"{n}-{STORAGE[d]}", marks=slow) for d in STORAGE for n in ALL[d] if n not in SAMPLE[d]],
)
dtypes = pytest.mark.parametrize("dtype", STORAGE, ids=STORAGE.get)

# [outer, channels, inner] of the result: whole and odd rows, short ones, images in both orders, more than one block.
SHAPES = [(5, 64, 1), (37, 10, 1), (9, 3, 1), (2, 3, 256), (2, 5, 49), (3, 2, 1029), (70, 1, 3), (1, 300, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
SHIFTS = [(0, 2048), (1, 2048), (0, 1)]
shifts = pytest.mark.parametrize(("shift", "units"), SHIFTS, ids=["aligned", "unaligned", "long"])


def device(dtype: torch.dtype, name: str, units: int = 2048, **options: Any) -> Device:
    return _device(name not in SAMPLE[dtype], units).set(**options)


@functools.cache
def _device(every: bool, units: int) -> Device:
    return Device(*blocks_library(ALL if every else SAMPLE, units))


def near(got: Tensor, terms: Tensor, shape: tuple[int, int, int]) -> None:
    """Assert that `got` is the sum of `terms` over all but the channels, as well as float32 adds up as many."""
    each = terms.double().reshape(shape)
    rounding = torch.finfo(got.dtype).eps * each.sum((0, 2)).abs() + torch.finfo(got.dtype).tiny
    assert ((got.double() - each.sum((0, 2))).abs() <= 2.0**-20 * each.abs().sum((0, 2)) + rounding).all()


def moved(run: Any, loads: int, stores: int) -> None:
    (launch,) = run.launches
    seen = launch.result.summary()
    assert (seen["load_bytes"], seen["store_bytes"]) == (loads, stores)
    assert (seen["unique_read_bytes"], seen["unique_written_bytes"]) == (loads, stores)
    assert {row["width"] for row in launch.result.traffic() if row["space"] == "global"} == {16}


# ---- gated units ----------------------------------------------------------------------------------------------------

WAYS = ["two", "concat", "concat, second", "interleaved", "interleaved, second"]


def lying(way: str, shape: tuple[int, int, int], gate: Tensor, value: Tensor) -> tuple[Gated, list[Tensor], str, str]:
    """Gate and value, as flat lists of elements: for the kernels, and for the operator (tensors, gate, layout)."""
    outer, channels, inner = shape
    if way == "two":
        return Gated((gate, value), shape), [gate.view(shape), value.view(shape)], "first", "concat"
    interleaved, second = way.startswith("interleaved"), way.endswith("second")
    pair = [t.view(shape) for t in ((value, gate) if second else (gate, value))]
    both = torch.stack(pair, 2 if interleaved else 1).reshape(outer, 2 * channels, inner).contiguous()
    return (
        Gated((both.flatten(),), shape, interleaved, second),
        [both],
        "second" if second else "first",
        "interleaved" if interleaved else "concat",
    )


def joined(bias: tuple[Tensor, Tensor] | None, way: str) -> list[Tensor | None]:
    """The biases of gate and value as the operator takes them."""
    if bias is None or way == "two":
        return list(bias or (None, None))
    first, second = bias[::-1] if way.endswith("second") else bias
    return [torch.stack([first, second], 1).flatten() if way.startswith("inter") else torch.cat([first, second]), None]


@each
def test_gated_values(dtype: torch.dtype, name: str) -> None:
    row = get(name)
    if not as_on_cpu(row):
        pytest.skip("compared with the CPU's bits")
    gate = torch.cat([sampled(dtype, 200), special(row, dtype)])
    value, grad = sampled(dtype, len(gate)), sampled(dtype, len(gate))
    value[::17], value[5::19] = math.inf, math.nan
    shape = (1, 1, len(gate))
    for options in ({}, {"alpha": 1.702, "offset": 1.0, "limit": 7.0}):
        x, tensors, *words = lying("two", shape, gate, value)
        on = device(dtype, name)
        call = (
            name,
            scalars(row),
            1,
            *words,
            options.get("limit"),
            options.get("alpha", 1.0),
            options.get("offset", 0),
        )
        run = clean(on.gated(name, x, scalars(row), **options))
        same(run["y"], torch.ops.fusedact.gated_act(*tensors, None, None, *call).flatten())
        run = clean(on.gated_backward(name, grad, x, scalars(row), **options))
        of_gate, of_value, *_ = torch.ops.fusedact.gated_act_backward(
            grad.view(shape), *tensors, None, None, *call, False, False
        )
        same(run["grad_0"], of_gate.flatten())
        same(run["grad_1"], of_value.flatten())


@shifts
@shapes
@dtypes
def test_gated_shapes(dtype: torch.dtype, shape: tuple[int, int, int], shift: int, units: int) -> None:
    name = MAIN[dtype]
    row, on, count = get(name), device(dtype, name, units), math.prod(shape)
    gate, value, grad = sampled(dtype, count), sampled(dtype, count), sampled(dtype, count)
    wider = torch.float64 if dtype == torch.float64 else torch.float32
    for number, way in enumerate(WAYS):
        x, tensors, *words = lying(way, shape, gate, value)
        other = tensors[1] if len(tensors) == 2 else None
        of = wider if number % 2 else dtype  # a float32 bias beside 16 bits
        for bias in (None, (sampled(of, shape[1]), sampled(of, shape[1]))):
            call = (*joined(bias, way), name, scalars(row), 1, *words, None, 1.0, 0.0)
            run = clean(on.gated(name, x, scalars(row), bias, shift=shift))
            same(run["y"], torch.ops.fusedact.gated_act(tensors[0], other, *call).flatten(), of=name)
            sums = None if bias is None else of
            run = clean(on.gated_backward(name, grad, x, scalars(row), bias, sums=sums, shift=shift))
            cpu = torch.ops.fusedact.gated_act_backward(grad.view(shape), tensors[0], other, *call, False, False)
            for result, expected in zip(("grad_0", "grad_1"), cpu[: len(tensors)], strict=False):
                same(run[result], expected.flatten(), of=name)
            if bias is None:
                continue
            # In the compute dtype, so that the terms have not been rounded.
            wide = [t.to(wider) for t in (grad.view(shape), *tensors)]
            biases = [None if b is None else b.to(wider) for b in call[:2]]
            exact = torch.ops.fusedact.gated_act_backward(
                *wide, *([None] * (2 - len(tensors))), *biases, *call[2:], False, False
            )
            if way == "two":
                terms = list(exact[:2])
            elif x.interleaved:
                terms = list(exact[0].view(shape[0], shape[1], 2, shape[2]).unbind(2))
            else:
                terms = list(exact[0].view(shape[0], 2, shape[1], shape[2]).unbind(1))
            for result, each in zip(("gate_sum", "value_sum"), terms[::-1] if x.second else terms, strict=True):
                near(run[result], each, shape)


@dtypes
def test_gated_bytes_move_once(dtype: torch.dtype) -> None:
    name, n = MAIN[dtype], 8192
    row, on = get(name), device(dtype, name, units=1)
    size = n * torch.empty((), dtype=dtype).element_size()
    for way in WAYS:
        x, *_ = lying(way, (16, n // 16, 1), sampled(dtype, n), sampled(dtype, n))
        run = clean(on.gated(name, x, scalars(row)))
        moved(run, loads=2 * size, stores=size)
        run = clean(on.gated_backward(name, sampled(dtype, n), x, scalars(row)))
        moved(run, loads=3 * size, stores=2 * size)


@dtypes
def test_gated_empty_launches_nothing(dtype: torch.dtype) -> None:
    empty = torch.empty(0, dtype=dtype)
    assert not device(dtype, MAIN[dtype]).gated(MAIN[dtype], Gated((empty, empty), (0, 4, 1))).launches


@dtypes
def test_gated_on_a_small_device(dtype: torch.dtype) -> None:
    """Blocks take several turns, in any order; the bits, sums included, are those of a large device."""
    name, shape = MAIN[dtype], (300, 300, 1)
    row = get(name)
    gate, value, grad = (sampled(dtype, 90_000) for _ in range(3))
    bias = sampled(dtype, 300), sampled(dtype, 300)
    x, *_ = lying("concat", shape, gate, value)
    runs = []
    for options in ({"sms": 1, "shuffle": True, "seed": 1, "approx": "perturb"}, {"sms": 108}):
        on = device(dtype, name, **options)
        runs.append(clean(on.gated_backward(name, grad, x, scalars(row), bias, sums=dtype)))
    assert runs[0].launches[0].grid[0] <= 32
    for result in ("grad_0", "gate_sum", "value_sum"):
        same(runs[0][result], runs[1][result])


# ---- the epilogue ---------------------------------------------------------------------------------------------------

SEED = 0x1234_5678_9ABC_DEF


def on_cpu(
    x: Tensor, shape: tuple[int, int, int], name: str, params: Any, **given: Any
) -> tuple[Tensor, tuple[Any, ...]]:
    """bias_act_epilogue's result, and the arguments that it shares with its backward."""
    seed, p = given.get("dropout") or (None, 0.0)
    beside = (
        given.get("bias"),
        given.get("weight"),
        given.get("scale"),
    )
    residual = given.get("residual")
    drawn = None if seed is None else torch.tensor(seed)
    rest = (name, params, 1, given.get("gain", 1.0), *(given.get("clamp") or (None, None)), p)
    residual = None if residual is None else residual.view(shape)
    y = torch.ops.fusedact.bias_act_epilogue(x.view(shape), *beside, residual, drawn, *rest)
    return y.flatten(), (*beside, drawn, *rest)


@each
def test_epilogue_values(dtype: torch.dtype, name: str) -> None:
    row = get(name)
    if not as_on_cpu(row):
        pytest.skip("compared with the CPU's bits")
    x = torch.cat([sampled(dtype, 200), special(row, dtype)])
    shape, params = (1, 1, len(x)), scalars(row)
    grad, residual = sampled(dtype, len(x)), sampled(dtype, len(x))
    on = device(dtype, name)
    for options in ({}, {"dropout": (SEED, 0.25), "gain": 1.5, "clamp": (-0.5, 0.75)}):
        y, call = on_cpu(x, shape, name, params, residual=residual, **options)
        same(clean(on.epilogue(name, x, shape, params, residual=residual, **options))["y"], y)
        run = clean(on.epilogue_backward(name, grad, x, shape, params, **options))
        cpu = torch.ops.fusedact.bias_act_epilogue_backward(grad.view(shape), x.view(shape), *call, False, False, False)
        same(run["grad_x"], cpu[0].flatten())


@shifts
@shapes
@dtypes
def test_epilogue_shapes(dtype: torch.dtype, shape: tuple[int, int, int], shift: int, units: int) -> None:
    name = MAIN[dtype]
    row, on, count = get(name), device(dtype, name, units), math.prod(shape)
    params = scalars(row)
    x, residual, grad = sampled(dtype, count), sampled(dtype, count), sampled(dtype, count)
    wider = torch.float64 if dtype == torch.float64 else torch.float32
    for of in {dtype, wider}:
        bias, scale = sampled(of, shape[1]), sampled(of, shape[1])
        given = {"bias": bias, "scale": scale, "dropout": (SEED, 0.4)}
        y, call = on_cpu(x, shape, name, params, residual=residual, **given)
        same(clean(on.epilogue(name, x, shape, params, residual=residual, **given, shift=shift))["y"], y, of=name)

        run = clean(
            on.epilogue_backward(
                name, grad, x, shape, params, **given, sums={"grad_bias": of, "grad_scale": of}, shift=shift
            )
        )
        backward = torch.ops.fusedact.bias_act_epilogue_backward
        same(
            run["grad_x"],
            backward(grad.view(shape), x.view(shape), *call, False, False, False)[0].flatten(),
            of=name,
        )
        wide = [None if v is None else v.to(wider) for v in call[:3]]
        unscaled = (wide[0], None, None, *call[3:])  # of x * scale as it is: the terms of the sums
        scaled = x.view(shape).to(wider) * wide[2].view(1, -1, 1)
        terms = backward(grad.view(shape).to(wider), scaled, *unscaled, False, False, False)[0]
        near(run["grad_bias"], terms, shape)
        near(run["grad_scale"], terms * x.view(shape).to(wider), shape)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@dtypes
def test_dropout_draws_the_cpus_mask(dtype: torch.dtype, p: float) -> None:
    """Whatever the shape, and wherever a warp begins: identity shows the factors."""
    for shape in [(1, 1, 1), (1, 1, 63), (1, 1, 4100), (7, 200, 1), (3, 2, 1029)]:
        x = torch.ones(math.prod(shape), dtype=dtype)
        bias = torch.zeros(shape[1], dtype=dtype)
        expected, _ = on_cpu(x, shape, "identity", (), bias=bias, dropout=(SEED, p))
        run = clean(device(dtype, "identity").epilogue("identity", x, shape, bias=bias, dropout=(SEED, p)))
        same(run["y"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=STORAGE.get)
def test_dropout_mask(dtype: torch.dtype) -> None:
    for count, shift in [(1, 0), (64, 0), (3001, 0), (3001, 1), (70_000, 0)]:
        on = device(dtype, "identity", sms=1)
        run = clean(on.dropout_mask(SEED, 0.3, count, dtype, shift))
        same(run["mask"], torch.ops.fusedact.dropout_mask(torch.tensor(SEED), [count], 0.3, dtype))


@dtypes
def test_a_mask_in_place_of_a_seed(dtype: torch.dtype) -> None:
    compute, shape = torch.float64 if dtype == torch.float64 else torch.float32, (3, 40, 5)
    x, name = sampled(dtype, 600), MAIN[dtype]
    mask = torch.ops.fusedact.dropout_mask(torch.tensor(SEED), [600], 0.3, compute)
    expected, _ = on_cpu(x, shape, name, scalars(get(name)), dropout=(SEED, 0.3))
    for shift in (0, 1):
        run = clean(device(dtype, name).epilogue(name, x, shape, scalars(get(name)), dropout=mask, shift=shift))
        same(run["y"], expected, of=name)


@pytest.mark.parametrize("extent", ["one", "channel"])
def test_epilogue_with_a_learnt_parameter(extent: str) -> None:
    dtype, name = torch.float32, "prelu"
    for shape in SHAPES:
        x, grad = sampled(dtype, math.prod(shape)), sampled(dtype, math.prod(shape))
        weight = sampled(dtype, shape[1] if extent == "channel" else 1).abs()
        given: dict[str, Any] = {"weight": weight, "dropout": (SEED, 0.3)}
        params, on = scalars(get(name)), device(dtype, name)
        y, call = on_cpu(x, shape, name, params, **given)
        same(clean(on.epilogue(name, x, shape, params, **given, extent=extent))["y"], y)
        run = clean(
            on.epilogue_backward(name, grad, x, shape, params, **given, extent=extent, sums={"grad_weight": dtype})
        )
        cpu = torch.ops.fusedact.bias_act_epilogue_backward(grad.view(shape), x.view(shape), *call, False, True, False)
        same(run["grad_x"], cpu[0].flatten())
        assert ((run["grad_weight"] - cpu[2]).abs() <= 2**-22 * 8 * (grad * x).abs().sum()).all()


@dtypes
def test_epilogue_bytes_move_once(dtype: torch.dtype) -> None:
    name, n = MAIN[dtype], 8192
    row, on, x = get(name), device(dtype, name, units=1), sampled(dtype, n)
    size, shape = n * x.element_size(), (1, 1, n)
    run = clean(on.epilogue(name, x, shape, scalars(row), residual=x.clone()))
    moved(run, loads=2 * size, stores=size)
    run = clean(on.epilogue_backward(name, x.clone(), x, shape, scalars(row)))
    moved(run, loads=2 * size, stores=size)
    # The seed is one more load, of 8 bytes by every thread, all in one sector.
    run = clean(on.epilogue(name, x, shape, scalars(row), dropout=(SEED, 0.5)))
    seen = run.launches[0].result.summary()
    assert (seen["unique_read_bytes"], seen["unique_written_bytes"]) == (size + 8, size)


# ---- softmax --------------------------------------------------------------------------------------------------------

# A warp for a row, a block for one, one that registers do not hold; columns alone and in packs.
ROWS = [
    (1, 1, 1),
    (5, 64, 1),
    (37, 10, 1),
    (3, 1000, 1),
    (2, 5003, 1),
    (1, 9000, 1),
    (2, 7, 40),
    (3, 20, 49),
    (1, 5, 256),
]
rows = pytest.mark.parametrize("shape", ROWS, ids=str)
logs = pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])


def ulps(got: Tensor, true: Tensor) -> Tensor:
    """How far from the truth, in units of the last place of got's dtype."""
    info = torch.finfo(got.dtype)
    _, exponent = torch.frexp(true.abs().clamp_min(info.tiny))
    return (got.double() - true).abs() / (info.eps * torch.exp2(exponent.double() - 1))


def log_softmax_of(v: Tensor) -> Tensor:
    """Of float64, along dim 1: right near zero, too, where the greatest would drown the rest."""
    top, where = v.max(1, keepdim=True)
    rest = (v - top).exp().scatter(1, where, 0.0).sum(1, keepdim=True)
    return (v - top) - rest.log1p()


def softmax_on(on: Device, x: Tensor, shape: Any, bias: Tensor | None, log: bool, shift: int = 0) -> Tensor:
    args = SoftmaxArgs(shape=Shape(*shape), dtype=DTYPE[x.dtype], log=log)
    given = {} if bias is None else {"bias": ("vector", bias)}
    return clean(on.pass_of("softmax", args, shift, x=x, **given, y=((len(x),), x.dtype)))["y"]


@logs
@rows
@dtypes
def test_softmax(dtype: torch.dtype, shape: tuple[int, int, int], log: bool) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = sampled(dtype, math.prod(shape))
    for number, of in enumerate((None, dtype, wide)):
        bias = None if of is None else sampled(of, shape[1])
        y = softmax_on(device(dtype, "identity"), x, shape, bias, log, shift=number % 2)
        v = x.view(shape).double() + (0 if bias is None else bias.double().view(1, -1, 1))
        if dtype == torch.float64:  # the truth would need more digits than it has
            cpu = torch.ops.fusedact.softmax(x.view(shape), bias, 1, log).flatten()
            assert (ulps(y, cpu.double()) <= 6).all()  # 4 here and 2 there, as the contract has it
            continue
        true = (log_softmax_of(v) if log else v.softmax(1)).flatten()
        # Or the CPU's own value, which tests/test_softmax.py judges: near the root of a logarithm float64 is no truth.
        cpu = torch.ops.fusedact.softmax(x.view(shape), bias, 1, log).flatten()
        good = ulps(y, true) <= (4 if dtype == torch.float32 else 0.51)
        assert (good | (y == cpu) | (true.abs() <= torch.finfo(dtype).tiny)).all()


@logs
@dtypes
def test_softmax_of_no_number(dtype: torch.dtype, log: bool) -> None:
    """A row with NaN, with inf, or of -inf only is NaN throughout, and no other row."""
    inf, nan = math.inf, math.nan
    x = torch.tensor([[1, nan, 2], [1, inf, 2], [inf, -inf, 0], [-inf] * 3, [-inf, 1, 2], [3e4, -3e4, 3e4]]).to(dtype)
    expected = torch.ops.fusedact.softmax(x, None, 1, log)
    for shape, values in (((6, 3, 1), x), ((1, 3, 6), x.t().contiguous())):
        y = softmax_on(device(dtype, "identity"), values.flatten(), shape, None, log).view(values.shape)
        y = y if shape[2] == 1 else y.t()
        assert torch.equal(y.isnan(), expected.isnan())
        torch.testing.assert_close(y, expected, equal_nan=True)


@logs
@rows
@dtypes
def test_softmax_backward(dtype: torch.dtype, shape: tuple[int, int, int], log: bool) -> None:
    x, grad = sampled(dtype, math.prod(shape)), sampled(dtype, math.prod(shape))
    y = torch.ops.fusedact.softmax(x.view(shape), None, 1, log)
    args = SoftmaxBackwardArgs(shape=Shape(*shape), dtype=DTYPE[dtype], log=log)
    given = {"grad": grad, "y": y.flatten(), "grad_x": ((len(x),), dtype), "grad_bias": ("sum", shape[1], dtype)}
    run = clean(device(dtype, "identity").pass_of("softmax_backward", args, **given))
    g, v = grad.view(shape).double(), y.double()
    share = v.exp() if log else v
    true = g - share * g.sum(1, keepdim=True) if log else v * (g - (g * v).sum(1, keepdim=True))
    size = g.abs() + share * g.abs().sum(1, keepdim=True) if log else v * (g.abs() + (g * v).abs().sum(1, keepdim=True))
    eps = torch.finfo(dtype).eps
    slack = 2.0**-49 if dtype == torch.float64 else min(eps, 2.0**-21)  # the truth is float64 itself
    error = (run["grad_x"].double().view(shape) - true).abs()
    assert (error <= slack * size + eps / 2 * true.abs() + torch.finfo(dtype).tiny).all()
    near(run["grad_bias"], run["grad_x"], shape)


# ---- maxout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("outer", "outputs", "inner"), [(5, 8, 1), (37, 3, 1), (2, 3, 49), (3, 2, 64), (1, 300, 1)])
@dtypes
def test_maxout(dtype: torch.dtype, outer: int, outputs: int, inner: int, pieces: int) -> None:
    shape, fewer = (outer, outputs * pieces, inner), (outer, outputs, inner)
    x = sampled(dtype, math.prod(shape)).round()  # ties
    x[::29] = math.nan
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    on, count = device(dtype, "identity"), math.prod(fewer)
    for number, bias in enumerate((None, sampled(dtype, shape[1]), sampled(wide, shape[1]))):
        y, indices = torch.ops.fusedact.maxout(x.view(shape), bias, pieces, 1)
        args = MaxoutArgs(shape=Shape(*shape), pieces=pieces, dtype=DTYPE[dtype])
        given = {} if bias is None else {"bias": ("vector", bias)}
        run = clean(
            on.pass_of("maxout", args, number % 2, x=x, **given, y=((count,), dtype), indices=((count,), torch.uint8))
        )
        same(run["y"], y.flatten())
        assert torch.equal(run["indices"], indices.flatten())
        grad = sampled(dtype, count)
        args = MaxoutBackwardArgs(shape=Shape(*shape), pieces=pieces, dtype=DTYPE[dtype])
        given = {} if bias is None else {"grad_bias": ("sum", shape[1], bias.dtype)}
        run = clean(
            on.pass_of(
                "maxout_backward",
                args,
                number % 2,
                grad=grad,
                indices=indices.flatten(),
                grad_x=((len(x),), dtype),
                **given,
            )
        )
        cpu = torch.ops.fusedact.maxout_backward(grad.view(fewer), indices, bias, pieces, 1, bias is not None)
        same(run["grad_x"], cpu[0].flatten())
        if bias is not None:
            near(run["grad_bias"], run["grad_x"], shape)


# ---- cells ----------------------------------------------------------------------------------------------------------

cells = pytest.mark.parametrize(("count", "hidden"), [(1, 1), (3, 64), (40, 10), (9, 33), (5, 136)])


@cells
@dtypes
def test_lstm(dtype: torch.dtype, count: int, hidden: int) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gates, c = sampled(dtype, count * 4 * hidden), sampled(dtype, count * hidden)
    grads = sampled(dtype, count * hidden), sampled(dtype, count * hidden)
    rows, on, size = (count, hidden), device(dtype, "identity"), ((count * hidden,), dtype)
    for number, bias in enumerate((None, sampled(dtype, 4 * hidden), sampled(wide, 4 * hidden))):
        given: dict[str, Any] = {} if bias is None else {"bias": ("vector", bias)}
        args = LstmArgs(rows=count, hidden=hidden, dtype=DTYPE[dtype])
        run = clean(on.pass_of("lstm", args, number % 2, gates=gates, c=c, **given, h=size, c_new=size))
        shaped = gates.view(count, -1), c.view(rows), bias
        for result, expected in zip(("h", "c_new"), torch.ops.fusedact.lstm_cell_act(*shaped), strict=True):
            same(run[result], expected.flatten(), of="tanh")
        if bias is not None:
            given["grad_bias"] = ("sum", 4 * hidden, bias.dtype)
        of_h, of_c = grads if number else (grads[0], None)
        args = LstmBackwardArgs(rows=count, hidden=hidden, dtype=DTYPE[dtype])
        given |= {"grad_h": of_h, "grad_c_new": of_c, "gates": gates, "c": c}
        results = {"grad_gates": ((len(gates),), dtype), "grad_c": size}
        run = clean(on.pass_of("lstm_backward", args, number % 2, **given, **results))
        back = of_h.view(rows), None if of_c is None else of_c.view(rows)
        cpu = torch.ops.fusedact.lstm_cell_act_backward(*back, *shaped, False)
        same(run["grad_gates"], cpu[0].flatten(), of="tanh")
        same(run["grad_c"], cpu[1].flatten(), of="tanh")
        if bias is not None:
            near(run["grad_bias"], run["grad_gates"], (count, 4 * hidden, 1))


@cells
@dtypes
def test_gru(dtype: torch.dtype, count: int, hidden: int) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gates = sampled(dtype, count * 3 * hidden), sampled(dtype, count * 3 * hidden)
    h, grad = sampled(dtype, count * hidden), sampled(dtype, count * hidden)
    rows, on, size = (count, hidden), device(dtype, "identity"), ((count * hidden,), dtype)
    of_gates = ((count * 3 * hidden,), dtype)
    for number, of in enumerate((None, dtype, wide)):
        biases = (None, None) if of is None else (sampled(of, 3 * hidden), sampled(of, 3 * hidden))
        given: dict[str, Any] = {"input_gates": gates[0], "hidden_gates": gates[1], "h": h}
        if of is not None:
            given |= {"input_bias": ("vector", biases[0]), "hidden_bias": ("vector", biases[1])}
        args = GruArgs(rows=count, hidden=hidden, dtype=DTYPE[dtype])
        run = clean(on.pass_of("gru", args, number % 2, **given, h_new=size))
        shaped = [t.view(count, -1) for t in gates] + [h.view(rows), *biases]
        same(run["h_new"], torch.ops.fusedact.gru_cell_act(*shaped).flatten(), of="tanh")
        if of is not None:
            given |= {"grad_input_bias": ("sum", 3 * hidden, of), "grad_hidden_bias": ("sum", 3 * hidden, of)}
        results = {"grad_input_gates": of_gates, "grad_hidden_gates": of_gates, "grad_h": size}
        args = GruBackwardArgs(rows=count, hidden=hidden, dtype=DTYPE[dtype])
        run = clean(on.pass_of("gru_backward", args, number % 2, grad=grad, **given, **results))
        cpu = torch.ops.fusedact.gru_cell_act_backward(grad.view(rows), *shaped, False, False)
        for result, expected in zip(results, cpu, strict=False):
            same(run[result], expected.flatten(), of="tanh")
        if of is not None:
            near(run["grad_input_bias"], run["grad_input_gates"], (count, 3 * hidden, 1))
            near(run["grad_hidden_bias"], run["grad_hidden_gates"], (count, 3 * hidden, 1))


# ---- statistics -----------------------------------------------------------------------------------------------------

# Rows that stand still and columns of channels, one channel, pieces of a row, several groups of rows.
COUNTED_SHAPES = [*SHAPES, (1, 1, 1), (1, 1, 9000), (600, 1, 3), (1100, 40, 1), (1, 2, 9000)]
ZONES = (-math.inf, -1.0, 0.25, 0.5)


def numbers(count: int, dtype: torch.dtype) -> Tensor:
    """Multiples of 1/64: with a bias of such their sums are exact, and a few are no numbers."""
    x = (torch.randn(count) * 200).round().div(64)
    x[::131], x[7::97], x[11::89] = math.nan, math.inf, -math.inf
    return x.to(dtype)


@shifts
@pytest.mark.parametrize("shape", COUNTED_SHAPES, ids=str)
@dtypes
def test_statistics(dtype: torch.dtype, shape: tuple[int, int, int], shift: int, units: int) -> None:
    """What the CPU counts: whole numbers alike, sums as well as float64 adds them up; added to what is there."""
    on, n = device(dtype, "identity", units), math.prod(shape)
    x, y, bias = numbers(n, dtype), numbers(n, dtype).relu(), numbers(shape[1] + 7, dtype)[1:-6].nan_to_num(0.5, 1, 2)
    for given in ((x, bias, y), (x, None, None), (None, None, y)):
        sums, bins = empty_sums(shape[1]), torch.zeros(BINS, dtype=torch.float64)
        on_cpu = sums.clone(), bins.clone()
        for _ in range(2):
            run = clean(on.statistics(given[0], given[2], shape, sums, bins, given[1], ZONES, shift))
            sums, bins = run["sums"], run["histogram"]
            shaped = (
                given[0] if given[0] is None else x.view(shape),
                given[1],
                given[2] if given[2] is None else y.view(shape),
            )
            torch.ops.fusedact.statistics_(*on_cpu, *shaped, 1, ZONES)
        for row, (got, cpu) in enumerate(zip(sums, on_cpu[0], strict=True)):
            exact = COUNTED[row] not in ("sum", "squares")
            limit = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-12, "atol": 1e-9}
            torch.testing.assert_close(got, cpu, equal_nan=True, **limit, msg=lambda m, r=row: f"{COUNTED[r]}: {m}")
        assert torch.equal(bins, on_cpu[1])


@dtypes
def test_statistics_have_the_same_bits_on_a_small_device(dtype: torch.dtype) -> None:
    shape, x = (300, 300, 1), sampled(dtype, 90_000)
    runs = []
    for options in ({"sms": 1, "shuffle": True, "seed": 1}, {"sms": 108}):
        on = device(dtype, "identity", **options)
        bins = torch.zeros(BINS, dtype=torch.float64)
        runs.append(clean(on.statistics(x, x.relu(), shape, empty_sums(300), bins, zones=ZONES)))
    assert runs[0].launches[0].grid[0] <= 32
    for result in ("sums", "histogram"):
        same(runs[0][result], runs[1][result])


@dtypes
def test_statistics_read_each_byte_once(dtype: torch.dtype) -> None:
    shape, n = (16, 512, 1), 8192
    x, bins = sampled(dtype, n), torch.zeros(BINS, dtype=torch.float64)
    run = clean(device(dtype, "identity", units=1).statistics(x, x.relu(), shape, empty_sums(512), bins, zones=ZONES))
    read = [r for r in run.launches[0].result.traffic() if r["space"] == "global" and r["kind"] == "load"]
    assert {row["width"] for row in read} == {16}
    assert sum(row["bytes"] for row in read) == 2 * n * x.element_size()


@dtypes
def test_statistics_of_nothing_launch_nothing(dtype: torch.dtype) -> None:
    empty = torch.empty(0, dtype=dtype)
    assert not device(dtype, "identity").statistics(empty, empty, (0, 4, 1), empty_sums(4)).launches


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=slow)], ids=["sample", "all"])
def test_budgets(every: bool) -> None:
    """As `python benchmarks/budgets.py --blocks --check` prints them."""
    from budgets import block_budgets, operator_budgets

    judged, built = ALL if every else {torch.bfloat16: ("silu",)}, blocks_library(ALL if every else SAMPLE, units=1)
    found = [*block_budgets(judged, built), *operator_budgets([*judged], built)]
    assert len(found) == 9 * sum(map(len, judged.values())) + 10 * len(judged)
    known = [b for b in found if spills(b) and max(b.spills.values()) <= 72]
    missed = [f"{b.activation} {b.dtype} {b.kernel}: {fault}" for b in found if b not in known for fault in b.faults]
    assert not missed, "\n".join(missed)


# Missed budgets, which `budgets.py --check` reports: two blocks on a multiprocessor leave these 128 registers a thread,
# and they want 130 to 180.
SPILLING = {
    "gated backward": {
        ("tanhshrink", "float32"), ("situ", "float32"),
        *itertools.product(("elu", "celu", "selu"), ("bfloat16", "float16")),
    },
    "dropout backward": {("situ", "float32")},
}  # fmt: skip


def spills(b: Any) -> bool:
    return (b.activation, b.dtype) in SPILLING.get(b.kernel.split(",")[0], ())
