"""Kinks, signed zeros, infinities, NaN and subnormals: PyTorch's conventions, the same bits wherever an element lies.

The tables are those of activations.md, by hand. A row without an entry is held to its own reference at its own kinks.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, ROWS, call, kinks, policies, row_id
from torch import Tensor
from truth import triple

from fusedact.registry import Activation

nan, inf = math.nan, math.inf
SIGMOID_20 = 1 / (1 + math.exp(-20))

# f'(x) where f has a kink, and at 0.
SLOPE = {
    "identity": {0: 1},
    "relu": {0: 0},
    "relu6": {0: 0, 6: 0},
    "leaky_relu": {0: 0.01},
    "prelu": {0: 0.25},
    "rrelu": {0: (1 / 8 + 1 / 3) / 2},
    "elu": {0: 1},
    "celu": {0: 1},
    "selu": {0: 1.0507009873554805 * 1.6732632423543772},
    "gelu": {0: 0.5},
    "gelu_tanh": {0: 0.5},
    "quick_gelu": {0: 0.5},
    "silu": {0: 0.5},
    "swish": {0: 0.5},
    "mish": {0: 0.6},
    "softplus": {0: 0.5, 20: SIGMOID_20},
    "sigmoid": {0: 0.25},
    "logsigmoid": {0: 0.5},
    "tanh": {0: 1},
    "tanhshrink": {0: 0},
    "softsign": {0: 1},
    "hardtanh": {-1: 0, 1: 0},
    "clamp": {-1: 1, 1: 1},
    "hardsigmoid": {-3: 0, 3: 0},
    "hardswish": {-3: 0, 3: 1},
    "hardshrink": {-0.5: 0, 0.5: 0},
    "softshrink": {-0.5: 0, 0.5: 0},
    "threshold": {0: 0},
    "fatrelu": {0: 0},
    "squared_relu": {0: 0},
    "hard_mish": {-2: -1, 0: 1},
    "softcap": {0: 1},
    "situ": {0: 0.5},
    "elup1": {0: 1},
    "square": {0: 0},
    "signed_sqrt": {0: inf},
    "cos": {0: 0},
    "sin": {0: 1},
}

# f''(x) at the same places, where the table of activations.md states it.
CURVATURE = {
    "relu": {0: 0},
    "elu": {0: 0},
    "celu": {0: 0},
    "selu": {0: 0},
    "elup1": {0: 0},
    "gelu": {0: 0.7978845608028654},
    "gelu_tanh": {0: 0.7978845608028654},
    "quick_gelu": {0: 0.851},
    "silu": {0: 0.5},
    "swish": {0: 0.5},
    "mish": {0: 0.64},
    "softplus": {0: 0.25, 20: SIGMOID_20 * (1 - SIGMOID_20)},
    "sigmoid": {0: 0},
    "logsigmoid": {0: -0.25},
    "tanh": {0: 0},
    "tanhshrink": {0: 0},
    "softsign": {0: 0},
    "hardsigmoid": {-3: 0, 3: 0},
    "hardswish": {-3: 0, 3: 0},
    "squared_relu": {0: 0},
    "softcap": {0: 0},
    "square": {0: 2},
    "cos": {0: -1},
    "sin": {0: 0},
}

# f(-inf), f(inf), f'(NaN). Forward at NaN is NaN for all.
ENDS = {
    "identity": (-inf, inf, 1),
    "relu": (0, inf, 1),
    "relu6": (0, 6, 1),
    "leaky_relu": (-inf, inf, 0.01),
    "prelu": (-inf, inf, 0.25),
    "rrelu": (-inf, inf, (1 / 8 + 1 / 3) / 2),
    "elu": (-1, inf, 1),
    "celu": (-1, inf, 1),
    "selu": (-1.7580993408473766, inf, 1.0507009873554805),
    "gelu": (nan, inf, nan),
    "gelu_tanh": (nan, inf, nan),
    "quick_gelu": (nan, inf, nan),
    "silu": (nan, inf, nan),
    "swish": (nan, inf, nan),
    "mish": (nan, inf, nan),
    "softplus": (0, inf, nan),
    "sigmoid": (0, 1, nan),
    "logsigmoid": (-inf, 0, nan),
    "tanh": (-1, 1, nan),
    "tanhshrink": (-inf, inf, nan),
    "softsign": (nan, nan, nan),
    "hardtanh": (-1, 1, 1),
    "clamp": (-1, 1, 0),
    "hardsigmoid": (0, 1, 0),
    "hardswish": (nan, inf, 1),
    "hardshrink": (-inf, inf, 1),
    "softshrink": (-inf, inf, 1),
    "threshold": (0, inf, 1),
    "fatrelu": (0, inf, 1),
    "squared_relu": (0, inf, nan),
    "hard_mish": (nan, inf, nan),
    "softcap": (-30, 30, nan),
    "situ": (0, 4, nan),
    "elup1": (0, inf, 1),
    "square": (inf, inf, nan),
    "signed_sqrt": (-inf, inf, nan),
    "cos": (nan, nan, nan),
    "sin": (nan, nan, nan),
}

# Gradients at +-inf that activations.md states: NaN both ways.
NAN_SLOPE_AT_INF = {"gelu", "gelu_tanh", "silu", "mish", "softsign"}

# PyTorch's function for a row; the others have none.
TORCH = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.25, dtype=x.dtype)),
    "rrelu": F.rrelu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "tanhshrink": F.tanhshrink,
    "softsign": F.softsign,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: torch.clamp(x, -1.0, 1.0),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "square": torch.square,
    "cos": torch.cos,
    "sin": torch.sin,
}

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
floats = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def kink_slopes(row: Activation) -> dict[float, float]:
    if row.name in SLOPE:
        return SLOPE[row.name]
    at = [0.0, *kinks(row)]
    return dict(zip(at, triple(row, torch.tensor(at))[1].tolist(), strict=True))


def ends(row: Activation) -> tuple[float, float, float]:
    if row.name in ENDS:
        return ENDS[row.name]
    value, first, _ = triple(row, torch.tensor([-inf, inf, nan]))
    return value[0].item(), value[1].item(), first[2].item()


def slope(row: Activation, x: Tensor, grad: float = 1.0, **options) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(call(row, x, **options), x, torch.full_like(x, grad))[0]


def close(got: Tensor, wanted: list[float], dtype: torch.dtype) -> None:
    """Equal to the rounding of `dtype` (and, for a slope computed in float32, its 4 ulp or 2e-7 at a root)."""
    wide = torch.tensor(wanted, dtype=torch.float64)
    limit = {"rtol": max(torch.finfo(dtype).eps, 1e-15) * 4, "atol": 2e-7 if dtype != torch.float64 else 1e-15}
    torch.testing.assert_close(got.double(), wide, **limit, equal_nan=True)


@rows
@floats
def test_slope_at_kinks(row: Activation, dtype: torch.dtype) -> None:
    table = kink_slopes(row)
    for save in policies(row):
        got = slope(row, torch.tensor(list(table), dtype=dtype), save=save)
        close(got, list(table.values()), dtype)


@rows
def test_slope_at_negative_zero_is_that_at_zero(row: Activation) -> None:
    zeros = torch.tensor([0.0, -0.0] * 9)
    for save in policies(row):
        got = slope(row, zeros, save=save)
        assert torch.equal(got, got[0].expand_as(got)), got


@rows
@floats
def test_curvature_at_kinks(row: Activation, dtype: torch.dtype) -> None:
    table = CURVATURE.get(row.name)
    if table is None:
        pytest.skip("no convention is stated for f'' at its kinks")
    x = torch.tensor([float(k) for k in table], dtype=dtype, requires_grad=True)
    first = torch.autograd.grad(call(row, x, save="input").sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.zeros_like(x)
    close(second, [float(v) for v in table.values()], dtype)


@rows
@floats
def test_infinities(row: Activation, dtype: torch.dtype) -> None:
    below, above, _ = ends(row)
    got = call(row, torch.tensor([-inf, inf] * 9, dtype=dtype))
    close(got, [below, above] * 9, dtype)
    if row.name in NAN_SLOPE_AT_INF:
        assert slope(row, torch.tensor([-inf, inf] * 9, dtype=dtype)).isnan().all()


@rows
@floats
def test_nan(row: Activation, dtype: torch.dtype) -> None:
    x = torch.full((19,), nan, dtype=dtype)
    assert call(row, x).isnan().all(), "forward loses a NaN"
    wanted = ends(row)[2]
    for save in policies(row):
        close(slope(row, x, save=save), [wanted] * 19, dtype)


@rows
def test_a_nan_from_the_bias_is_a_nan(row: Activation) -> None:
    assert call(row, torch.zeros(3, 19), torch.full((19,), nan)).isnan().all()


@rows
@floats
def test_extremes_agree_with_pytorch(row: Activation, dtype: torch.dtype) -> None:
    """Values at +-0, +-inf, kinks and the ends of the range are PyTorch's, where PyTorch has the function."""
    if row.name not in TORCH:
        pytest.skip("PyTorch has no such function")
    info = torch.finfo(dtype)
    x = torch.tensor([0.0, -0.0, inf, -inf, info.max / 8, -info.max / 8, info.tiny, -info.tiny, 1e4, -1e4], dtype=dtype)
    x = torch.cat([x, torch.tensor([float(k) for k in SLOPE[row.name]], dtype=dtype)])
    one_by_one = [
        TORCH[row.name](v.reshape(1)) for v in x
    ]  # gelu(inf) is NaN in vectors of AVX-512, inf in PyTorch's scalar loop
    wanted, got = torch.cat(one_by_one), call(row, x)
    if row.name in {"gelu", "gelu_tanh", "silu", "mish"}:  # PyTorch's tail underflows too early
        keep = x.isinf() | (x > -1e4)
        wanted, got = wanted[keep], got[keep]
    torch.testing.assert_close(got, wanted, rtol=8 * info.eps, atol=info.tiny, equal_nan=True)


