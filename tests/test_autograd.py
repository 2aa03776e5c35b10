"""Differentiation: first, second and third order, forward mode, torch.func, in place, checkpoints, hooks.

Derivatives are checked by finite differences in float64 (gradcheck and its kin), and transforms against the same
transform of `fusedact.reference`, which is plain torch code (held to mpmath by test_truth.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from cases import ROWS, WEIGHTED, WITH_SETTINGS, call, kinks, row_id
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fusedact
from fusedact import reference
from fusedact.registry import Activation

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
with_settings = pytest.mark.parametrize(("row", "params"), WITH_SETTINGS, ids=row_id)
with_policies = pytest.mark.parametrize(("row", "save"), [(r, s) for r in ROWS for s in r.saves], ids=row_id)
weighted = pytest.mark.parametrize("row", WEIGHTED, ids=row_id)

# vmap without a batching rule is a slow loop, and says so.
pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # two float64 computations of one formula, in another order


def problem(row: Activation, shape: tuple[int, ...] = (3, 4), dim: int = 1, **params) -> tuple[Tensor, Tensor]:
    """x and bias in float64, such that x + bias lies at least 0.05 from every kink, 0 included."""
    generator = torch.Generator().manual_seed(7)
    v = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    for kink in (*kinks(row, **params), 0.0):
        v = torch.where((v - kink).abs() < 0.05, kink + torch.where(v < kink, -0.08, 0.08), v)
    bias = torch.randn(shape[dim], generator=generator, dtype=torch.float64)
    x = v - reference.along(bias, v, dim)
    return x.requires_grad_(), bias.requires_grad_()


def plain(row: Activation, dim: int = 1, **params) -> Callable[..., Tensor]:
    return functools.partial(reference.bias_act, activation=row.name, dim=dim, **params)


def fused(row: Activation, dim: int = 1, **params) -> Callable[..., Tensor]:
    return functools.partial(fusedact.bias_act, activation=row.name, dim=dim, **params)


# ---- finite differences ---------------------------------------------------------------------------------------------


@with_settings
def test_gradcheck(row: Activation, params: dict) -> None:
    """Reverse and forward mode, each also under vmap."""
    if params.get("training"):
        pytest.skip("random: see test_rrelu_in_training")
    inputs = problem(row, **params)
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(fused(row, **params), inputs, **modes)


@with_policies
def test_gradcheck_by_policy(row: Activation, save: str) -> None:
    x, bias = problem(row)
    assert gradcheck(fused(row, save=save), (x, bias), check_batched_grad=True)
    assert gradcheck(fused(row, save=save), (x, None))


@with_settings
def test_gradgradcheck(row: Activation, params: dict) -> None:
    if params.get("training"):
        pytest.skip("random: see test_rrelu_in_training")
    inputs = problem(row, **params)
    modes = {"check_batched_grad": True, "check_fwd_over_rev": True}
    assert gradgradcheck(fused(row, **params), inputs, **modes)


@with_policies
def test_gradgradcheck_by_policy(row: Activation, save: str) -> None:
    x, bias = problem(row)
    assert gradgradcheck(fused(row, save=save), (x, bias))


@pytest.mark.parametrize("options", [{"gain": 1.7}, {"clamp": (-0.4, 0.9)}, {"gain": -0.6, "clamp": 0.3}], ids=row_id)
@rows
def test_gain_and_clamp(row: Activation, options: dict) -> None:
    """Held to the reference, not to finite differences: gain moves the clamp's edges, and the mask is inclusive."""
    x, bias = problem(row, (6, 7))
    grad = torch.linspace(-1, 1, 42, dtype=torch.float64).view(6, 7)
    mine, theirs = (f(row, **options)(x, bias) for f in (fused, plain))
    torch.testing.assert_close(mine, theirs, **EXACT)
    for once, twice in zip(
        *(torch.autograd.grad(y, [x, bias], grad, create_graph=True) for y in (mine, theirs)), strict=True
    ):
        torch.testing.assert_close(once, twice, **EXACT)
        seconds = [
            torch.autograd.grad(
                g.square().sum(), [x, bias], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for g in (once, twice)
            if g.requires_grad
        ]
        if len(seconds) == 2:
            torch.testing.assert_close(*seconds, **EXACT)


def test_the_mask_of_the_clamp_is_inclusive() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, torch.nan], requires_grad=True)
    (grad,) = torch.autograd.grad(fusedact.identity(x, clamp=1.0).sum(), x)
    assert grad.tolist() == [0, 1, 1, 1, 0, 0]  # torch.clamp's


