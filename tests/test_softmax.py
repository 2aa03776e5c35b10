"""softmax and log_softmax with a bias: numbers, special values, derivatives, transforms, layouts, errors, modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import family
import numpy as np
import pytest
import torch
from cases import DTYPES
from torch import Tensor, nn

import fusedact

pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

FUNCTIONS = {"softmax": (fusedact.softmax, torch.softmax), "log_softmax": (fusedact.log_softmax, torch.log_softmax)}
functions = pytest.mark.parametrize("name", FUNCTIONS)
# One element, a vector ± 1, past one fold of the sums; rows, strips (inner > 1), wide strips, many channels in a strip.
SHAPES = [
    ((3, 1), -1),
    ((5, 7), -1),
    ((4, 31), -1),
    ((4, 32), -1),
    ((4, 33), -1),
    ((3, 64), 1),
    ((3, 65), 1),
    ((2, 257), 1),
    ((3, 1000), 1),
    ((2, 5000), 1),
    ((1000,), 0),
    ((6, 5), 0),
    ((2, 3, 65), 1),
    ((2, 21, 7, 9), 1),
    ((33, 2, 1100), 1),
    ((2, 1300, 70), 1),
    ((4, 1, 6), 1),
    ((), 0),
]
shapes = pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)


def along(bias: Tensor, x: Tensor, dim: int) -> Tensor:
    return bias.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())]) if x.dim() else bias.squeeze()


def plain(name: str, dim: int) -> Callable[..., Tensor]:
    theirs = FUNCTIONS[name][1]
    return lambda x, bias=None: theirs(x if bias is None else x + along(bias, x, dim), dim)


def fused(name: str, dim: int) -> Callable[..., Tensor]:
    return functools.partial(FUNCTIONS[name][0], dim=dim)


def problem(shape: tuple[int, ...], dim: int, dtype: torch.dtype = torch.float64, scale: float = 4.0) -> list[Tensor]:
    channels = shape[dim] if shape else 1
    return [(torch.randn(shape, dtype=torch.float64) * scale).to(dtype), torch.randn(channels).to(dtype)]


# ---- numbers --------------------------------------------------------------------------------------------------------

# Measured over the shapes below and scales up to 100: 2.7, 3.2, 0.503 and 0.509.
BOUNDS = {torch.float32: 3.0, torch.float64: 4.0, torch.bfloat16: 0.51, torch.float16: 0.51}


def truth(name: str, x: Tensor, bias: Tensor | None, dim: int) -> Any:
    """In long double; the greatest of a row apart, so that log_softmax keeps its digits next to 0."""
    if x.dim() == 0:
        return truth(name, x.view(1), bias, 0).reshape(())
    v = family.precise(x) + (0 if bias is None else family.precise(along(bias, x, dim)))
    v = v - v.max(dim, keepdims=True)
    rest = np.where(v == 0, 0, np.exp(v)).sum(dim, keepdims=True)
    tops = (v == 0).sum(dim, keepdims=True)
    return v - np.log1p(tops - 1 + rest) if name == "log_softmax" else np.exp(v) / (tops + rest)


@functions
@shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy(name: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    """Within the bound of the true value, at every scale, with and without a bias."""
    for scale in (0.1, 4.0, 30.0, 100.0):
        x, bias = problem(shape, dim, dtype, scale)
        assert family.ulp_error(fused(name, dim)(x), truth(name, x, None, dim)) <= BOUNDS[dtype]
        # log_softmax next to 0 is right to what rounding twice leaves of the greatest x + bias: no relative bound.
        y, exact = fused(name, dim)(x, bias), truth(name, x, bias, dim)
        if name == "log_softmax":
            far = np.atleast_1d(exact) < -1e-3
            y, exact = torch.atleast_1d(y)[torch.from_numpy(far)], np.atleast_1d(exact)[far]
        if exact.size:
            assert family.ulp_error(y, exact) <= BOUNDS[dtype]


def test_log_softmax_keeps_its_digits_next_to_zero() -> None:
    """Where torch's answers 0: the greatest of a row stands far above the rest."""
    x = torch.tensor([[0.0, -20.0, -30.0], [50.0, 20.0, 10.0], [-70.0, 0.0, -80.0]])
    y = fusedact.log_softmax(x)
    assert family.ulp_error(y, truth("log_softmax", x, None, 1)) <= 1.0
    assert float(torch.log_softmax(x, 1)[0, 0]) == 0.0
    assert float(y[0, 0]) < 0.0