def test_relu_keeps_the_sign_of_zero() -> None:
    for dtype in DTYPES:
        got = call("relu", torch.tensor([-0.0, 0.0] * 20, dtype=dtype))
        assert torch.equal(got.signbit(), torch.tensor([True, False] * 20))


def specials(row: Activation, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    kinks = [float(k) for k in kink_slopes(row)]
    beside = [k * (1 + s * info.eps) for k in kinks for s in (-1, 1)]
    ends = [0.0, -0.0, inf, -inf, nan, info.max, -info.max, info.tiny, -info.tiny, info.smallest_normal / 4]
    usual = [-info.smallest_normal / 2, 1.25, -1.75, 3.5, -4.5, 17.0, -17.0, 90.0, -90.0]
    return torch.tensor(kinks + beside + ends + usual, dtype=dtype)


def bits(t: Tensor) -> Tensor:
    """The bits, with one NaN for all NaNs: neither IEEE 754 nor PyTorch promises a payload or a sign."""
    t = torch.where(t.isnan(), torch.full_like(t, nan), t)
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


@rows
@floats
def test_same_bits_at_every_position_and_alignment(row: Activation, dtype: torch.dtype) -> None:
    """Each special value at each index of each length 1..67, at each misalignment: vector body, tail, one answer."""
    values = specials(row, dtype)
    alone = [v.reshape(1) for v in values]
    forward = bits(torch.cat([call(row, v) for v in alone]))
    backward = bits(torch.cat([slope(row, v, 1.5) for v in alone]))
    order = torch.arange(67 + len(values)) % len(values)
    for length in range(1, 68):
        for start in range(0, len(values), 1 if length in (1, 8, 9, 16, 17, 31, 64, 67) else 5):
            pick = order[start : start + length]
            room = torch.empty(length + 8, dtype=dtype)
            x = room[start % 8 : start % 8 + length].copy_(values[pick])
            assert torch.equal(bits(call(row, x)), forward[pick]), f"forward, length {length}, offset {start % 8}"
            if length % 3 == 1 or length < 18:
                leaf = x.detach().requires_grad_()
                grad = torch.autograd.grad(call(row, leaf), leaf, torch.full_like(leaf, 1.5))[0]
                assert torch.equal(bits(grad), backward[pick]), f"backward, length {length}, offset {start % 8}"


@rows
def test_same_bits_in_large_tensors(row: Activation) -> None:
    """Past every threshold (several threads' grains, streaming stores) as in a small tensor."""
    values = torch.cat([specials(row, torch.float32), torch.randn(997)])
    x = values.repeat(3_000_000 // len(values))[:-3]
    assert torch.equal(bits(call(row, x)), bits(call(row, values)).repeat(3_000_000 // len(values))[:-3])


@rows
def test_subnormals(row: Activation) -> None:
    """Not flushed: f(x) for subnormal x is within a subnormal step of the true value."""
    step = 2.0**-149
    x = torch.tensor([s * k * step for k in (1, 2, 3, 1000, 2**22, 2**23 - 1) for s in (-1, 1)] * 3)
    true = triple(row, x)[0]
    error = (call(row, x).double() - true).abs()
    scale = torch.where(true.abs() < 2.0**-126, step, true.abs() * 2.0**-23)
    assert (error <= 1.5 * scale).all(), torch.stack([x.double(), true, error / scale])