# ---- tensor parameters ----------------------------------------------------------------------------------------------


@weighted
@pytest.mark.parametrize("count", [1, 4])
def test_gradients_of_a_tensor_parameter(row: Activation, count: int) -> None:
    x, bias = problem(row)
    weight = torch.linspace(0.3, 1.2, count, dtype=torch.float64, requires_grad=True)
    name = row.tensor_parameter.name

    def function(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        return fusedact.bias_act(x, bias, row.name, dim=1, **{name: weight})

    assert gradcheck(function, (x, bias, weight), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, (x, bias, weight))
    frozen = weight.detach()
    assert gradcheck(lambda x, bias: function(x, bias, frozen), (x, bias))
    assert gradcheck(lambda weight: function(x.detach(), bias.detach(), weight), (weight,))


@weighted
@pytest.mark.parametrize(("shape", "dim"), [((2, 3, 5), 1), ((2, 3, 5, 2), 1), ((4, 3), -1), ((3, 4, 2), 0)])
def test_a_tensor_parameter_lies_along_dim(row: Activation, shape: tuple[int, ...], dim: int) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.2, -0.5, 1.5], dtype=torch.float64, requires_grad=True)
    options = {row.tensor_parameter.name: weight}
    mine, theirs = (f(row, dim=dim, **options)(x) for f in (fused, plain))
    torch.testing.assert_close(mine, theirs, **EXACT)
    grad = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(mine, [x, weight], grad), torch.autograd.grad(theirs, [x, weight], grad), **EXACT
    )


