"""fusedact.nn.BatchNormAct1d/2d/3d against torch.nn's BatchNorm followed by torch.nn's activation, in both modes."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from cases import DTYPES, ROWS, layouts, row_id, smooth_points
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import fusedact
from fusedact import reference
from fusedact.registry import Activation

OPS = torch.ops.fusedact
rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
EXACT = {"rtol": 1e-10, "atol": 1e-11}

# Class, input shapes.
CLASSES: list[tuple[str, list[tuple[int, ...]]]] = [
    ("BatchNormAct1d", [(7, 5), (3, 5, 11), (1, 5, 2)]),
    ("BatchNormAct2d", [(3, 5, 4, 6), (1, 5, 1, 2), (2, 5, 33, 41)]),
    ("BatchNormAct3d", [(2, 5, 3, 2, 4)]),
]
classes = pytest.mark.parametrize(("name", "shapes"), CLASSES, ids=lambda v: v if isinstance(v, str) else "")
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 0.1},
    {"momentum": 0.0},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]
arguments = pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: ",".join(f"{k}={v}" for k, v in a.items()))


def pair(name: str, arguments: dict[str, Any], activation: str = "silu", dtype: torch.dtype = torch.float64) -> Any:
    """fusedact's layer, and torch's with the activation after it, with the same random parameters."""
    mine = getattr(fusedact.nn, name)(5, **arguments, activation=activation).to(dtype)
    theirs = getattr(nn, name.replace("Act", ""))(5, **arguments).to(dtype)
    for parameter in mine.parameters():
        nn.init.uniform_(parameter, -1.5, 1.5)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs, fusedact.registry.get(activation).torch_function


@classes
@arguments
def test_drop_in(name: str, shapes: list[tuple[int, ...]], arguments: dict[str, Any]) -> None:
    """Outputs, gradients and buffers, over a few batches of training and then in eval mode, in float64."""
    mine, theirs, act = pair(name, arguments)
    assert isinstance(mine, type(theirs))
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    assert mine.extra_repr() == theirs.extra_repr()
    for training in (True, True, False, True, False):
        mine.train(training)
        theirs.train(training)
        for shape in shapes:
            x = torch.randn(shape, dtype=torch.float64) * 3 + 1
            leaves = [x.clone().requires_grad_() for _ in range(2)]
            mine.zero_grad()
            theirs.zero_grad()
            y, wanted = mine(leaves[0]), act(theirs(leaves[1]))
            torch.testing.assert_close(y, wanted, **EXACT)
            grad = torch.randn_like(y)
            y.backward(grad)
            wanted.backward(grad)
            torch.testing.assert_close(leaves[0].grad, leaves[1].grad, **EXACT)
            for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, **EXACT)
            torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(mine(x), act(theirs(x)), **EXACT)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_layouts(dtype: torch.dtype, training: bool) -> None:
    """Against float64 on the same numbers: float32 within a few roundings, 16 bits rounded once, strides kept."""
    for parameters in {torch.float64 if dtype == torch.float64 else torch.float32, dtype}:
        for name, x in layouts((torch.randn(4, 5, 9, 23) * 2 + 3).to(dtype)):
            mine, _, act = pair("BatchNormAct2d", {}, dtype=parameters)
            theirs = nn.BatchNorm2d(5).double()
            theirs.load_state_dict({k: v.double() for k, v in mine.state_dict().items()})
            mine.train(training)
            theirs.train(training)
            leaf, exact = x.detach().requires_grad_(), x.detach().double().requires_grad_()
            y, wanted = mine(leaf), act(theirs(exact))
            eps = torch.finfo(dtype).eps
            limit = {"rtol": 0.51 * eps, "atol": max(32 * torch.finfo(torch.float32).eps, 0)}
            if dtype == torch.float64:
                limit = {"rtol": 0, "atol": 1e-14}
            assert y.dtype == dtype
            if name not in ("gapped", "sliced"):
                assert y.stride() == x.stride(), name
            torch.testing.assert_close(y.double(), wanted, **limit, msg=lambda m, n=name: f"{n}: {m}")
            grad = torch.randn(x.shape).to(dtype)
            y.backward(grad)
            wanted.backward(grad.double())
            assert leaf.grad.dtype == dtype
            torch.testing.assert_close(leaf.grad.double(), exact.grad, **limit, msg=lambda m, n=name: f"{n}: {m}")
            for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
                assert p.grad.dtype == parameters
                size = q.grad.abs().max().item()
                atol = {8: 1e-13, 4: 1e-6, 2: eps}[p.element_size()] * size
                torch.testing.assert_close(p.grad.double(), q.grad, rtol=0, atol=max(atol, 1e-6 * size * (eps > 1e-9)))


@rows
@pytest.mark.parametrize("training", [False, True])
def test_every_row(row: Activation, training: bool) -> None:
    """The layer is the row of its BatchNorm, with the gradients of everything that learns."""
    options = {"num_parameters": 5} if row.learns else {}
    needs = {p.name: row.defaults()[p.name] for p in row.parameters} if row.module == "Threshold" else {}
    mine = fusedact.nn.BatchNormAct1d(5, activation=row.name, **options, **needs).double().train(training)
    if row.name == "rrelu":
        mine.activation.eval()
    theirs = nn.BatchNorm1d(5).double().train(training)
    x = smooth_points(row, (40, 5))
    a, b = (x.clone().requires_grad_() for _ in range(2))
    weight = next(iter(mine.activation.parameters()), None)
    params = mine.activation.arguments() | ({} if weight is None else {row.tensor_parameter.name: weight})
    y, wanted = mine(a), reference.bias_act(theirs(b), None, row.name, dim=1, **params)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-10)
    grad = torch.randn_like(y)
    mine_edges, their_edges = [a, *mine.parameters()], [b, *theirs.parameters()] + [weight] * (weight is not None)
    got = torch.autograd.grad(y, mine_edges, grad)
    torch.testing.assert_close(got, torch.autograd.grad(wanted, their_edges, grad), rtol=1e-8, atol=1e-9)


def test_statistics_of_far_off_data() -> None:
    """A mean 1e4 times the deviation, an outlier in front: the variance keeps its digits."""
    x = torch.randn(64, 3, 40, 40) + 1e4
    x[0, 1, 0, 0] = -3e5
    x[:, 2] = 7.0
    _, mean, var = OPS.batch_norm_act(x, None, None, None, 1e-5, "identity", ())
    exact, centre = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), centre, rtol=6e-8, atol=0)
    torch.testing.assert_close(var.double(), exact, rtol=2.0**-21, atol=0)  # 4 float32 eps
    assert var[2] == 0
    for last in (x, x.contiguous(memory_format=torch.channels_last)):
        again = OPS.batch_norm_act(last, None, None, None, 1e-5, "identity", ())
        torch.testing.assert_close(again[2].double(), exact, rtol=2.0**-21, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_nan_and_infinity_reach_their_channel_only(memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 3, 5, 5).contiguous(memory_format=memory_format)
    x[1, 0, 2, 2], x[2, 2, 0, 0] = torch.nan, torch.inf
    layer = fusedact.nn.BatchNormAct2d(3)
    y = layer(x)
    assert y[:, 0].isnan().all()
    assert y[:, 1].isfinite().all()
    assert y[:, 2].isnan().any()
    assert layer.running_mean.isnan().tolist() == [True, False, False]
    assert layer.running_mean[2] == torch.inf
    assert layer.running_var.isnan().tolist() == [True, False, True]


def test_bits_do_not_depend_on_threads() -> None:
    for x in (torch.randn(9, 24, 61, 67), torch.randn(9, 24, 61, 67).contiguous(memory_format=torch.channels_last)):
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            layer, leaf = fusedact.nn.BatchNormAct2d(24, activation="silu"), x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(torch.linspace(-1, 1, x.numel()).view(x.shape))
            results.append([y, leaf.grad, layer.weight.grad, layer.bias.grad, layer.running_var])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- derivatives and transforms -------------------------------------------------------------------------------------


def problem(activation: str = "silu") -> tuple[Any, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((4, 2, 3), (2,), (2,))
    inputs = tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return OPS.batch_norm_act(x, weight, bias, None, 1e-2, activation, ())[0]

    return function, inputs


def test_gradcheck() -> None:
    function, inputs = problem()
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, inputs, **modes)
    assert gradgradcheck(function, inputs, check_batched_grad=True, check_fwd_over_rev=True)
    assert gradcheck(lambda x: OPS.batch_norm_act(x, None, None, None, 1e-2, "tanh", ())[0], inputs[:1])


def test_statistics_are_not_differentiable() -> None:
    _, mean, var = OPS.batch_norm_act(torch.randn(3, 2, requires_grad=True), None, None, None, 1e-5, "relu", ())
    assert not mean.requires_grad
    assert not var.requires_grad


@pytest.mark.parametrize("where", [(0, None, None), (None, 0, None), (0, 0, 0)], ids=str)
def test_vmap_and_jacobians(where: tuple[int | None, ...]) -> None:
    function, inputs = problem()
    batched = tuple(
        t.detach() if d is None else torch.stack([t.detach(), t.detach() * 2])
        for t, d in zip(inputs, where, strict=True)
    )
    one = [tuple(t if d is None else t[i] for t, d in zip(batched, where, strict=True)) for i in range(2)]
    torch.testing.assert_close(torch.vmap(function, where)(*batched), torch.stack([function(*o) for o in one]), **EXACT)
    jacobians = torch.vmap(torch.func.jacrev(function, (0, 1, 2)), where)(*batched)
    for i, o in enumerate(one):
        for got, wanted in zip(jacobians, torch.func.jacfwd(function, (0, 1, 2))(*o), strict=True):
            torch.testing.assert_close(got[i], wanted, **EXACT)


def test_opcheck() -> None:
    x, grad = (torch.randn(3, 4, 5, requires_grad=True) for _ in range(2))
    vector, bias = (torch.rand(4, requires_grad=True) for _ in range(2))
    for act_weight, name, scalars in ((None, "silu", ()), (torch.rand(4, requires_grad=True), "prelu", (0.25,))):
        arguments = (x, vector, bias, act_weight, 1e-5, name, scalars)
        torch.library.opcheck(OPS.batch_norm_act.default, arguments)
        cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
        asked = (True, True, True, act_weight is not None)
        saved = (torch.rand(4), torch.rand(4), 1e-5, name, scalars)
        arguments = (grad, x, vector, bias, act_weight, *saved, *asked)
        torch.library.opcheck(OPS.batch_norm_act_backward.default, arguments, test_utils=cheap)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_and_export(backend: str) -> None:
    torch._dynamo.reset()
    layer = fusedact.nn.BatchNormAct2d(3, activation="gelu")
    other, x = copy.deepcopy(layer), torch.randn(4, 3, 5, 5)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    for training in (True, False):
        layer.train(training)
        other.train(training)
        a, b = (x.clone().requires_grad_() for _ in range(2))
        y, wanted = compiled(a), layer(b)
        torch.testing.assert_close(y, wanted, rtol=1e-6, atol=1e-6)
        y.sin().sum().backward()
        wanted.sin().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other.state_dict(), layer.state_dict(), rtol=1e-6, atol=1e-6)
        exported = torch.export.export(copy.deepcopy(layer), (x,)).module()
        torch.testing.assert_close(exported(x), copy.deepcopy(layer)(x), rtol=1e-6, atol=1e-6)


def test_autocast() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), fusedact.nn.BatchNormAct2d(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(torch.randn(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net[1].weight.grad.dtype == torch.float32


def test_pickle_copy_device_and_repr() -> None:
    layer = fusedact.nn.BatchNormAct1d(4, activation="leaky_relu", negative_slope=0.3, device="meta")
    assert layer.weight.is_meta
    layer = fusedact.nn.BatchNormAct1d(4, activation="leaky_relu", negative_slope=0.3)
    x = torch.randn(3, 4)
    again = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(again(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close(again.state_dict(), layer.state_dict())
    assert "LeakyReLU(negative_slope=0.3)" in repr(layer)
    plain = nn.BatchNorm1d(4)
    plain.load_state_dict(layer.state_dict())
    learns = fusedact.nn.BatchNormAct1d(4, activation="prelu", num_parameters=4)
    assert set(learns.state_dict()) - set(plain.state_dict()) == {"activation.weight"}


def test_a_batch_of_nothing_and_writing_over_what_is_saved() -> None:
    layer = fusedact.nn.BatchNormAct2d(3)
    before = copy.deepcopy(layer.state_dict())
    empty = torch.randn(0, 3, 4, 4, requires_grad=True)
    y = layer(empty)
    y.sum().backward()
    assert y.shape == empty.grad.shape == empty.shape
    torch.testing.assert_close(layer.running_mean, before["running_mean"], rtol=0, atol=0)
    assert layer.weight.grad.eq(0).all()
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    held = x * 1
    y = layer(held)
    held.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


layer1, layer2 = (functools.partial(getattr(fusedact.nn, f"BatchNormAct{d}d"), 4) for d in (1, 2))
ERRORS: list[tuple[Any, type[Exception], list[str]]] = [
    (lambda: layer2()(torch.zeros(3, 4)), ValueError, ["expected 4D input"]),
    (lambda: layer1()(torch.zeros(1, 4)), ValueError, ["more than 1 value per channel", r"\[1, 4\]"]),
    (lambda: layer2()(torch.zeros(2, 5, 3, 3)), ValueError, ["2 problems", "weight has 4", "bias has 4", "5 channels"]),
    (lambda: layer2().eval()(torch.zeros(2, 5, 3, 3)), ValueError, ["4 elements", "5 channels"]),
    (lambda: layer1()(torch.zeros(3, 4).int()), TypeError, ["int32", "float32, float64, bfloat16 or float16"]),
    (lambda: layer1()(torch.zeros(3, 4).double()), TypeError, ["weight is float32", "float64"]),
    (lambda: layer1(activation="gellu"), ValueError, ["gellu", "gelu"]),
    (lambda: layer1(activation="relu", alpha=1), TypeError, ["alpha"]),
    (lambda: layer1(eps=-1.0)(torch.zeros(3, 4)), ValueError, ["eps is -1"]),
    (lambda: OPS.batch_norm_act(torch.zeros(3), None, None, None, 1e-5, "relu", ()), ValueError, ["at least 2 dims"]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: "+".join(e[2])[:50])
def test_errors(error: tuple[Any, type[Exception], list[str]]) -> None:
    make, exception, patterns = error
    with pytest.raises(exception) as raised:
        make()
    for pattern in patterns:
        raised.match(pattern)
