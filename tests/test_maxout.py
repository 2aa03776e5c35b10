"""maxout with a bias: numbers, ties and NaN, derivatives, transforms, layouts, errors, and the layer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import family
import pytest
import torch
from cases import DTYPES
from torch import Tensor

import fusedact

pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

# (shape, dim, pieces): one unit, a vector ± 1, rows and planes, every number of pieces that has an edge
CASES = [
    ((3, 4), -1, 2),
    ((3, 6), 1, 3),
    ((5, 62), 1, 2),
    ((5, 64), 1, 2),
    ((5, 66), 1, 2),
    ((4, 165), 1, 5),
    ((4, 7), 1, 7),
    ((4, 5), 1, 1),
    ((3, 512), 1, 256),
    ((12,), 0, 4),
    ((8, 5), 0, 2),
    ((2, 6, 7, 9), 1, 3),
    ((3, 4, 33), 1, 2),
    ((2, 4, 1), 1, 4),
    ((2, 1, 4, 3), 2, 2),
]
cases = pytest.mark.parametrize(("shape", "dim", "pieces"), CASES, ids=str)


def along(bias: Tensor, x: Tensor, dim: int) -> Tensor:
    return bias.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])


def plain(pieces: int, dim: int) -> Callable[..., Tensor]:
    """By torch.max, whose gradient goes to one winner, too."""

    def function(x: Tensor, bias: Tensor | None = None) -> Tensor:
        v = x if bias is None else x + along(bias, x, dim)
        return v.unflatten(dim, (-1, pieces)).max((dim % x.dim()) + 1)[0]

    return function


def fused(pieces: int, dim: int) -> Callable[..., Tensor]:
    return functools.partial(fusedact.maxout, pieces=pieces, dim=dim)


def problem(shape: tuple[int, ...], dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Values that are 0.1 apart at least, so that finite differences are fair."""
    n = torch.Size(shape).numel()
    x = (torch.randperm(n).double() * 0.1 - n * 0.05).view(shape)
    return [x.to(dtype), (torch.randint(-2, 3, (shape[dim],)) * 0.1).to(dtype) + 0.03]


@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(shape: tuple[int, ...], dim: int, pieces: int, dtype: torch.dtype) -> None:
    """Exactly the largest of x + bias, rounded once."""
    x, bias = torch.randn(shape).to(dtype), torch.randn(shape[dim]).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for b in (None, bias):
        expected = plain(pieces, dim)(x.to(wide), None if b is None else b.to(wide)).to(dtype)
        assert torch.equal(fused(pieces, dim)(x, b), expected)


def test_the_layout_is_goodfellows() -> None:
    """h_i = max_j x @ W[:, i, j] + b[i, j], with W [d, m, k] and b [m, k] flattened to a Linear layer's."""
    x, weight, bias = torch.randn(5, 3), torch.randn(3, 4, 2), torch.randn(4, 2)
    expected = (torch.einsum("nd,dmk->nmk", x, weight) + bias).amax(2)
    product = torch.nn.functional.linear(x, weight.flatten(1).t())
    torch.testing.assert_close(fusedact.maxout(product, bias.flatten(), pieces=2), expected)


@pytest.mark.parametrize("dim", [0, 1])
def test_ties_and_nan(dim: int) -> None:
    """The gradient of equals goes to the first; NaN wins, the first NaN among several; infinities are numbers."""
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [nan, 5.0, nan], [1.0, nan, nan], [-inf, -inf, -inf],
                         [inf, nan, 1.0], [0.0, -0.0, 0.0], [-inf, inf, inf]])  # fmt: skip
    winners = [0, 1, 0, 1, 0, 1, 0, 1]
    for repeat in (1, 9):  # within one vector, and past it
        values = rows.repeat(repeat, 1).flatten()
        x = (values if dim == 0 else values.view(1, -1, 1).expand(2, -1, 3)).contiguous().requires_grad_()
        y = fusedact.maxout(x, pieces=3, dim=dim)
        torch.testing.assert_close(y, plain(3, dim)(x), equal_nan=True, rtol=0, atol=0)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        expected = torch.nn.functional.one_hot(torch.tensor(winners * repeat), 3).flatten().to(torch.float32)
        assert torch.equal(grad, expected if dim == 0 else expected.view(1, -1, 1).expand(2, -1, 3))