@weighted
def test_a_float32_tensor_parameter_beside_16_bits(row: Activation) -> None:
    x = torch.randn(8, 3, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([0.2, 0.5, 1.5], requires_grad=True)
    y = call(row, x, dim=1, **{row.tensor_parameter.name: weight})
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


def test_rrelu_in_training() -> None:
    x = torch.randn(4, 500, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(500, dtype=torch.float64, requires_grad=True)
    y = fusedact.rrelu(x, bias, lower=0.1, upper=0.4, training=True)
    v = (x + bias).detach()
    slopes = (y.detach() / v)[v <= 0]
    assert 0.1 <= slopes.min() < 0.11
    assert 0.39 < slopes.max() <= 0.4
    torch.testing.assert_close(y[v > 0], v[v > 0], rtol=0, atol=0)
    grads = torch.autograd.grad(y.sum(), [x, bias])
    torch.testing.assert_close(grads[0], y.detach() / v, **EXACT)
    torch.testing.assert_close(grads[1], grads[0].sum(0), **EXACT)
    torch.manual_seed(3)
    once = fusedact.rrelu(x, training=True)
    torch.manual_seed(3)
    assert torch.equal(once, fusedact.rrelu(x, training=True))
    assert not torch.equal(once, fusedact.rrelu(x, training=True))


# ---- higher orders --------------------------------------------------------------------------------------------------


@with_policies
def test_third_order(row: Activation, save: str) -> None:
    x, bias = problem(row)

    def derivatives(function: Callable[..., Tensor]) -> list[Tensor]:
        result, y = [], function(x, bias)
        for _ in range(3):
            grads = [torch.zeros_like(x), torch.zeros_like(bias)]
            if y.requires_grad:
                grads = torch.autograd.grad(y.sum(), [x, bias], create_graph=True, materialize_grads=True)
            result += [g.detach() for g in grads]
            y = grads[0] * x.detach().cos()
        return result

    mine, theirs = derivatives(fused(row, save=save)), derivatives(plain(row))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("row", [row for row in ROWS if "mask" in row.saves], ids=row_id)
def test_a_second_derivative_of_zero_takes_no_memory(row: Activation) -> None:
    x, bias = problem(row)
    u, v = (torch.linspace(-1, k, 12, dtype=torch.float64).view(3, 4).requires_grad_() for k in (1, 2))
    mine, theirs = (
        torch.autograd.grad(
            torch.autograd.grad(f(row)(x, bias), x, u, create_graph=True),
            [u, x, bias],
            v,
            allow_unused=f is plain,
            materialize_grads=f is plain,
        )
        for f in (fused, plain)
    )
    torch.testing.assert_close(mine, theirs, **EXACT)
    assert mine[1].untyped_storage().nbytes() == 8


@rows
def test_create_graph_keeps_first_order(row: Activation) -> None:
    x, bias = problem(row)
    y = call(row, x, bias)
    once = torch.autograd.grad(y.sum(), [x, bias], retain_graph=True)
    again = torch.autograd.grad(y.sum(), [x, bias], create_graph=True)
    torch.testing.assert_close(once, again, rtol=0, atol=0)


def test_a_second_backward_without_retain_graph_raises() -> None:
    x, bias = problem(ROWS[1])
    y = fusedact.gelu(x, bias).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=("x only", "bias only"))
@rows
def test_only_what_is_asked_for(row: Activation, wanted: tuple[bool, bool]) -> None:
    x, bias = (t.detach().requires_grad_(w) for t, w in zip(problem(row), wanted, strict=True))
    leaves = [t for t in (x, bias) if t.requires_grad]
    mine, theirs = (torch.autograd.grad(f(row)(x, bias).sum(), leaves) for f in (fused, plain))
    torch.testing.assert_close(mine, theirs, **EXACT)


# ---- torch.func -----------------------------------------------------------------------------------------------------


@rows
@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "grad of grad"])
def test_torch_func(row: Activation, transform: str) -> None:
    x, bias = (t.detach() for t in problem(row))
    dx, dbias = torch.randn_like(x), torch.randn_like(bias)
    func = torch.func

    def apply(f: Callable[..., Tensor]):
        def total(x: Tensor, bias: Tensor) -> Tensor:
            return (f(x, bias) * x.detach().cos()).sum()

        return {
            "grad": lambda: func.grad(total, argnums=(0, 1))(x, bias),
            "vjp": lambda: func.vjp(f, x, bias)[1](dx),
            "jvp": lambda: func.jvp(f, (x, bias), (dx, dbias)),
            "jacrev": lambda: func.jacrev(f, argnums=(0, 1))(x, bias),
            "jacfwd": lambda: func.jacfwd(f, argnums=(0, 1))(x, bias),
            "hessian": lambda: func.hessian(total, argnums=(0, 1))(x, bias),
            "grad of grad": lambda: func.grad(lambda x, b: func.grad(total)(x, b).square().sum(), argnums=(0, 1))(
                x, bias
            ),
        }[transform]()

    torch.testing.assert_close(apply(fused(row)), apply(plain(row)), **EXACT)


@rows
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (2, 1), (-1, None), (1, 0)], ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_vmap(row: Activation, in_dims: tuple[int | None, int | None], dim: int) -> None:
    """vmap equals a loop, whatever is batched and wherever; x has 2 dims of its own, the bias one."""
    shape = (3, 4)
    generator = torch.Generator().manual_seed(1)

    def draw(shape: tuple[int, ...], batch: int | None) -> Tensor:
        full = list(shape)
        if batch is not None:
            full.insert(batch if batch >= 0 else len(full) + 1 + batch, 5)
        return torch.randn(full, generator=generator, dtype=torch.float64)

    x, bias = draw(shape, in_dims[0]), draw((shape[dim],), in_dims[1])
    got = torch.vmap(fused(row, dim=dim), in_dims=in_dims)(x, bias)
    one = [t.unbind(d) if d is not None else [t] * 5 for t, d in zip((x, bias), in_dims, strict=True)]
    wanted = torch.stack([fused(row, dim=dim)(a, b) for a, b in zip(*one, strict=True)])
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@rows
def test_vmap_of_grad_gives_gradients_per_sample(row: Activation) -> None:
    x, bias = (t.detach() for t in problem(row, (5, 4)))

    def per_sample(f: Callable[..., Tensor]):
        return torch.vmap(torch.func.grad(lambda x, b: f(x, b).sin().sum(), argnums=(0, 1)), in_dims=(0, None))(x, bias)

    torch.testing.assert_close(per_sample(fused(row, dim=-1)), per_sample(plain(row, dim=-1)), **EXACT)


