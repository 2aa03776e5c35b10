"""Gated units: every activation, layout and dtype against float64 formulas and torch's own functions; derivatives of
every order; transforms; modules and checkpoints; errors.

Tolerances: of a product of two float32 numbers, the activation good to 2 ulp and the other to half an ulp, as LIMITS of
test_layout.py; 16-bit results are rounded once, so half an ulp.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import DTYPES, ROWS, layouts, reference, row_id, smooth_points
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional as F

import fusedact
from fusedact import gated_act
from fusedact.registry import Activation
from fusedact.testing import ulp_error

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
gates = pytest.mark.parametrize("gate", ["first", "second"])
orders = pytest.mark.parametrize("layout", ["concat", "interleaved"])
OP, BACKWARD = torch.ops.fusedact.gated_act.default, torch.ops.fusedact.gated_act_backward.default
SMOOTH = ("silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "identity", "mish")
OPTIONS: list[dict[str, Any]] = [{}, {"limit": 0.7, "alpha": 1.702, "offset": 1.0}]

LIMITS = {
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.float64: {"rtol": 1e-13, "atol": 1e-13},
}


def halves(x: Tensor, dim: int, layout: str) -> tuple[Tensor, Tensor]:
    if layout == "concat":
        return x.chunk(2, dim)
    index = [torch.arange(start, x.size(dim), 2) for start in (0, 1)]
    return x.index_select(dim, index[0]), x.index_select(dim, index[1])


def along(bias: Tensor | None, x: Tensor, dim: int) -> Tensor | float:
    if bias is None:
        return 0.0
    shape = [1] * x.dim()
    shape[dim] = -1
    return bias.reshape(shape)


def expected(
    row: Activation | str, x: Tensor, bias: Tensor | None = None, *, dim: int = -1, gate: str = "first",
    layout: str = "concat", limit: float | None = None, alpha: float = 1.0, offset: float = 0.0, **params: Any,
) -> Tensor:  # fmt: skip
    """The formula, with torch's operators, in the dtype of x."""
    row = fusedact.registry.get(row) if isinstance(row, str) else row
    g, v = halves(x + along(bias, x, dim), dim, layout)
    if gate == "second":
        g, v = v, g
    if limit is not None:
        g, v = g.clamp(max=limit), v.clamp(-limit, limit)
    return reference(row, g * alpha, **params) / alpha * (v + offset)


def check(row: Activation | str, x: Tensor, bias: Tensor | None, grad: Tensor | None = None, **options: Any) -> None:
    """Value and gradients, against the formula in float64 on the same numbers."""
    name = row if isinstance(row, str) else row.name
    leaves = [t.detach().requires_grad_() for t in (x, bias) if t is not None]
    wide = [t.detach().double().requires_grad_() for t in (x, bias) if t is not None]
    y = gated_act(leaves[0], *leaves[1:], activation=name, **options)
    truth = expected(row, *wide, **options)
    limits = LIMITS[x.dtype]
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), truth, **limits)
    grad = torch.linspace(-1.3, 1.7, y.numel()).to(y.dtype).view(y.shape) if grad is None else grad
    got = torch.autograd.grad(y, leaves, grad)
    wanted = torch.autograd.grad(truth, wide, grad.double())
    assert got[0].stride() == x.stride() or not x.is_contiguous()
    torch.testing.assert_close(got[0].double(), wanted[0], **limits)
    if bias is not None:
        spread = max(1.0, x.numel() / max(1, bias.numel())) ** 0.5
        torch.testing.assert_close(
            got[1].double(), wanted[1], rtol=limits["rtol"] * spread, atol=limits["atol"] * spread
        )


# ---- values and first derivatives -----------------------------------------------------------------------------------


@rows
@gates
@orders
def test_every_activation(row: Activation, gate: str, layout: str) -> None:
    x = smooth_points(row, (6, 34), dtype=torch.float64)
    bias = torch.zeros(34, dtype=torch.float64)
    bias[::2] = 2.0**-6  # crosses no kink
    for options in OPTIONS:
        if row.name in ("elu", "celu") and options:
            options = {**options, "alpha": 1.0}  # theirs means something else
        check(row, x, bias, gate=gate, layout=layout, **options)
        check(row, x.float(), bias.float(), gate=gate, layout=layout, **options)