@cases
def test_gradients(shape: tuple[int, ...], dim: int, pieces: int) -> None:
    x, bias = problem(shape, dim)
    family.check_gradients(fused(pieces, dim), plain(pieces, dim), x, bias)
    family.check_gradients(fused(pieces, dim), plain(pieces, dim), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_are_exact(dtype: torch.dtype) -> None:
    """The input's has the gradient's own bits; the bias's is a sum in float64, rounded once."""
    for shape, dim in (((300, 40), 1), ((5, 6, 333), 1)):
        x, bias = torch.randn(shape).to(dtype).requires_grad_(), torch.randn(shape[dim]).to(dtype).requires_grad_()
        y = fusedact.maxout(x, bias, 2, dim)
        grad = torch.randn(y.shape).to(dtype)
        of_x, of_bias = torch.autograd.grad(y, [x, bias], grad)
        assert torch.equal(of_x.unflatten(dim, (-1, 2)).sum(dim + 1), grad)
        others = [d for d in range(x.dim()) if d != dim]
        assert torch.equal(of_bias, of_x.double().sum(others).to(dtype))


@cases
def test_layouts(shape: tuple[int, ...], dim: int, pieces: int) -> None:
    x, bias = problem(shape, dim)
    expected = plain(pieces, dim)(x, bias)
    for layout, given in family.variants(x):
        leaf = given.detach().requires_grad_()
        y = fused(pieces, dim)(leaf, bias)
        assert torch.equal(y, expected), layout
        (grad,) = torch.autograd.grad(y, leaf, torch.sin(expected))
        theirs = x.clone().requires_grad_()
        assert torch.equal(grad, torch.autograd.grad(plain(pieces, dim)(theirs, bias), theirs, torch.sin(expected))[0])
    image = torch.randn(2, 6, 4, 5).contiguous(memory_format=torch.channels_last)
    assert fusedact.maxout(image, pieces=3, dim=1).is_contiguous(memory_format=torch.channels_last)


def test_empty() -> None:
    for shape, dim in (((0, 4), 1), ((4, 0), 1), ((2, 6, 0), 1)):
        x, bias = torch.zeros(shape).requires_grad_(), torch.zeros(shape[dim]).requires_grad_()
        y = fusedact.maxout(x, bias, 2, dim)
        assert y.shape[dim] * 2 == shape[dim]
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == shape
        assert bias.grad is not None
        assert bool((bias.grad == 0).all())


@pytest.mark.parametrize(("shape", "dim"), [((3, 6), 1), ((2, 4, 3), 1)])
def test_derivatives(shape: tuple[int, ...], dim: int) -> None:
    x, bias = problem(shape, dim)
    family.check_derivatives(fused(2, dim), x, bias)
    family.check_derivatives(fused(2, dim), x)


def test_transforms() -> None:
    family.check_transforms(fused(2, 0), plain(2, 0), *problem((4, 3), 0))
    family.check_transforms(fused(2, -1), plain(2, -1), *problem((4,), -1))


def test_opcheck() -> None:
    ops = torch.ops.fusedact
    for dtype in (torch.float32, torch.bfloat16):
        x, bias = torch.randn(3, 4, 5).to(dtype).requires_grad_(), torch.randn(4).requires_grad_()
        for given in (x, x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0), x.detach()[:, :, ::2]):
            torch.library.opcheck(ops.maxout.default, (given, bias if given is x else None, 2, 1))
        _, indices = ops.maxout(x.detach(), None, 2, 1)
        grad = torch.randn(3, 2, 5).to(dtype).requires_grad_()
        torch.library.opcheck(ops.maxout_backward.default, (grad, indices, bias.detach(), 2, 1, True))
        torch.library.opcheck(ops.maxout_backward.default, (grad, indices, None, 2, 1, False))


def test_compile_and_export() -> None:
    family.check_compiled(fused(2, 1), torch.randn(6, 38), torch.randn(38))


def test_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert fusedact.maxout(torch.randn(3, 4).bfloat16(), torch.randn(4)).dtype == torch.bfloat16
        assert fusedact.maxout(torch.randn(3, 4), torch.randn(4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("shape", "dim"), [((1031, 516), 1), ((7, 24, 5003), 1), ((60_011, 4), 1), ((4, 100_003), 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    family.check_threads(fused(2, dim), torch.randn(shape).to(dtype), torch.randn(shape[dim]).to(dtype))


x = torch.zeros(8, 128, 32)
ERRORS = [
    (lambda: fusedact.maxout(x, pieces=5), ValueError, ["32 channels", "multiple", "5"]),
    (lambda: fusedact.maxout(x, pieces=0), ValueError, ["pieces is 0", r"\[1, 256\]"]),
    (lambda: fusedact.maxout(torch.zeros(2, 514), pieces=257), ValueError, ["pieces is 257", r"\[1, 256\]"]),
    (lambda: fusedact.maxout(torch.zeros(())), ValueError, ["scalar"]),
    (lambda: fusedact.maxout(x, torch.zeros(64), 2, 1), ValueError, ["64 elements", "128 channels", "dim 1"]),
    (lambda: fusedact.maxout(x, dim=3), ValueError, ["dim is 3", r"\[-3, 2\]"]),
    (lambda: fusedact.maxout(x.int(), pieces=3), TypeError, ["problems", "int32", "multiple"]),
    (lambda: fusedact.maxout(x, pieces=2.0), TypeError, ["pieces", "int", "2.0"]),
    (lambda: fusedact.maxout(x, 2), TypeError, ["bias", "Tensor", "2"]),
    (lambda: fusedact.nn.Maxout(3, 4, 300), ValueError, ["300", r"\[1, 256\]"]),
    (lambda: torch.vmap(lambda t: fusedact.maxout(t, dim=2))(x), ValueError, ["dim is 2", "2 dims"]),
]


@pytest.mark.parametrize(("call", "kind", "patterns"), ERRORS)
def test_errors(call: Callable[[], Tensor], kind: type[Exception], patterns: list[str]) -> None:
    with pytest.raises(kind) as caught:
        call()
    for pattern in patterns:
        assert caught.match(pattern)


def test_layer() -> None:
    layer = fusedact.nn.Maxout(6, 4, pieces=3, dtype=torch.float64)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias).unflatten(-1, (4, 3)).amax(-1)
    torch.testing.assert_close(layer(x), expected, **family.EXACT)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {"weight": (12, 6), "bias": (12,)}
    assert repr(layer) == "Maxout(in_features=6, out_features=4, pieces=3, bias=True)"
    assert fusedact.nn.Maxout(6, 4, bias=False).bias is None
    bound = 6**-0.5
    assert float(layer.weight.detach().abs().max()) <= bound
    assert float(layer.weight.detach().abs().max()) > 0.8 * bound
