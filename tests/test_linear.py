"""linear_act: values against float64, derivatives of every order and mode, layouts, threads, and errors as rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DTYPES, ROWS, WEIGHTED, reference, row_id, smooth_points
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

import fusedact
from fusedact.registry import Activation

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
floats = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EXACT = {"rtol": 1e-9, "atol": 1e-9}

# One tile and less, edges of a tile and one past them, several tiles, few rows (torch's own product), odd lengths.
# float32 and float64 are cut into tiles only where the result is beyond 4 MiB: LARGE.
SHAPES = [(1, 3, 5), (7, 1, 1), (8, 16, 64), (63, 9, 127), (64, 33, 257), (65, 20, 128), (256, 40, 256), (513, 24, 300)]
LARGE = [(1100, 12, 1003), (8200, 3, 136)]

# A product of K terms, each rounded: at most K eps of the sum of |terms| (Higham, section 3.1), in practice the root
# of that. The activation's slope is at most 2 on these inputs; 16-bit results are rounded once, by half an ulp.
ROUNDED = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
COMPUTE = {torch.float64: 2.0**-52}


def rounded_first(m: int, dtype: torch.dtype) -> bool:
    """Whether the product is torch's own, rounded to 16 bits a first time: of few rows, or by 16-bit dot products."""
    able = torch.cpu.get_capabilities()
    dots = {torch.bfloat16: ("avx512_bf16", "amx_bf16"), torch.float16: ("avx512_fp16", "amx_fp16")}.get(dtype, ())
    return dtype in ROUNDED and ROUNDED[dtype] > 0 and (m < 8 or any(able.get(name) is True for name in dots))


def matrices(m: int, k: int, n: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, w, b = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((m, k), (n, k), (n,)))
    return x.to(dtype), (w / k**0.5).to(dtype), b.to(dtype)


def assert_product_close(got: Tensor, wanted: Tensor, k: int, dtype: torch.dtype) -> None:
    eps = COMPUTE.get(dtype, 2.0**-23)
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=ROUNDED[dtype] * 1.02 + 8 * eps, atol=8 * eps * (k**0.5 + 1)
    )