@gates
@orders
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "limited"])
def test_every_layout_and_dim(gate: str, layout: str, dim: int, options: dict[str, Any]) -> None:
    x = torch.randn(4, 6, 8, 10)
    for _, view in layouts(x):
        for bias in (None, torch.randn(x.size(dim))):
            check("silu", view, bias, dim=dim, gate=gate, layout=layout, **options)


# Around packs (32 float32 in AVX2, 64 in AVX-512), blocks (512) and what is gathered (rows below 128).
@pytest.mark.parametrize("half", [1, 2, 31, 32, 33, 127, 128, 129, 511, 513, 1030])
@orders
def test_lengths(half: int, layout: str) -> None:
    for shape, dim in (((3, 2 * half), 1), ((5, 2 * half, 3), 1), ((2 * half, 7), 0), ((2 * half,), 0)):
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(shape, dtype=dtype)
            check("silu", x, torch.randn(shape[dim], dtype=dtype), dim=dim, layout=layout)


@pytest.mark.parametrize("rows_and_half", [(200, 4096), (1, 70000), (70000, 3), (130, 1000)], ids=str)
@orders
def test_large_enough_for_tiles_and_threads(rows_and_half: tuple[int, int], layout: str) -> None:
    count, half = rows_and_half
    check("gelu", torch.randn(count, 2 * half), torch.randn(2 * half), layout=layout)


@orders
@gates
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wide_bias", [False, True])
def test_16_bit_is_rounded_once(layout: str, gate: str, dtype: torch.dtype, wide_bias: bool) -> None:
    for half in (5, 64, 700):
        x, grad = torch.randn(9, 2 * half).to(dtype), torch.randn(9, half).to(dtype)
        bias = torch.randn(2 * half).to(torch.float32 if wide_bias else dtype)
        leaves = [t.requires_grad_() for t in (x, bias)]
        # x + bias as float32 rounds it, so that what is left is the result's own rounding
        v = (x.detach().float() + bias.detach().float()).double().requires_grad_()
        for name in ("silu", "gelu", "relu"):
            y = gated_act(x, bias, name, gate=gate, layout=layout)
            truth = expected(name, v, gate=gate, layout=layout)
            assert float(ulp_error(y.detach(), truth.detach()).max()) <= 0.51
            got = torch.autograd.grad(y, leaves, grad)
            (wanted,) = torch.autograd.grad(truth, v, grad.double())
            # near the slope's root float32 has an absolute error: 2e-7 of |grad value|
            near = (got[0].double() - wanted).abs() < 2e-6
            assert float(torch.where(near, 0.0, ulp_error(got[0], wanted)).max()) <= 0.51
            assert got[1].dtype == bias.dtype
            eps = torch.finfo(bias.dtype).eps
            # each term is as exact as a 16-bit result asks for, 2^-18, whatever the sum is rounded to
            allowed = eps * wanted.sum(0).abs() + 2**-18 * wanted.abs().sum(0) + 1e-6
            assert bool(((got[1].double() - wanted.sum(0)).abs() <= allowed).all())


def test_two_tensors() -> None:
    for dtype in (torch.float32, torch.float64):
        first, second = torch.randn(5, 7, 6, dtype=dtype), torch.randn(6, 7, 5, dtype=dtype).transpose(0, 2)
        biases = torch.randn(7, dtype=dtype), torch.randn(7, dtype=dtype)
        for gate in ("first", "second"):
            for pair in ((None, None), biases, (biases[0], None), (None, biases[1])):
                for options in OPTIONS:
                    leaves = [t.detach().clone().requires_grad_() if t is not None else None for t in pair]
                    a, b = first.detach().requires_grad_(), second.detach().requires_grad_()
                    y = gated_act((a, b), tuple(leaves), dim=1, gate=gate, **options)
                    both = torch.cat([a, b], 1)
                    bias = torch.cat([torch.zeros(7, dtype=dtype) if t is None else t for t in leaves])
                    wanted = expected("silu", both, bias, dim=1, gate=gate, **options)
                    torch.testing.assert_close(y, wanted, **LIMITS[dtype])
                    inputs = [a, b, *(t for t in leaves if t is not None)]
                    grads = torch.autograd.grad(y.cos().sum(), inputs), torch.autograd.grad(wanted.cos().sum(), inputs)
                    for got, truth in zip(*grads, strict=True):
                        torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)
    scalar = gated_act((torch.tensor(2.0), torch.tensor(3.0)), activation="relu")
    assert scalar.shape == ()
    assert float(scalar) == 6.0