@functions
def test_mixed_bias(name: str) -> None:
    """A float32 bias beside 16-bit input is not rounded; its gradient is float32."""
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(9, 70).to(dtype).requires_grad_()
        bias = torch.randn(70).requires_grad_()
        y = fused(name, 1)(x, bias)
        assert y.dtype == dtype
        assert family.ulp_error(y.detach(), truth(name, x.detach(), bias.detach(), 1)) <= BOUNDS[dtype]
        y.float().square().sum().backward()
        assert x.grad is not None
        assert bias.grad is not None
        assert (x.grad.dtype, bias.grad.dtype) == (dtype, torch.float32)


@functions
def test_dtype(name: str) -> None:
    mine, theirs = FUNCTIONS[name]
    x = torch.randn(3, 5).bfloat16()
    result = mine(x, dtype=torch.float64, dim=1)
    torch.testing.assert_close(result, theirs(x, 1, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    assert mine(torch.arange(4), dim=0, dtype=torch.float32).dtype == torch.float32


@functions
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(name: str, dim: int, dtype: torch.dtype) -> None:
    """NaN, infinities, rows of -inf and overflow, as torch: in whole vectors, in the tail, in rows and in strips."""
    inf, nan = float("inf"), float("nan")
    rows = torch.randn(8, 71)
    rows[0, 3], rows[1, 70], rows[2, 5], rows[3, 66] = nan, nan, inf, inf
    rows[4], rows[5, 1:], rows[6, ::2] = -inf, -inf, -inf
    rows[7, 0], rows[7, 70] = 3e4, -3e4
    x = (rows if dim == 1 else rows.t().contiguous()).to(dtype)
    limits = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(fused(name, dim)(x), FUNCTIONS[name][1](x, dim), equal_nan=True, **limits)
    y = fused(name, dim)(x)
    flat = y if dim == 1 else y.t()
    assert bool(flat[:5].isnan().all())
    assert not bool(flat[5:].isnan().any())


@functions
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("offset", [1e3, -1e3, 3e4, 1e5, -1e5, 1e7, -1e9, 3e38])
def test_far_from_zero(name: str, dim: int, offset: float) -> None:
    """Where x + bias has few digits left or none behind the point, and what it loses is large itself."""
    x, bias = torch.randn(40, 40) * 3 + offset, torch.randn(40) * 8
    v = (x + along(bias, x, dim)) if abs(offset) > 4e4 else x.double() + along(bias.double(), x, dim)
    expected = FUNCTIONS[name][1](v.double(), dim)
    torch.testing.assert_close(fused(name, dim)(x, bias).double(), expected, rtol=1e-6, atol=1e-6)


def test_where_an_element_lies_does_not_matter() -> None:
    """A row has the same bits alone, among others, and at any offset."""
    x, bias = torch.randn(50, 777), torch.randn(777)
    whole = fusedact.softmax(x, bias)
    for i in (0, 17, 49):
        assert torch.equal(fusedact.softmax(x[i], bias), whole[i])
    columns = fusedact.softmax(x.t().contiguous(), bias, dim=0)
    spoilt = x.t().contiguous()
    spoilt[3, ::2] = torch.tensor([float("nan"), 1e6, float("inf"), -1e9, 3e38]).repeat(5)
    assert torch.equal(fusedact.softmax(spoilt, bias, dim=0)[:, 1::2], columns[:, 1::2])


# ---- layouts --------------------------------------------------------------------------------------------------------


@functions
@shapes
def test_layouts(name: str, shape: tuple[int, ...], dim: int) -> None:
    """Any strides; forward and backward; results keep dense strides."""
    if not shape:
        pytest.skip("a scalar has one layout")
    x, bias = problem(shape, dim)
    expected = plain(name, dim)(x, bias)
    for layout, given in family.variants(x):
        leaf = given.detach().requires_grad_()
        b = bias.detach().requires_grad_()
        y = fused(name, dim)(leaf, b)
        torch.testing.assert_close(y, expected, **family.EXACT)
        if layout != "gapped":
            assert y.stride() == given.stride(), layout
        grads = torch.autograd.grad(y, [leaf, b], torch.sin(expected))
        v = x.clone().requires_grad_(), bias.clone().requires_grad_()
        theirs = torch.autograd.grad(plain(name, dim)(*v), v, torch.sin(expected))
        torch.testing.assert_close(grads, theirs, **family.EXACT)
    family.check_gradients(fused(name, dim), plain(name, dim), x.expand(2, *shape), bias) if dim < 0 else None


@functions
def test_empty(name: str) -> None:
    for shape, dim in (((0, 4), 1), ((4, 0), 1), ((2, 0, 3), 1), ((2, 3, 0), 1)):
        x = torch.zeros(shape).requires_grad_()
        bias = torch.zeros(shape[dim]).requires_grad_()
        y = fused(name, dim)(x, bias)
        assert y.shape == shape
        y.sum().backward()
        assert bias.grad is not None
        assert bool((bias.grad == 0).all())


# ---- derivatives ----------------------------------------------------------------------------------------------------


@functions
@pytest.mark.parametrize(("shape", "dim"), [((3, 5), 1), ((2, 4, 3), 1), ((), 0)], ids=str)
def test_derivatives(name: str, shape: tuple[int, ...], dim: int) -> None:
    x, bias = problem(shape, dim, scale=1.0)
    family.check_derivatives(fused(name, dim), x, bias)
    family.check_derivatives(fused(name, dim), x)


@functions
@shapes
def test_gradients(name: str, shape: tuple[int, ...], dim: int) -> None:
    family.check_gradients(fused(name, dim), plain(name, dim), *problem(shape, dim))
    family.check_gradients(fused(name, dim), plain(name, dim), problem(shape, dim)[0])


@functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradient_accuracy(name: str, dtype: torch.dtype) -> None:
    """Of input and bias, from the output that was saved: one rounding of the largest term, or of each in a sum."""
    for shape, dim in (((300, 517), 1), ((7, 40, 333), 1)):
        x, bias = problem(shape, dim, dtype)
        given = [x.requires_grad_(), bias.requires_grad_()]
        y = fused(name, dim)(*given)
        g = torch.randn_like(y)
        wide, saved = g.double(), y.detach().double()
        exact = (
            wide - saved.exp() * wide.sum(dim, keepdim=True)
            if name == "log_softmax"
            else saved * (wide - (wide * saved).sum(dim, keepdim=True))
        )
        others = [d for d in range(x.dim()) if d != dim]
        of_x, of_bias = torch.autograd.grad(y, given, g)
        eps = torch.finfo(dtype).eps
        assert float((of_x.double() - exact).abs().max()) <= eps * float(
            torch.maximum(exact.abs().max(), wide.abs().max())
        )
        terms, total = exact.abs().sum(others), exact.sum(others)
        limit = torch.finfo(torch.float32).eps * terms.max() + (eps * total.abs() if dtype.itemsize == 2 else 0)
        assert bool(((of_bias.double() - total).abs() <= limit).all())


@functions
def test_transforms(name: str) -> None:
    family.check_transforms(fused(name, 0), plain(name, 0), *problem((4, 3), 0, scale=1.0))
    family.check_transforms(fused(name, -1), plain(name, -1), *problem((4,), -1, scale=1.0))


@functions
def test_vmap_of_scalars(name: str) -> None:
    x = torch.randn(5, dtype=torch.float64)
    expected = torch.ones(5, dtype=torch.float64) if name == "softmax" else torch.zeros(5, dtype=torch.float64)
    assert torch.equal(torch.vmap(fused(name, -1))(x), expected)


def test_a_change_of_the_output_is_noticed() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = fusedact.softmax(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_node_has_a_name() -> None:
    assert type(fusedact.softmax(torch.zeros(2, requires_grad=True)).grad_fn).__name__ == "SoftmaxBackward0"


# ---- the dispatcher -------------------------------------------------------------------------------------------------


@functions
def test_opcheck(name: str) -> None:
    log = name == "log_softmax"
    ops = torch.ops.fusedact
    for dtype in (torch.float32, torch.bfloat16):
        x, bias = torch.randn(3, 4, 5).to(dtype).requires_grad_(), torch.randn(4).requires_grad_()
        for given in (x, x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0), x.detach()[:, :, ::2]):
            torch.library.opcheck(ops.softmax.default, (given, bias if given is x else None, 1, log))
        grad = torch.randn(3, 4, 5).to(dtype).requires_grad_()
        torch.library.opcheck(ops.softmax_backward.default, (grad, x.detach(), bias.detach(), 1, log, True))
        torch.library.opcheck(ops.softmax_backward.default, (grad, x.detach(), None, 1, log, False))


@functions
def test_compile_and_export(name: str) -> None:
    family.check_compiled(fused(name, 1), torch.randn(6, 37), torch.randn(37))


@functions
def test_autocast(name: str) -> None:
    """As torch's: the CPU keeps the dtype; a float32 bias goes with a 16-bit input."""
    x, bias = torch.randn(3, 4).bfloat16(), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(name, 1)(x, bias).dtype == torch.bfloat16 == FUNCTIONS[name][1](x, 1).dtype
        assert fused(name, 1)(x.float(), bias.bfloat16()).dtype == torch.float32


@functions
@pytest.mark.parametrize(("shape", "dim"), [((1031, 517), 1), ((7, 24, 5003), 1), ((60_011, 3), 1), ((3, 100_003), 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads(name: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    family.check_threads(fused(name, dim), *problem(shape, dim, dtype))


# ---- errors ---------------------------------------------------------------------------------------------------------

x = torch.zeros(8, 128, 32)
ERRORS = [
    (lambda f: f(x, torch.zeros(64), dim=1), ValueError, ["64 elements", "128 channels", "dim 1", "8, 128, 32"]),
    (lambda f: f(x, torch.zeros(32, 1)), ValueError, ["bias", r"\[32, 1\]", "one dim"]),
    (lambda f: f(x, dim=3), ValueError, ["dim is 3", "3 dims", r"\[-3, 2\]"]),
    (lambda f: f(x.int()), TypeError, ["int32", "float32, float64, bfloat16 or float16"]),
    (lambda f: f(x, torch.zeros(32).double()), TypeError, ["bias is", "float64", "float32"]),
    (lambda f: f(x.bfloat16(), torch.zeros(32).half()), TypeError, ["float16", "bfloat16", "float32"]),
    (lambda f: f(x, torch.zeros(32, device="meta")), ValueError, ["meta", "cpu", r"\.to\("]),
    (lambda f: f(x.int(), torch.zeros(5)), TypeError, ["problems", "int32", "5 elements"]),
    (lambda f: f([1.0]), TypeError, ["input", "Tensor"]),
    (lambda f: f(x, 0.5), TypeError, ["bias", "Tensor", "0.5"]),
    (lambda f: f(x, dim="1"), TypeError, ["dim", "int", "'1'"]),
    (lambda f: f(x.to_sparse()), NotImplementedError, ["dense"]),
    (lambda f: torch.vmap(f)(x, dim=2), ValueError, ["dim is 2", "2 dims"]),
]


@functions
@pytest.mark.parametrize(("call", "kind", "patterns"), ERRORS)
def test_errors(name: str, call: Callable[..., Tensor], kind: type[Exception], patterns: list[str]) -> None:
    with pytest.raises(kind) as caught:
        call(FUNCTIONS[name][0])
    for pattern in patterns:
        assert caught.match(pattern)


# ---- modules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Softmax2d"])
def test_modules(name: str) -> None:
    """Drop-ins: isinstance, repr, state_dict, numbers; and a bias as a second argument."""
    for arguments in ((), (1,), (-1,)) if name != "Softmax2d" else ((),):
        mine, theirs = getattr(fusedact.nn, name)(*arguments), getattr(nn, name)(*arguments)
        assert isinstance(mine, type(theirs))
        assert repr(mine) == repr(theirs)
        assert mine.state_dict() == theirs.state_dict() == {}
        given = torch.randn(2, 3, 4, 3, dtype=torch.float64)
        if arguments == () and name != "Softmax2d":
            with pytest.warns(UserWarning, match="Implicit dimension"):
                y = mine(given)
            with pytest.warns(UserWarning, match="Implicit dimension"):
                torch.testing.assert_close(y, theirs(given), **family.EXACT)
            continue
        torch.testing.assert_close(mine(given), theirs(given), **family.EXACT)
        bias = torch.randn(3, dtype=torch.float64)
        dim = 1 if arguments == (1,) or name == "Softmax2d" else -1
        torch.testing.assert_close(mine(given, bias), theirs(given + along(bias, given, dim)), **family.EXACT)
    if name == "Softmax2d":
        with pytest.raises(ValueError, match="3D or 4D"):
            mine(given[0, 0])
