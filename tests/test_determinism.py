"""Same inputs, same bits: whatever the number of threads and the split; and what a bias gradient's sum may be off."""

from __future__ import annotations

import math

import pytest
import torch
from cases import ROWS, WEIGHTED, call, row_id
from torch import Tensor
from truth import triple

from fusedact.registry import Activation

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)

# Past the grain, so that threads share the work; inner 1, inner > 1, few channels, one channel, many channels.
SHAPES = [
    ((1031, 517), 1),
    ((7, 24, 5003), 1),
    ((600_011, 3), 1),
    ((3, 300_007), 0),
    ((500_009,), 0),
    ((5, 100_003), 1),
]


def run(row: Activation, x: Tensor, bias: Tensor, dim: int, threads: int, **options) -> list[Tensor]:
    torch.set_num_threads(threads)
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    y = call(row, x, bias, dim=dim, **options)
    grad = torch.linspace(-1, 1, x.numel()).view(x.shape).to(x.dtype)
    first = torch.autograd.grad(y, [x, bias], grad)
    return [y.detach(), *first]


def double(row: Activation, x: Tensor, bias: Tensor, dim: int, threads: int) -> list[Tensor]:
    torch.set_num_threads(threads)
    x, bias = x.detach().requires_grad_(), bias.detach().requires_grad_()
    grads = torch.autograd.grad(call(row, x, bias, dim=dim).sum(), [x, bias], create_graph=True)
    if not grads[0].requires_grad:
        return []
    u = torch.linspace(-1, 1, x.numel()).view(x.shape)
    return list(torch.autograd.grad(grads[0], [x, bias], u, allow_unused=True, materialize_grads=True))


def same(a: list[Tensor], b: list[Tensor]) -> None:
    for s, t in zip(a, b, strict=True):
        assert torch.equal(s, t), f"{int((s != t).sum())} of {s.numel()} elements differ"


@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_change_a_bit(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    x, bias = torch.randn(shape).to(dtype), torch.randn(shape[dim]).to(dtype)
    for name in ("gelu", "relu", "sigmoid"):
        row = next(r for r in ROWS if r.name == name)
        one = run(row, x, bias, dim, 1)
        for threads in (2, 3, 2):
            same(one, run(row, x, bias, dim, threads))
    same(double(row, x.float(), bias.float(), dim, 1), double(row, x.float(), bias.float(), dim, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_batches_in_any_split_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    """A sample's values do not know which batch it came in, nor the bias gradient how many threads there are."""
    x, bias = torch.randn(1200, 130).to(dtype), torch.randn(130).to(dtype)
    for name in ("gelu", "elu"):
        row = next(r for r in ROWS if r.name == name)
        whole = run(row, x, bias, 1, 1)
        for threads in (1, 2, 5, 1):
            same(whole, run(row, x, bias, 1, threads))
            for sizes in ([1199, 1], [7] * 171 + [3], [512, 512, 176]):
                torch.set_num_threads(threads)
                parts = [call(row, part, bias) for part in x.split(sizes)]
                same(whole[:1], [torch.cat(parts)])


@rows
def test_every_row_with_two_threads(row: Activation) -> None:
    x, bias = torch.randn(301, 1003), torch.randn(1003)
    for save in row.saves:
        same(run(row, x, bias, 1, 1, save=save), run(row, x, bias, 1, 2, save=save))
    same(double(row, x, bias, 1, 1), double(row, x, bias, 1, 2))


@pytest.mark.parametrize("row", WEIGHTED, ids=row_id)
@pytest.mark.parametrize("count", [1, 24])
def test_the_gradient_of_a_tensor_parameter(row: Activation, count: int) -> None:
    x, weight = torch.randn(7, 24, 5003), torch.rand(count)

    def grad(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        leaf = weight.clone().requires_grad_()
        y = call(row, x, dim=1, **{row.tensor_parameter.name: leaf})
        return torch.autograd.grad(y, leaf, torch.ones_like(y))[0]

    same([grad(1)], [grad(2)])


@rows
def test_in_place_and_out_give_the_same_bits(row: Activation) -> None:
    for shape in ((5,), (33, 65), (300, 1001)):
        x, bias = torch.randn(shape), torch.randn(shape[-1])
        wanted = call(row, x, bias)
        out = torch.empty_like(x)
        call(row, x, bias, out=out)
        held = x.clone()
        call(row, held, bias, inplace=True)
        same([wanted, wanted], [out, held])


def test_a_part_of_a_tensor_gives_the_bits_of_the_whole() -> None:
    """Whatever the split: rows computed alone equal rows computed together."""
    x, bias = torch.randn(1000, 333), torch.randn(333)
    for row in ROWS:
        whole = call(row, x, bias)
        same([whole[417:419], whole[7:8]], [call(row, x[417:419], bias), call(row, x[7:8], bias)])


@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_sum_of_a_bias_gradient(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    """Against math.fsum: pairwise or compensated sums are off by a few ulp of the sum of |terms|,
    plain ones by sqrt(n) ulp and more; 16-bit slopes are summed before they are rounded."""
    row = next(r for r in ROWS if r.name == "identity")
    x, bias = torch.zeros(shape, dtype=dtype), torch.zeros(shape[dim], dtype=dtype)
    grad = ((1.0 + torch.rand(shape)) / 64).to(dtype)  # one sign: the sum is as large as it gets, float16 holds it
    leaf = bias.requires_grad_()
    (got,) = torch.autograd.grad(call(row, x, leaf, dim=dim), leaf, grad)
    columns = grad.double().movedim(dim, 0).reshape(shape[dim], -1)
    wanted = columns[:, 0]
    if columns.shape[1] > 1:
        wanted = torch.tensor([math.fsum(column.tolist()) for column in columns], dtype=torch.float64)
    compute_eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    final = torch.finfo(dtype).eps / 2 * 1.01
    terms = max(2, columns.shape[1])
    # Pairwise: half an ulp per level, of which there are log2(n); plain float32 over 600,000 terms exceeds it 100-fold.
    allowed = (final + compute_eps * (math.log2(terms) / 2 + 8)) * wanted.abs()
    error = (got.double() - wanted).abs()
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} times the bound"


def test_a_bias_gradient_sums_what_backward_computes() -> None:
    """grad_bias against the float64 sum of the true slopes, for a transcendental row with output saved and without."""
    x, bias = torch.randn(4096, 40), torch.randn(40)
    for name in ("gelu", "silu", "sigmoid"):
        row = next(r for r in ROWS if r.name == name)
        leaf = bias.clone().requires_grad_()
        (got,) = torch.autograd.grad(call(row, x, leaf).sum(), leaf)
        slopes = triple(row, x + bias)[1]
        allowed = 2.0**-22 * slopes.abs().sum(0)
        assert ((got.double() - slopes.sum(0)).abs() <= allowed).all()