def test_vmap_of_nothing_but_x_in_scalars() -> None:
    x = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(fusedact.gelu)(x), fusedact.gelu(x), rtol=0, atol=0)
    torch.testing.assert_close(
        torch.vmap(torch.vmap(fusedact.gelu))(x.view(2, 3)), fusedact.gelu(x).view(2, 3), rtol=0, atol=0
    )


@weighted
def test_vmap_over_a_tensor_parameter(row: Activation) -> None:
    x, weight = torch.randn(5, 3, 4, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return call(row, x, dim=1, **{row.tensor_parameter.name: weight})

    wanted = torch.stack([function(a, b) for a, b in zip(x, weight, strict=True)])
    torch.testing.assert_close(torch.vmap(function)(x, weight), wanted, rtol=0, atol=0)


def test_forward_mode_api() -> None:
    """Tangents of x alone, of the bias alone, of both; and in place."""
    import torch.autograd.forward_ad as fw

    x, bias = (t.detach() for t in problem(ROWS[1], (3, 4)))
    dx, dbias = torch.randn_like(x), torch.randn_like(bias)
    v = x + bias
    slope = torch.autograd.grad(torch.nn.functional.gelu(v.requires_grad_()).sum(), v)[0]
    for use_x, use_bias in ((True, False), (False, True), (True, True)):
        with fw.dual_level():
            a = fw.make_dual(x, dx) if use_x else x
            b = fw.make_dual(bias, dbias) if use_bias else bias
            tangent = fw.unpack_dual(fusedact.gelu(a, b)).tangent
            torch.testing.assert_close(tangent, slope * (dx * use_x + dbias * use_bias), **EXACT)


# ---- in place -------------------------------------------------------------------------------------------------------


@rows
def test_in_place_gives_the_same_gradients(row: Activation) -> None:
    x, bias = problem(row)
    grad = torch.randn_like(x)
    wanted = torch.autograd.grad(call(row, x, bias), [x, bias], grad)
    y = x * 1
    version = y._version
    result = call(row, y, bias, inplace=True)
    assert result is y
    assert y._version == version + 1
    assert y.grad_fn is not None
    torch.testing.assert_close(torch.autograd.grad(y, [x, bias], grad), wanted, **EXACT)


@rows
def test_in_place_on_a_leaf_raises(row: Activation) -> None:
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        call(row, x, inplace=True)


def test_in_place_without_gradients() -> None:
    for row in ROWS:
        x = torch.randn(5, 7)
        wanted, version = call(row, x), x._version
        assert call(row, x, inplace=True) is x
        assert x._version == version + 1
        torch.testing.assert_close(x, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "save"), [("gelu", "input"), ("sigmoid", "output")])
def test_writing_over_a_saved_tensor_is_detected(name: str, save: str) -> None:
    x = torch.randn(4, requires_grad=True)
    middle = x * 1
    y = call(name, middle, save=save)
    (middle if save == "input" else y).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_corrupting_another_ops_saved_tensor_is_detected() -> None:
    x = torch.randn(4, requires_grad=True)
    middle = x.exp()  # saves its output
    y = fusedact.relu(middle, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_on_a_view_rebases_its_history() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def run(f: Callable[[Tensor], None]) -> Tensor:
        base = x * 2
        f(base[:, 1:4])
        return torch.autograd.grad((base * torch.arange(24.0, dtype=torch.float64).view(4, 6)).sum(), x)[0]

    mine = run(lambda view: fusedact.silu(view, inplace=True))
    theirs = run(lambda view: torch.nn.functional.silu(view, inplace=True))
    torch.testing.assert_close(mine, theirs, **EXACT)


def test_the_mask_survives_writing_over_input_and_output() -> None:
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    middle = x * 1
    y = fusedact.leaky_relu(middle, save="mask")
    with torch.no_grad():
        middle.zero_()
        y.detach().zero_()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, torch.where(x > 0, 1.0, 0.01 * torch.ones_like(x)))