def problem(row: Activation, m: int = 5, k: int = 4, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 leaves; the pre-activations are smooth points: x is square and the weight solves for them."""
    x = torch.randn(m, k, dtype=torch.float64) + 2 * torch.eye(m, k, dtype=torch.float64)
    b = torch.linspace(-0.2, 0.2, n, dtype=torch.float64)
    v = smooth_points(row, (k, n)) - b
    w = torch.linalg.solve(x[:k], v).t()
    return x[:k].clone().requires_grad_(), w.clone().requires_grad_(), b.requires_grad_()


# ---- values ---------------------------------------------------------------------------------------------------------


@rows
def test_values(row: Activation) -> None:
    x, w, b = matrices(65, 20, 129, torch.float64)
    got = fusedact.linear_act(x, w, b, row.name)
    v = F.linear(x, w, b)
    torch.testing.assert_close(got, reference(row, v), rtol=1e-12, atol=1e-12)


PASSES = {  # what keeps the sum out of the product's own epilogue
    "relu": {"activation": "relu"},
    "gelu_tanh": {"activation": "gelu_tanh"},
    "gain": {"gain": 2.0},
    "clamp": {"clamp": (-1.0, 1.0)},
    "save": {"save": "input"},
}


@pytest.mark.parametrize("why", ["nothing", *PASSES])
def test_a_bias_alone_is_added_by_the_product(why: str) -> None:
    """The same choice as on CUDA, where the product's epilogue is cuBLASLt's: no pass is queued after it."""
    x, w, b = matrices(16, 8, 16, torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        y = fusedact.linear_act(x, w, b, **{"activation": "identity"} | PASSES.get(why, {}))
    called = {event.name for event in seen.events()}
    assert ("fusedact::bias_act_" in called) == (why in PASSES)
    assert "aten::_addmm_activation" not in called
    if why == "nothing":
        assert torch.equal(y, F.linear(x, w, b))


@pytest.mark.parametrize("name", ["identity", "relu", "gelu_tanh"])
def test_nan_goes_through_the_product(name: str) -> None:
    x, w, b = matrices(16, 8, 16, torch.float32)
    x[3, 2] = b[5] = torch.nan
    y = fusedact.linear_act(x, w, b, name)
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[3], wanted[:, 5] = True, True
    assert torch.equal(y.isnan(), wanted)


@floats
@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
@pytest.mark.parametrize("name", ["identity", "relu", "gelu", "tanh", "softplus"])
def test_dtypes_and_shapes(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, k, n = shape
    x, w, b = matrices(m, k, n, dtype)
    row = fusedact.registry.get(name)
    for bias in (b, None, b.float() if dtype in (torch.bfloat16, torch.float16) else b):
        got = fusedact.linear_act(x, w, bias, name)
        assert got.shape == (m, n)
        assert got.dtype == dtype
        v = x.double() @ w.double().t()
        twice = 3 if rounded_first(m, dtype) else 1
        wanted = reference(row, v if bias is None else v + bias.double())
        eps = COMPUTE.get(dtype, 2.0**-23)
        torch.testing.assert_close(
            got.double(),
            wanted,
            rtol=ROUNDED[dtype] * twice + 16 * eps,
            atol=16 * eps * (k**0.5 + 1) + (twice - 1) * ROUNDED[dtype] * 3,
        )


def test_16_bit_results_are_rounded_once() -> None:
    """Nothing of 16 bits in between: the error is half an ulp and what a float32 sum of 300 terms may lose."""
    x, w, b = matrices(64, 300, 257, torch.bfloat16)
    if rounded_first(64, torch.bfloat16):
        pytest.skip("this processor has 16-bit dot products: torch's own product is rounded a first time")
    exact = F.gelu(x.double() @ w.double().t() + b.double())
    got = fusedact.linear_act(x, w, b, "gelu").double()
    torch.testing.assert_close(got, exact, rtol=2.0**-8 * 1.01, atol=2e-5)  # 2^-8: half an ulp at worst
    eager = F.gelu(F.linear(x, w, b)).double()
    assert (got - exact).abs().mean() < (eager - exact).abs().mean()


@rows
@pytest.mark.parametrize("save", ["input", "output", "mask"])
def test_what_backward_saves_does_not_change_the_result(row: Activation, save: str) -> None:
    if save not in row.saves:
        pytest.skip(f"no save={save!r}")
    x, w, b = matrices(70, 12, 131, torch.float32)  # 131 columns: rows of a mask that end within a byte
    y = fusedact.linear_act(x, w, b, row.name)
    for n in (131, 136):
        x, w, b = (t.requires_grad_() for t in matrices(70, 12, n, torch.float32))
        got = fusedact.linear_act(x, w, b, row.name, save=save)
        if n == 131:
            torch.testing.assert_close(got.detach(), y, rtol=0, atol=0)
        v = F.linear(x, w, b)
        grads = torch.autograd.grad(got, [x, w, b], torch.ones_like(got))
        wanted = torch.autograd.grad(fusedact.bias_act(v, None, row.name, save="input"), [x, w, b], torch.ones_like(v))
        for g, t in zip(grads, wanted, strict=True):
            # sums of up to 131 terms of size 1, of slopes that may come from the saved output
            torch.testing.assert_close(g, t, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize(
    ("name", "save"), [("gelu", "input"), ("tanh", "output"), ("relu", "mask"), ("relu", "output")]
)
def test_what_backward_saves_tile_by_tile(name: str, save: str, shape: tuple[int, int, int]) -> None:
    x, w, b = (t.requires_grad_() for t in matrices(*shape, torch.float64))
    y = fusedact.linear_act(x, w, b, name, save=save)
    truth = reference(fusedact.registry.get(name), F.linear(x, w, b))
    torch.testing.assert_close(y, truth, rtol=1e-12, atol=1e-12)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got, wanted = (torch.autograd.grad(r, [x, w, b], grad) for r in (y, truth))
    for g, t in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, t, rtol=1e-9, atol=1e-9)


def test_gain_and_clamp() -> None:
    x, w, b = matrices(65, 20, 129, torch.float64)
    got = fusedact.linear_act(x, w, b, "gelu", gain=1.7, clamp=(-0.1, 1.2))
    torch.testing.assert_close(got, (1.7 * F.gelu(F.linear(x, w, b))).clamp(-0.1, 1.2), **EXACT)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 4), (0, 4), (2, 0, 4)], ids=str)
def test_any_rank(shape: tuple[int, ...]) -> None:
    _, w, b = (t.requires_grad_() for t in matrices(1, 4, 6, torch.float64))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, wanted = fusedact.linear_act(x, w, b, "silu"), F.silu(F.linear(x, w, b))
    torch.testing.assert_close(y, wanted, **EXACT)
    for g, t in zip(*(torch.autograd.grad(v.sum(), [x, w, b]) for v in (y, wanted)), strict=True):
        torch.testing.assert_close(g, t, **EXACT)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (4, 0), (0, 0)])
def test_empty_features(k: int, n: int) -> None:
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((9, k), (n, k), (n,)))
    y, wanted = fusedact.linear_act(x, w, b, "gelu"), F.gelu(F.linear(x, w, b))
    torch.testing.assert_close(y, wanted, **EXACT)
    for g, t in zip(*(torch.autograd.grad(v.sum(), [x, w, b]) for v in (y, wanted)), strict=True):
        torch.testing.assert_close(g, t, **EXACT)


@floats
def test_layouts(dtype: torch.dtype) -> None:
    x, w, b = matrices(70, 20, 130, dtype)
    wanted = fusedact.linear_act(x, w, b, "tanh")
    wide = torch.zeros(70, 2, 20, dtype=dtype)
    for same in (
        x.t().contiguous().t(),
        wide[:, 0].copy_(x),
        torch.zeros(70, 40, dtype=dtype)[:, ::2].copy_(x),
        torch.cat([x.new_zeros(3), x.flatten()])[3:].view_as(x),
    ):
        for weight in (w, w.t().contiguous().t(), torch.zeros(130, 40, dtype=dtype)[:, ::2].copy_(w)):
            got = fusedact.linear_act(same, weight, b, "tanh")
            assert got.is_contiguous()
            # torch's product sums in another order where a matrix is transposed
            eps = COMPUTE.get(dtype, 2.0**-23)
            torch.testing.assert_close(got, wanted, rtol=2 * ROUNDED[dtype] + 8 * eps, atol=16 * eps)
    one = torch.randn(20).to(dtype).expand(70, 20)
    assert_product_close(
        fusedact.linear_act(one, w, b, "identity"), F.linear(one.double(), w.double(), b.double()), 20, dtype
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(300, 50, 700), (64, 50, 512), *LARGE], ids=str)
def test_threads_do_not_change_the_bits(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, w, b = matrices(*shape, dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(fusedact.linear_act(x, w, b, "gelu"))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nan_stays_where_it_is() -> None:
    x, w, b = matrices(64, 8, 256, torch.float32)
    x[3, 0] = torch.nan
    y = fusedact.linear_act(x, w, b, "relu")
    assert y[3].isnan().all()
    assert not y[torch.arange(64) != 3].isnan().any()


# ---- derivatives ----------------------------------------------------------------------------------------------------


def fused(row: Activation | str, **options: Any) -> Callable[..., Tensor]:
    name = row if isinstance(row, str) else row.name
    return lambda x, w, b=None: fusedact.linear_act(x, w, b, name, **options)


@rows
def test_gradcheck(row: Activation) -> None:
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(fused(row), problem(row), **modes)
    assert gradcheck(fused(row), problem(row)[:2])


@rows
def test_gradgradcheck(row: Activation) -> None:
    assert gradgradcheck(fused(row), problem(row), check_batched_grad=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("save", ["input", "output", "mask"])
def test_gradgradcheck_by_policy(save: str) -> None:
    row = fusedact.registry.get("leaky_relu")
    inputs = problem(row)
    assert gradcheck(fused(row, save=save), inputs, check_batched_grad=True)
    assert gradgradcheck(fused(row, save=save), inputs)


@pytest.mark.parametrize("which", range(1, 8))
@pytest.mark.parametrize("name", ["gelu", "tanh"])
def test_any_mixture_of_requires_grad(name: str, which: int) -> None:
    """Bit i of `which`: x, weight, bias. First and second derivatives against torch's own composition."""
    row = fusedact.registry.get(name)
    given = [t.detach().requires_grad_(bool(which >> i & 1)) for i, t in enumerate(problem(row))]
    leaves = [t for t in given if t.requires_grad]
    mine, theirs = fusedact.linear_act(*given, name), reference(row, F.linear(*given))
    grad = torch.linspace(-1, 1, mine.numel(), dtype=torch.float64).view_as(mine)
    firsts = [torch.autograd.grad(y, leaves, grad, create_graph=True) for y in (mine, theirs)]
    for g, t in zip(*firsts, strict=True):
        torch.testing.assert_close(g, t, **EXACT)
    seconds = [torch.autograd.grad(sum(g.square().sum() for g in gs), leaves) for gs in firsts]
    for g, t in zip(*seconds, strict=True):
        torch.testing.assert_close(g, t, **EXACT)
    plain = torch.autograd.grad(fusedact.linear_act(*given, name), leaves, grad)
    for g, t in zip(plain, firsts[1], strict=True):
        torch.testing.assert_close(g, t, **EXACT)


def test_a_frozen_weight_keeps_no_input_alive() -> None:
    x, w, b = matrices(9, 4, 3, torch.float64)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        fusedact.linear_act(x.requires_grad_(), w, b, "relu")
    assert x.data_ptr() not in kept
    assert w.data_ptr() in kept


def test_a_saved_tensor_that_changes_is_noticed() -> None:
    for name, which in (("gelu", 0), ("gelu", 1), ("gelu", 2), ("relu", 0)):
        tensors = [t.requires_grad_() for t in matrices(9, 4, 3, torch.float64)]
        y = fusedact.linear_act(*tensors, name)
        with torch.no_grad():
            tensors[which].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_third_derivative() -> None:
    x, w, b = problem(fusedact.registry.get("gelu"))

    def third(f: Callable[..., Tensor]) -> Tensor:
        y = f(x, w, b).sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(y, w, create_graph=True)
            y = g.square().sum()
        return torch.autograd.grad(y, x)[0]

    torch.testing.assert_close(third(fused("gelu")), third(lambda *t: F.gelu(F.linear(*t))), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("row", WEIGHTED, ids=row_id)
def test_a_parameter_that_learns(row: Activation, count: int) -> None:
    x, w, b = problem(row)
    p = torch.linspace(0.3, 1.2, count, dtype=torch.float64, requires_grad=True)
    name = row.tensor_parameter.name

    def function(x: Tensor, w: Tensor, b: Tensor, p: Tensor) -> Tensor:
        return fusedact.linear_act(x, w, b, row.name, **{name: p})

    assert gradcheck(function, (x, w, b, p), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, (x, w, b, p))


def test_rrelu_in_training_draws_for_every_output() -> None:
    x, w, b = matrices(64, 20, 256, torch.float32)
    torch.manual_seed(3)
    y = fusedact.linear_act(x, w, b, "rrelu", training=True)
    v = F.linear(x, w, b)
    slope = (y / v)[v < -0.1]
    assert slope.min() >= 0.125 - 1e-4
    assert slope.max() <= 1 / 3 + 1e-4
    assert slope.std() > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wide_bias", [False, True])
def test_16_bit_gradients(dtype: torch.dtype, wide_bias: bool) -> None:
    x, w, b = (t.requires_grad_() for t in matrices(70, 20, 130, dtype))
    b = b.detach().float().requires_grad_() if wide_bias else b
    y = fusedact.linear_act(x, w, b, "gelu")
    grad = torch.randn(70, 130).to(dtype)
    got = torch.autograd.grad(y, [x, w, b], grad)
    exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
    wanted = torch.autograd.grad(F.gelu(F.linear(*exact)), exact, grad.double())
    for g, t, leaf in zip(got, wanted, (x, w, b), strict=True):
        assert g.dtype == leaf.dtype
        # The product that is saved is rounded to 16 bits, each slope is off by |f''| <= 0.8 times half an ulp of it
        # (|v| < 8: ulp 2^-5 in bfloat16), which averages out over the sums of 70 to 130 terms of size 1. Where torch
        # multiplies the gradients, too, what it multiplies is rounded to 16 bits first.
        ulp = torch.finfo(dtype).eps * (2 if rounded_first(70, dtype) else 1)
        torch.testing.assert_close(g.double(), t, rtol=2 * ulp, atol=4 * ulp)


# ---- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_dims", [(0, None, None), (1, 0, None), (None, 1, None), (0, None, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("name", ["gelu", "tanh"])
def test_vmap(name: str, in_dims: tuple[int | None, ...]) -> None:
    shapes = [(5, 4), (3, 4), (3,)]
    tensors = []
    for shape, dim in zip(shapes, in_dims, strict=True):
        t = torch.randn(shape, dtype=torch.float64)
        if dim is not None:
            t = torch.randn(*shape[:dim], 6, *shape[dim:], dtype=torch.float64)
        tensors.append(t)
    act = getattr(F, name)
    got = torch.vmap(fused(name), in_dims)(*tensors)
    wanted = torch.vmap(lambda x, w, b: act(F.linear(x, w, b)), in_dims)(*tensors)
    torch.testing.assert_close(got, wanted, **EXACT)

    def loss(f: Callable[..., Tensor]) -> Callable[..., Any]:
        return torch.vmap(torch.func.grad(lambda *t: f(*t).square().sum(), argnums=(0, 1, 2)), in_dims)

    mine, theirs = loss(fused(name))(*tensors), loss(lambda x, w, b: act(F.linear(x, w, b)))(*tensors)
    for g, t in zip(mine, theirs, strict=True):
        torch.testing.assert_close(g, t, **EXACT)


def test_vmap_of_one_row() -> None:
    x, w, b = matrices(6, 4, 3, torch.float64)
    torch.testing.assert_close(torch.vmap(fused("gelu"), (0, None, None))(x, w, b), F.gelu(F.linear(x, w, b)), **EXACT)


def test_jacobians_and_hessian() -> None:
    x, w, b = matrices(2, 4, 3, torch.float64)
    plain: Callable[..., Tensor] = lambda *t: F.gelu(F.linear(*t))  # noqa: E731
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(fused("gelu"), 1)(x, w, b), transform(plain, 1)(x, w, b), **EXACT)
    f, g = (lambda w, h=h: h(x, w, b).sum() for h in (fused("gelu"), plain))
    torch.testing.assert_close(torch.func.hessian(f)(w), torch.func.hessian(g)(w), **EXACT)


@pytest.mark.parametrize("name", ["gelu", "relu"])
def test_compile(name: str) -> None:
    x, w, b = (t.requires_grad_() for t in matrices(9, 4, 3, torch.float32))
    compiled = torch.compile(fused(name), fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (9, 5):
        y, eager = compiled(x[:rows], w, b), fused(name)(x[:rows], w, b)
        torch.testing.assert_close(y, eager, rtol=0, atol=0)
        for g, t in zip(*(torch.autograd.grad(v.sum(), [x, w, b]) for v in (y, eager)), strict=True):
            torch.testing.assert_close(g, t, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("operators_stay")
def test_inductor_and_export() -> None:
    layer = fusedact.nn.Linear(4, 3, activation="gelu")
    x = torch.randn(9, 4)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=0, atol=0)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    assert any("linear_act" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x[:5]), layer(x[:5]), rtol=0, atol=0)


@pytest.mark.parametrize("save", ["auto", "input", "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype, save: str) -> None:
    x, w, b = (t.requires_grad_() for t in matrices(9, 4, 3, dtype))
    arguments = (x, w, b, None, "leaky_relu", [0.1], 1.0, None, None, save)
    for op in (torch.ops.fusedact.linear_act, torch.ops.fusedact.linear_act_saving):
        torch.library.opcheck(op.default, arguments, rtol=1e-5, atol=1e-5)
    if save == "auto":
        return
    with torch.no_grad():
        y, saved = torch.ops.fusedact.linear_act_saving(*arguments)
    plain = (y, saved, x.detach(), w.detach(), b.detach(), None, "leaky_relu", [0.1], 1.0, None, None, save)
    for wanted in ((True, True, True, False), (True, False, False, False), (False, True, False, False)):
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(
            torch.ops.fusedact.linear_act_backward.default, (*plain, *wanted), test_utils=tests, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    x, w, b = (t.requires_grad_() for t in matrices(70, 20, 130, torch.float32))
    with torch.autocast("cpu", dtype=dtype):
        y = fusedact.linear_act(x, w, b, "gelu")
    assert y.dtype == dtype
    torch.testing.assert_close(
        y, fusedact.linear_act(x.to(dtype), w.to(dtype), b, "gelu"), rtol=0, atol=0
    )  # a float32 bias stays float32
    grads = torch.autograd.grad(y.float().sum(), [x, w, b])
    assert [g.dtype for g in grads] == [torch.float32] * 3
    with torch.autocast("cpu", dtype=dtype):
        again = fusedact.linear_act(x.double(), w.double(), b.double(), "gelu")
    assert again.dtype == torch.float64  # as torch's linear: only float32 is cast


def test_tensor_subclasses_and_modes_are_asked() -> None:
    class Named(torch.Tensor):
        pass

    x, w, b = matrices(9, 4, 3, torch.float64)
    assert isinstance(fusedact.linear_act(x.as_subclass(Named), w, b, "gelu"), Named)
    assert isinstance(fusedact.linear_act(x, w.as_subclass(Named), b, "gelu"), Named)


def test_checkpointing_and_anomaly_mode() -> None:
    x, w, b = (t.requires_grad_() for t in matrices(9, 4, 3, torch.float64))
    with torch.autograd.detect_anomaly(check_nan=True):
        y = torch.utils.checkpoint.checkpoint(fused("gelu"), x, w, b, use_reentrant=False)
        got = torch.autograd.grad(y.sum(), [x, w, b])
    wanted = torch.autograd.grad(F.gelu(F.linear(x, w, b)).sum(), [x, w, b])
    for g, t in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, t, **EXACT)


def test_inference_mode() -> None:
    x, w, b = matrices(300, 20, 700, torch.float32)
    with torch.inference_mode():
        y = fusedact.linear_act(x, w, b, "gelu")
    assert y.is_inference()
    assert torch.equal(y.clone(), fusedact.linear_act(x, w, b, "gelu"))


def test_grad_fn_is_named() -> None:
    x, w, b = (t.requires_grad_() for t in matrices(2, 4, 3, torch.float64))
    assert "LinearActBackward0" in repr(fusedact.linear_act(x, w, b).grad_fn)


# ---- the layer ------------------------------------------------------------------------------------------------------


@rows
def test_the_layer_uses_it(row: Activation) -> None:
    layer = fusedact.nn.Linear(6, 10, activation=row.name).double()
    x = torch.randn(12, 6, dtype=torch.float64)
    layer.eval()
    y = layer(x)
    assert "LinearActBackward0" in repr(y.grad_fn)
    v = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, layer.activation(v), rtol=1e-12, atol=1e-12)


# ---- errors ---------------------------------------------------------------------------------------------------------

x, w = torch.zeros(8, 32), torch.zeros(128, 32)

ERRORS: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
    (
        lambda: fusedact.linear_act(x, torch.zeros(128, 64)),
        ValueError,
        ["32 features", r"\[8, 32\]", "takes 64", r"\[128, 64\]", "out_features, in_features"],
    ),
    (lambda: fusedact.linear_act(x, w.t()), ValueError, ["32 features", "takes 128", r"weight\.t\(\)"]),
    (lambda: fusedact.linear_act(x, torch.zeros(32)), ValueError, [r"\[32\]", r"\[out_features, in_features\]"]),
    (lambda: fusedact.linear_act(torch.tensor(1.0), w), ValueError, ["scalar", "reshape"]),
    (lambda: fusedact.linear_act(x, w, torch.zeros(64)), ValueError, [r"bias has shape \[64\]", "128 rows", "128"]),
    (lambda: fusedact.linear_act(x, w, torch.zeros(128, 1)), ValueError, [r"bias has shape \[128, 1\]", r"\[128\]"]),
    (lambda: fusedact.linear_act(x, w.double()), TypeError, ["weight is float64", "x is float32", r"\.to\("]),
    (lambda: fusedact.linear_act(x, w, torch.zeros(128).double()), TypeError, ["bias is float64", "float32"]),
    (lambda: fusedact.linear_act(x.int(), w.int()), TypeError, ["int32", "float32, float64, bfloat16 or float16"]),
    (lambda: fusedact.linear_act(x, w.to("meta")), ValueError, ["weight is on meta", "cpu", r"\.to\("]),
    (
        lambda: fusedact.linear_act(x, torch.zeros(128, 64).double(), torch.zeros(5), "gelu", save="mask"),
        TypeError,
        ["4 problems", "float64", "32 features", r"bias has shape \[5\]", "save='mask'"],
    ),
    (lambda: fusedact.linear_act(x, w, None, "gellu"), ValueError, ["gellu", "gelu"]),
    (lambda: fusedact.linear_act(x, w, None, "gelu", save="output"), ValueError, ["save='output'", "save='input'"]),
    (lambda: fusedact.linear_act(x, w, None, "relu", negative_slope=0.1), TypeError, ["negative_slope"]),
    (lambda: fusedact.linear_act(x, w, None, "prelu", weight=torch.zeros(3)), ValueError, ["3", "128"]),
    (lambda: fusedact.linear_act(x, w, None, "gelu", clamp=(1.0, -1.0)), ValueError, ["clamp"]),
    (lambda: fusedact.linear_act(x, w, "gelu"), TypeError, ["bias must be", "'gelu'"]),
    (lambda: fusedact.linear_act(x, None), TypeError, ["weight must be", "None"]),
    (lambda: fusedact.linear_act(x.to_sparse(), w), NotImplementedError, ["x is Sparse", "to_dense"]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: "+".join(e[2])[:50])
def test_errors(error: tuple[Callable[[], Any], type[Exception], list[str]]) -> None:
    make, exception, patterns = error
    with pytest.raises(exception) as raised:
        make()
    for pattern in patterns:
        raised.match(pattern)