def test_torch_glu() -> None:
    x = torch.randn(3, 8, 5, dtype=torch.float64)
    for dim in (1, -2):
        y = gated_act(x, None, "sigmoid", dim=dim, gate="second")
        torch.testing.assert_close(y, F.glu(x, dim), rtol=1e-14, atol=1e-15)


def test_named_units() -> None:
    """The table in the docstring, with torch's own functions. Source of the formulas: Shazeer 2020, and gpt-oss."""
    x = torch.randn(6, 10, dtype=torch.float64)
    a, b = x.chunk(2, -1)
    even, odd = (x * 9)[:, ::2].clamp(max=7.0), (x * 9)[:, 1::2].clamp(-7.0, 7.0)
    for y, wanted in (
        (gated_act(x, None, "identity"), a * b),
        (gated_act(x, None, "relu"), F.relu(a) * b),
        (gated_act(x, None, "gelu"), F.gelu(a) * b),
        (gated_act(x, None, "gelu", approximate="tanh"), F.gelu(a, approximate="tanh") * b),
        (gated_act(x), F.silu(a) * b),
        (gated_act(x, None, "swish", beta=1.5), a * torch.sigmoid(1.5 * a) * b),
        (gated_act(x, None, "quick_gelu"), a * torch.sigmoid(1.702 * a) * b),
        (gated_act(x, None, "squared_relu"), F.relu(a) ** 2 * b),
        (
            gated_act(x * 9, limit=7.0, alpha=1.702, offset=1.0, layout="interleaved"),
            even * torch.sigmoid(1.702 * even) * (odd + 1),
        ),
    ):  # fmt: skip
        torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-14)


def test_limits_pass_the_gradient_and_nan_does_not() -> None:
    """The masks of torch.clamp up to 2.13: at the bound itself 1 (2.14: 0), beyond it 0, at NaN 0."""
    limit, nan, inf = 2.0, float("nan"), float("inf")
    gate = torch.tensor([1.0, 2.0, 2.5, -3.0, nan, 1.0, 1.0, 1.0, 1.0, inf, -inf, 1.0])
    value = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 2.0, -2.0, 2.5, nan, 1.0, 1.0, -inf])
    for name in ("silu", "relu", "signed_sqrt", "gelu"):
        x = torch.cat([gate, value]).requires_grad_()
        y = gated_act(x, None, name, limit=limit, offset=0.5)
        wide = x.detach().double().requires_grad_()
        truth = expected(name, wide, limit=limit, offset=0.5)
        torch.testing.assert_close(y.double(), truth, rtol=1e-6, atol=1e-6, equal_nan=True)
        g, v = torch.autograd.grad(y.nansum(), x)[0].chunk(2)
        assert g[[2, 4, 9]].tolist() == [0, 0, 0]
        assert v[[7, 8, 11]].tolist() == [0, 0, 0]
        wanted = torch.autograd.grad(truth.nansum(), wide)[0].chunk(2)
        for got, true, inside in ((g, wanted[0], [0, 3, 5, 6]), (v, wanted[1], [0, 1, 3])):
            torch.testing.assert_close(got[inside].double(), true[inside], rtol=2e-6, atol=1e-6)
        assert (g[[0, 1]] != 0).all()
        assert (v[[5, 6]] != 0).all()


def test_infinite_inputs_and_nan_are_torchs() -> None:
    inf, nan = float("inf"), float("nan")
    gate = torch.tensor([inf, -inf, nan, 1.0, 1.0, 0.0, 1e30, -1e30])
    value = torch.tensor([1.0, 1.0, 1.0, inf, nan, inf, 1e30, 1e30])
    y = gated_act((gate, value))
    torch.testing.assert_close(y, F.silu(gate) * value, equal_nan=True)


def test_zero_sizes() -> None:
    for shape, dim in (((0, 8), 1), ((3, 0), 1), ((0, 4, 3), 1), ((2, 4, 0), 1)):
        x, bias = torch.randn(shape, requires_grad=True), torch.randn(shape[dim], requires_grad=True)
        y = gated_act(x, bias, dim=dim)
        assert y.shape[dim] == shape[dim] // 2
        of_x, of_bias = torch.autograd.grad(y.sum(), [x, bias])
        assert of_x.shape == x.shape
        assert (of_bias == 0).all()