def test_out_refuses_gradients() -> None:
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="out="):
        fusedact.gelu(x, out=torch.empty(4))
    with torch.no_grad():
        fusedact.gelu(x, out=torch.empty(4))


# ---- what backward keeps --------------------------------------------------------------------------------------------


def kept(function: Callable[[], Tensor]) -> list[Tensor]:
    """The tensors that autograd packs during `function`."""
    packed: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return packed


@with_policies
def test_what_is_saved_is_what_was_asked_for(row: Activation, save: str) -> None:
    x = torch.randn(8, 100, requires_grad=True)
    y: list[Tensor] = []
    tensors = kept(lambda: y.append(call(row, x, save=save)))
    if save == "mask":
        assert sum(t.numel() * t.element_size() for t in tensors) <= 2 * x.numel() // 8
    else:
        wanted = x if save == "input" else y[0]
        assert any(t.data_ptr() == wanted.data_ptr() for t in tensors), f"{save} was not saved"
        assert sum(t.numel() for t in tensors) == x.numel(), "more was saved than one tensor"


@rows
def test_saved_tensor_hooks_are_honoured(row: Activation) -> None:
    """What unpack returns is what backward uses."""
    x, bias = problem(row)
    wanted = torch.autograd.grad(call(row, x, bias).sum(), [x, bias])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), lambda a: torch.from_numpy(a)):
        y = call(row, x, bias)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), [x, bias]), wanted, rtol=0, atol=0)
    with torch.autograd.graph.save_on_cpu():
        y = call(row, x, bias)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), [x, bias]), wanted, rtol=0, atol=0)


@rows
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(row: Activation, reentrant: bool) -> None:
    x, bias = problem(row)
    wanted = torch.autograd.grad(call(row, x, bias).square().sum(), [x, bias])
    x.grad = bias.grad = None
    checkpoint(lambda x, b: call(row, x, b).square(), x, bias, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close([x.grad, bias.grad], list(wanted), rtol=0, atol=0)


def test_no_grad_and_inference_mode() -> None:
    x, bias = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    for row in ROWS:
        with torch.no_grad():
            y = call(row, x, bias)
        assert not y.requires_grad
        assert y.grad_fn is None
        with torch.inference_mode():
            z = call(row, x, bias)
            assert z.is_inference()
            call(row, z, inplace=True)
        assert call(row, x.detach(), bias).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@rows
def test_float32_bias_beside_16_bits(row: Activation, dtype: torch.dtype) -> None:
    x, bias = problem(row, (64, 4))
    x, bias = x.detach().to(dtype).requires_grad_(), bias.detach().float().requires_grad_()
    y = call(row, x, bias, save="input")
    y.backward(torch.ones_like(y))
    assert y.dtype == x.grad.dtype == dtype
    assert bias.grad.dtype == torch.float32
    v = (x.float() + bias).detach().double().requires_grad_()
    theirs = plain(row)(v)
    slope = torch.autograd.grad(theirs.sum(), v)[0] if theirs.requires_grad else torch.zeros_like(v)
    # The sum is of float32 slopes, not of slopes rounded to 16 bits first.
    torch.testing.assert_close(bias.grad.double(), slope.sum(0), rtol=2e-5, atol=2e-5)


def test_node_has_a_name() -> None:
    y = fusedact.gelu(torch.randn(3, requires_grad=True))
    assert "BiasAct" in type(y.grad_fn).__name__ or "BiasAct" in y.grad_fn.name()


def test_tensor_hooks_and_accumulation() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    seen: list[Tensor] = []
    y = fusedact.tanh(x)
    y.register_hook(lambda g: seen.append(g) or 2 * g)
    (y.sum() + y.square().sum()).backward()
    t = torch.tanh(x.detach())
    torch.testing.assert_close(x.grad, 2 * (1 + 2 * t) * (1 - t * t), **EXACT)
    assert len(seen) == 1