def test_what_is_stored_past_the_caches() -> None:
    """Beyond the last-level cache stores are of another kind; the bits are the same."""
    x = torch.randn(2100, 8192)
    y = gated_act(x)
    grad = torch.randn_like(y)
    leaf = x.requires_grad_()
    (of_x,) = torch.autograd.grad(gated_act(leaf), leaf, grad)
    for rows in (slice(0, 3), slice(1000, 1003), slice(2097, 2100)):
        part = x[rows].detach().requires_grad_()
        small = gated_act(part)
        assert torch.equal(y[rows], small)
        assert torch.equal(of_x[rows], torch.autograd.grad(small, part, grad[rows])[0])


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_change_a_bit(layout: str, dtype: torch.dtype) -> None:
    def run(threads: int, shape: tuple[int, ...], dim: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        x = torch.randn(shape).to(dtype).requires_grad_()
        bias = torch.randn(shape[dim]).to(dtype).requires_grad_()
        y = gated_act(x, bias, dim=dim, layout=layout)
        return [y, *torch.autograd.grad(y, [x, bias], torch.linspace(-1, 1, y.numel()).to(dtype).view(y.shape))]

    for shape, dim in (((1031, 518), 1), ((3, 24, 5003), 1), ((100_003, 6), 1), ((400_002,), 0)):
        one = run(1, shape, dim)
        for threads in (2, 3):
            for a, b in zip(one, run(threads, shape, dim), strict=True):
                assert torch.equal(a, b)


def test_python_threads() -> None:
    def work(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(70, 2000, generator=generator, requires_grad=True)
        bias = torch.randn(2000, generator=generator, requires_grad=True)
        y = gated_act(x, bias, "gelu", layout="interleaved")
        return [y.detach(), *torch.autograd.grad(y.sum(), [x, bias])]

    wanted = [work(seed) for seed in range(6)]
    with ThreadPoolExecutor(4) as pool:
        for got, truth in zip(pool.map(work, range(6)), wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, truth, strict=True))


# ---- what backward keeps --------------------------------------------------------------------------------------------


def test_saved_inputs_are_not_overwritten() -> None:
    x, bias = torch.randn(6, 80, requires_grad=True), torch.randn(80, requires_grad=True)
    kept = x.detach().clone()
    y = gated_act(x, bias)
    grad = torch.randn_like(y)
    before = grad.clone()
    first = torch.autograd.grad(y, [x, bias], grad, retain_graph=True)
    again = torch.autograd.grad(y, [x, bias], grad)
    assert torch.equal(x, kept)
    assert torch.equal(grad, before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_changed_input_is_noticed() -> None:
    for change in (0, 1):
        leaves = [torch.randn(6, 80, requires_grad=True), torch.randn(80, requires_grad=True)]
        inputs = [t * 1 for t in leaves]
        y = gated_act(*inputs)
        with torch.no_grad():
            inputs[change].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_grad_fn_and_hooks() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        y = gated_act(x)
    assert type(y.grad_fn).__name__ == "GatedActBackward0"
    assert [t.data_ptr() for t in packed] == [x.data_ptr()]  # the input and nothing else
    z = torch.utils.checkpoint.checkpoint(lambda x: gated_act(x), x, use_reentrant=False)
    assert torch.equal(*(torch.autograd.grad(t.sum(), x)[0] for t in (y, z)))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


# ---- every order and mode of derivatives ----------------------------------------------------------------------------


def inputs(*shape: int, dim: int = -1) -> tuple[Tensor, Tensor]:
    x = torch.randn(*shape, dtype=torch.float64)
    near = (x.abs() - 0.7).abs() < 0.05  # off the limit, where finite differences are fair
    x = torch.where(near, x * 0.8, x)
    return x.requires_grad_(), torch.zeros(shape[dim], dtype=torch.float64, requires_grad=True)


GRADCHECKS = [(name, "first", "concat", {}) for name in SMOOTH] + [
    (name, gate, layout, options)
    for name in ("silu", "gelu")
    for gate, layout in (("first", "interleaved"), ("second", "concat"), ("second", "interleaved"))
    for options in OPTIONS
]


@pytest.mark.parametrize(("name", "gate", "layout", "options"), GRADCHECKS, ids=str)
def test_gradcheck(name: str, gate: str, layout: str, options: dict[str, Any]) -> None:
    def f(x: Tensor, bias: Tensor) -> Tensor:
        return gated_act(x, bias, name, dim=1, gate=gate, layout=layout, **options)

    arguments = inputs(3, 4, 2, dim=1)
    assert gradcheck(f, arguments, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, arguments, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_gradcheck_of_two_tensors() -> None:
    (a, x), (b, y) = inputs(3, 4), inputs(3, 4)

    def f(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return gated_act((a, b), (x, y), "gelu", gate="second")

    assert gradcheck(f, (a, b, x, y), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, (a, b, x, y), check_fwd_over_rev=True)


def test_third_derivative() -> None:
    x, bias = inputs(2, 6)
    weights = torch.randn(2, 3, dtype=torch.float64)

    def third(f: Callable[..., Tensor]) -> Tensor:
        (first,) = torch.autograd.grad((f(x, bias) * weights).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(second.cos().sum(), x)[0]

    wanted = third(lambda x, bias: expected("silu", x, bias))
    torch.testing.assert_close(third(lambda x, bias: gated_act(x, bias)), wanted, rtol=1e-9, atol=1e-9)


def test_forward_mode() -> None:
    x, bias = (t.detach() for t in inputs(4, 6))
    dx, dbias = torch.randn_like(x), torch.randn_like(bias)
    with forward_ad.dual_level():
        y = gated_act(forward_ad.make_dual(x, dx), forward_ad.make_dual(bias, dbias), "gelu", layout="interleaved")
        got = forward_ad.unpack_dual(y).tangent
    _, wanted = torch.func.jvp(lambda x, b: expected("gelu", x, b, layout="interleaved"), (x, bias), (dx, dbias))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@orders
def test_transforms(layout: str) -> None:
    x, bias = (t.detach() for t in inputs(5, 3, 6))

    def ours(x: Tensor, bias: Tensor) -> Tensor:
        return gated_act(x, bias, layout=layout, limit=1.5, alpha=1.702, offset=1.0)

    def theirs(x: Tensor, bias: Tensor) -> Tensor:
        return expected("silu", x, bias, layout=layout, limit=1.5, alpha=1.702, offset=1.0)

    biases = torch.randn(5, 6, dtype=torch.float64)
    vmap, jacrev, jacfwd, hessian = torch.func.vmap, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian
    cases: list[tuple[Callable[[Callable[..., Tensor]], Callable[..., Any]], tuple[Tensor, ...]]] = [
        (lambda f: vmap(f, (0, None)), (x, bias)),
        (lambda f: vmap(f, (0, 0)), (x, biases)),
        (lambda f: vmap(f, (None, 0)), (x[0], biases)),
        (lambda f: vmap(f, (1, 1)), (x, biases[:3].T.contiguous())),
        (lambda f: vmap(vmap(f, (0, None)), (0, None)), (x, bias)),
        (lambda f: jacrev(f, (0, 1)), (x[0], bias)),
        (lambda f: jacfwd(f, (0, 1)), (x[0], bias)),
        (lambda f: hessian(lambda x, b: f(x, b).sin().sum(), (0, 1)), (x[0], bias)),
        (lambda f: vmap(torch.func.grad(lambda x, b: f(x, b).sin().sum(), (0, 1)), (0, None)), (x, bias)),
        (lambda f: vmap(torch.func.grad(lambda x, b: f(x, b).sin().sum(), (0, 1)), (0, 0)), (x, biases)),
    ]
    for transform, arguments in cases:
        got, wanted = transform(ours)(*arguments), transform(theirs)(*arguments)
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_vmap_of_two_tensors() -> None:
    a, b, biases = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4)
    got = torch.func.vmap(lambda a, b, c: gated_act((a, b), (c, None)))(a, b, biases)
    torch.testing.assert_close(got, F.silu(a + biases) * b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.func.vmap(lambda a, b: gated_act((a, b)))(a[:, 0], b[:, 0]), F.silu(a[:, 0]) * b[:, 0]
    )
    with pytest.raises(ValueError, match=r"dim is -2.*1 dims under vmap"):
        torch.func.vmap(lambda a: gated_act(a, dim=-2))(a)


# ---- the operators as the dispatcher sees them ----------------------------------------------------------------------


def settings(**options: Any) -> tuple[Any, ...]:
    defaults = {
        "activation": "silu", "params": (), "dim": -1, "gate": "first", "layout": "concat", "limit": None,
        "alpha": 1.0, "offset": 0.0,
    }  # fmt: skip
    return tuple({**defaults, **options}.values())


@orders
def test_opcheck(layout: str) -> None:
    x, bias = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    other, second = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    torch.library.opcheck(OP, (x, None, bias, None, *settings(layout=layout)))
    torch.library.opcheck(OP, (x, None, None, None, *settings(layout=layout, gate="second", limit=1.0, alpha=2.0)))
    if layout == "concat":
        torch.library.opcheck(OP, (x, other, bias, second, *settings()))
    cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
    grad = torch.randn(3, 4)
    arguments = (grad, x.detach(), None, bias.detach(), None, *settings(layout=layout), True, False)
    torch.library.opcheck(BACKWARD, arguments, test_utils=cheap)


def test_meta_has_the_strides_of_the_result() -> None:
    for _, view in layouts(torch.randn(2, 4, 6, 8)):
        for dim in range(4):
            y, meta = gated_act(view, dim=dim), gated_act(view.to("meta"), dim=dim)
            fake = torch.empty_strided(view.shape, view.stride(), device="meta")
            assert gated_act(fake, dim=dim).stride() == y.stride()
            assert meta.shape == y.shape
    channels_last = torch.randn(2, 4, 6, 8).contiguous(memory_format=torch.channels_last)
    assert gated_act(channels_last, dim=1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def f(x: Tensor, bias: Tensor) -> Tensor:
        return gated_act(x * 2, bias, "gelu", layout="interleaved", limit=3.0).sin()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for half in (4, 6):
        x, bias = torch.randn(5, 2 * half, requires_grad=True), torch.randn(2 * half, requires_grad=True)
        got, wanted = compiled(x, bias), f(x, bias)
        torch.testing.assert_close(got, wanted)
        for a, b in zip(*(torch.autograd.grad(y.sum(), [x, bias]) for y in (got, wanted)), strict=True):
            torch.testing.assert_close(a, b)
    pair = torch.compile(lambda a, b: gated_act((a, b)), fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(pair(x, x), gated_act((x, x)))


def test_export() -> None:
    mlp = fusedact.nn.GatedMLP(6, 10, "gelu", bias=True)
    x = torch.randn(3, 6)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(mlp, (x,), dynamic_shapes=({0: batch},))
    assert any("fusedact.gated_act" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for rows in (3, 5):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(again(x), mlp(x))


def test_autocast() -> None:
    mlp = fusedact.nn.GatedMLP(6, 10, bias=True)
    x = torch.randn(3, 6)
    for packed in (True, False):
        mlp = fusedact.nn.GatedMLP(6, 10, bias=True, packed=packed)
        with torch.autocast("cpu", torch.bfloat16):
            y = mlp(x)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mlp.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert gated_act((x.bfloat16(), x)).dtype == torch.float32
        assert gated_act(x, torch.zeros(6, dtype=torch.bfloat16)).dtype == torch.float32


def test_tensor_subclasses_are_asked_first() -> None:
    class Logged(Tensor):
        calls: list[str] = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.calls.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    gated_act(torch.randn(3, 4).as_subclass(Logged))
    assert any("gated_act" in call for call in Logged.calls)


# ---- tensor parameters ----------------------------------------------------------------------------------------------


@gates
@orders
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "limited"])
def test_a_learned_parameter(gate: str, layout: str, options: dict[str, Any]) -> None:
    x, bias = inputs(3, 8)
    beta = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    y = gated_act(x, bias, "swish", gate=gate, layout=layout, beta=beta, **options)
    wanted = expected("swish", x, bias, gate=gate, layout=layout, beta=beta, **options)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    leaves = [x, bias, beta]
    for a, b in zip(*(torch.autograd.grad(z.sin().sum(), leaves) for z in (y, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_random_parameters() -> None:
    x = -torch.rand(50, 100) - 0.1
    slopes = gated_act(x, None, "rrelu", training=True) / (x[:, :50] * x[:, 50:])
    assert float(slopes.min()) >= 0.125 - 1e-6
    assert float(slopes.max()) <= 1 / 3 + 1e-6
    assert float(slopes.std()) > 0.03
    with pytest.raises(ValueError, match="odd"):
        gated_act(x[:, :7], None, "rrelu", training=True)


# ---- modules --------------------------------------------------------------------------------------------------------


def test_glu_is_a_drop_in() -> None:
    for arguments in ((), (1,)):
        mine, theirs = fusedact.nn.GLU(*arguments), nn.GLU(*arguments)
        assert isinstance(mine, nn.GLU)
        assert repr(mine) == repr(theirs)
        x = torch.randn(3, 4, 6, dtype=torch.float64)
        torch.testing.assert_close(mine(x), theirs(x), rtol=1e-13, atol=1e-14)


def test_modules() -> None:
    x = torch.randn(3, 8)
    a, b = x.chunk(2, -1)
    for module, wanted in (
        (fusedact.nn.SwiGLU(), F.silu(a) * b),
        (fusedact.nn.SwiGLU(gate="second"), F.silu(b) * a),
        (fusedact.nn.GeGLU(), F.gelu(a) * b),
        (fusedact.nn.GeGLU(approximate="tanh"), F.gelu(a, approximate="tanh") * b),
        (fusedact.nn.ReGLU(layout="interleaved"), F.relu(x[:, ::2]) * x[:, 1::2]),
        (fusedact.nn.GatedAct("leaky_relu", negative_slope=0.2), F.leaky_relu(a, 0.2) * b),
    ):
        torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-6)
    assert repr(fusedact.nn.SwiGLU(limit=7.0)) == "SwiGLU(dim=-1, limit=7.0)"
    assert repr(fusedact.nn.GatedAct("relu")) == "GatedAct('relu', dim=-1)"


class LlamaMLP(nn.Module):
    """The feed-forward block of Llama, as its checkpoints have it: keys gate_proj, up_proj, down_proj."""

    def __init__(self, dim: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "options", [{"packed": False}, {}, {"layout": "interleaved"}], ids=["separate", "packed", "interleaved"]
)
def test_checkpoints_move_both_ways(bias: bool, nested: bool, options: dict[str, Any]) -> None:
    def wrap(module: nn.Module) -> nn.Module:
        return nn.ModuleDict({"mlp": module}) if nested else module

    def unwrap(module: nn.Module) -> nn.Module:
        return module["mlp"] if nested else module  # type: ignore[index]

    llama, mine = LlamaMLP(6, 10, bias), fusedact.nn.GatedMLP(6, 10, bias=bias, **options)
    checkpoint = wrap(llama).state_dict()
    keys = list(checkpoint)
    wrap(mine).load_state_dict(checkpoint)
    assert list(checkpoint) == keys
    x = torch.randn(4, 6)
    torch.testing.assert_close(mine(x), llama(x))

    back = LlamaMLP(6, 10, bias)
    back.load_state_dict(mine.separate_state_dict())
    torch.testing.assert_close(back(x), llama(x))
    # From one form to the others.
    for packed in (True, False):
        again = fusedact.nn.GatedMLP(6, 10, bias=bias, packed=packed)
        source = mine if options.get("layout") != "interleaved" else back
        wrap(again).load_state_dict(wrap(source).state_dict())
        torch.testing.assert_close(again(x), llama(x))
    assert unwrap(wrap(mine)) is mine
    missing = {k: v for k, v in checkpoint.items() if "up_proj" not in k}
    with pytest.raises(RuntimeError, match="up_proj"):
        wrap(fusedact.nn.GatedMLP(6, 10, bias=bias, **options)).load_state_dict(missing)


@pytest.mark.parametrize("packed", [True, False])
def test_mlp_gradients(packed: bool) -> None:
    llama, mine = LlamaMLP(6, 10, True).double(), fusedact.nn.GatedMLP(6, 10, bias=True, packed=packed).double()
    mine.load_state_dict(llama.state_dict())
    x = torch.randn(4, 6, dtype=torch.float64)
    for module in (llama, mine):
        module(x).sin().sum().backward()
    grads = {name: p.grad for name, p in mine.named_parameters()}
    if packed:
        for kind in ("weight", "bias"):
            grads[f"gate_proj.{kind}"], grads[f"up_proj.{kind}"] = grads.pop(f"gate_up_proj.{kind}").chunk(2)
    for name, p in llama.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-10, atol=1e-10)


def test_hooks_of_a_projection_run() -> None:
    mlp = fusedact.nn.GatedMLP(6, 10, bias=True)
    wanted = mlp(torch.ones(2, 6))
    seen: list[tuple[int, ...]] = []
    mlp.gate_up_proj.register_forward_hook(lambda module, args, result: seen.append(tuple(result.shape)))
    torch.testing.assert_close(mlp(torch.ones(2, 6)), wanted)
    assert seen == [(2, 20)]


# ---- errors ---------------------------------------------------------------------------------------------------------

x = torch.zeros(4, 6)
ERRORS: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
    (lambda: gated_act(torch.zeros(4, 7)), ValueError, ["7 elements in dim 1", r"\[4, 7\]", "odd", "half each"]),
    (lambda: gated_act(torch.zeros(())), ValueError, ["scalar", "two tensors"]),
    (lambda: gated_act((x, torch.zeros(4, 5))), ValueError, [r"\[4, 6\]", r"\[4, 5\]", "same"]),
    (lambda: gated_act((x, x.double())), TypeError, ["float32", "float64", "one dtype"]),
    (lambda: gated_act((x, x.to("meta"))), ValueError, ["cpu", "meta", r"\.to\("]),
    (lambda: gated_act((x, x), layout="interleaved"), ValueError, ["interleaved", "two tensors", "leave it out"]),
    (lambda: gated_act(x, gate="left"), ValueError, ["gate is 'left'", "'first' or 'second'"]),
    (lambda: gated_act(x, layout="block"), ValueError, ["layout is 'block'", "'concat' or 'interleaved'"]),
    (lambda: gated_act(x, torch.zeros(3)), ValueError, ["bias has 3", "gate and value", "6 in dim 1", r"\[4, 6\]"]),
    (lambda: gated_act(x, torch.zeros(6, 1)), ValueError, ["bias has shape", r"\[6, 1\]", "one dim"]),
    (lambda: gated_act((x, x), (torch.zeros(6), torch.zeros(5))), ValueError, ["second bias has 5", "has 6 in dim 1"]),
    (lambda: gated_act(x, (torch.zeros(3), torch.zeros(3))), TypeError, ["pair", "one tensor", "torch.cat"]),
    (lambda: gated_act((x, x), torch.zeros(12)), TypeError, ["two tensors", "one for each", r"\[12\]"]),
    (lambda: gated_act((x, x, x)), ValueError, ["one tensor or two", "3"]),
    (lambda: gated_act(x, torch.zeros(6).double()), TypeError, ["bias is float64|bias is torch.float64", "float32"]),
    (lambda: gated_act(x.int()), TypeError, ["int32", "float32, float64, bfloat16 or float16"]),
    (lambda: gated_act(x, dim=2), ValueError, ["dim is 2", "2 dims", r"\[-2, 1\]"]),
    (lambda: gated_act(x, limit=0.0), ValueError, ["limit must be positive", "0"]),
    (lambda: gated_act(x, limit=float("nan")), ValueError, ["limit must be positive", "nan"]),
    (lambda: gated_act(x, alpha=0.0), ValueError, ["alpha must be finite and not 0"]),
    (lambda: gated_act(x, offset=float("inf")), ValueError, ["offset must be finite", "inf"]),
    (lambda: gated_act(x, limit="a"), TypeError, ["limit", "'a'"]),
    (lambda: gated_act([1.0, 2.0]), TypeError, ["input must be Tensor"]),
    (lambda: gated_act(x, activation="sillu"), ValueError, ["'sillu'", "silu"]),
    (lambda: gated_act(x, activation="silu", beta=2.0), TypeError, ["beta", "no parameter"]),
    (lambda: gated_act(x, activation="elu", alpha="a"), TypeError, ["alpha", "'a'"]),
    (  # all at once
        lambda: gated_act(torch.zeros(4, 7), torch.zeros(6), gate="left", limit=-1.0),
        ValueError,
        ["4 problems", "odd", "bias has 6", "gate is 'left'", "limit must be positive"],
    ),
    (lambda: fusedact.nn.GatedAct("gellu"), ValueError, ["gellu", "gelu"]),
    (lambda: fusedact.nn.GatedMLP(4, 8, "silu", slope=1), TypeError, ["slope", "no parameter"]),
    (lambda: fusedact.nn.GatedMLP(4, 8, layout="block"), ValueError, ["'block'", "'concat' or 'interleaved'"]),
    (lambda: fusedact.nn.GatedMLP(4, 8, layout="interleaved", packed=False), ValueError, ["separate", "packed=True"]),
    (lambda: gated_act(torch.eye(4).to_sparse()), NotImplementedError, ["Sparse", "to_dense"]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: "+".join(e[2])[:50])
def test_errors(error: tuple[Callable[[], Any], type[Exception], list[str]]) -> None:
    make, exception, patterns = error
    with pytest.raises(exception) as raised:
        make()
    for pattern in patterns:
        raised.match(pattern)


def test_dtypes_are_those_of_the_contract() -> None:
    for dtype in DTYPES:
        assert gated_act(torch.zeros(2, 4, dtype=dtype)).dtype == dtype
