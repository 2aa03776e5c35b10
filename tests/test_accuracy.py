"""The accuracy contract of design.md, against float64 and mpmath truth (truth.py, exact.py), never against float32.

float32: 300,000 points per function, over every exponent and dense where functions bend, root and saturate.
bfloat16 and float16: all 65,536 inputs. float64: mpmath, over every second exponent.
`fusedact check` sweeps all 2^32; this file is the part that fits into a test run.
"""

from __future__ import annotations

import functools
import math
import random

import pytest
import torch
from cases import ROWS, WITH_SETTINGS, bound, call, kinks, row_id
from exact import FORMULAS, exact
from torch import Tensor
from truth import PERIODIC, Triple, near_roots, triple, ulp, ulp_error

from fusedact.registry import Activation, Bound

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
settings = pytest.mark.parametrize(("row", "params"), WITH_SETTINGS, ids=row_id)
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@functools.cache
def points() -> Tensor:
    """float32 inputs: 128 mantissas in each binade of either sign, subnormals too; then dense from -120 to 120."""
    draw = torch.Generator().manual_seed(1)
    exponents = torch.arange(-149, 128, dtype=torch.float64).repeat_interleave(128)
    mantissas = 1 + torch.rand(len(exponents), generator=draw, dtype=torch.float64)
    everywhere = (mantissas * torch.exp2(exponents)).clamp(max=torch.finfo(torch.float32).max)
    dense = torch.cat([torch.rand(30_000, generator=draw, dtype=torch.float64) * r for r in (1.0, 8.0, 30.0, 120.0)])
    x = torch.cat([everywhere, dense])
    return torch.cat([x, -x]).to(torch.float32)


def beside(places: list[float], dtype: torch.dtype) -> Tensor:
    """The 64 neighbours of each place on either side, the place itself left out (test_kinks.py has those)."""
    steps = torch.cat([torch.arange(-64, 0), torch.arange(1, 65)]).double()
    return torch.cat([p + steps * ulp(torch.tensor(p).double(), dtype) for p in places]).to(dtype)


def inputs(row: Activation, params: dict) -> Tensor:
    edges = list(kinks(row, **params))
    x = torch.cat(
        [points(), beside([*edges, 0.0, 1.0, -1.0, 16.6355, -16.6355, 88.72, -88.72, -103.97], torch.float32)]
    )
    for edge in edges:  # a kink has a convention, not a limit
        x = x[x != edge]
    return x


def judge(name: str, x: Tensor, got: Tensor, true: Tensor, excess: Tensor) -> None:
    """Fail, with the worst point, if an error is above the bound; `excess` is the error over the bound."""
    worst = excess.argmax()
    if not excess[worst] <= 1:
        pytest.fail(
            f"{name}({x[worst].item()!r}) = {got[worst].item()!r}, true {true[worst].item()!r}: "
            f"{excess[worst].item():.3g} times the bound; {int((~(excess <= 1)).sum())} of {len(x)} are beyond it",
            pytrace=False,
        )


def truths(row: Activation, x: Tensor, params: dict) -> list[Triple]:
    """The truth with the parameters as given, and rounded to float32 as torch rounds them: a kernel may do either."""
    rounded = {k: float(torch.tensor(v)) if isinstance(v, float) else v for k, v in params.items()}
    narrow = x.dtype != torch.float64 and rounded != params
    return [triple(row, x, **p) for p in ([params, rounded] if narrow else [params])]


def excess(got: Tensor, true: Tensor, ulps: float, roots: Tensor | None, floor: float) -> Tensor:
    """|got - true| over what is allowed: `ulps`; 1.5 subnormal steps where it is subnormal; `floor` near a root."""
    dtype = got.dtype
    allowed = torch.full_like(true, ulps)
    if dtype in (torch.float32, torch.float64):  # off by one subnormal step, beside the rounding
        allowed[true.abs() < torch.finfo(dtype).tiny] = 1.5
    if roots is not None:
        allowed = torch.where(roots, torch.maximum(allowed, floor / ulp(true, dtype)), allowed)
    return ulp_error(got, true, dtype) / allowed


def hold(row: Activation, x: Tensor, got: dict[int, Tensor], truths: list[Triple], limit: Bound, **params) -> None:
    """Assert that each result, by order of derivative, is within the bound of one of the truths."""
    ulps = (limit.forward, limit.derivative, limit.second)
    near = [roots(row, x, true, **params) if any(got) else None for true in truths]
    for order, value in got.items():
        errors = [
            excess(value, true[order], ulps[order], n[order] if order else None, limit.near_root)
            for true, n in zip(truths, near, strict=True)
        ]
        judge(row.name + "'" * order, x, value, truths[0][order], functools.reduce(torch.minimum, errors))


def derivatives(row: Activation, x: Tensor, **options) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    first = torch.autograd.grad(call(row, x, **options).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.zeros_like(x)
    return first.detach(), second


def roots(row: Activation, x: Tensor, true: Triple, **params) -> list[Tensor]:
    """Where f, f' and f'' are near a root."""
    near = near_roots(lambda v: triple(row, v, **params), x.double(), true)
    if row.name in PERIODIC:
        near = [n | (t.abs() < math.sin(0.1)) for n, t in zip(near, true, strict=True)]
    return near


@settings
def test_float32_forward(row: Activation, params: dict) -> None:
    x = inputs(row, params)
    hold(row, x, {0: call(row, x, **params)}, truths(row, x, params), bound(row, x.dtype), **params)


@settings
def test_float32_derivatives_from_the_input(row: Activation, params: dict) -> None:
    x = inputs(row, params)
    first, second = derivatives(row, x, save="input", **params)
    hold(row, x, {1: first, 2: second}, truths(row, x, params), bound(row, x.dtype), **params)


@settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_derivative_from_the_output(row: Activation, params: dict, dtype: torch.dtype) -> None:
    """Relative digits are lost there; the bound is absolute: eps of the largest |f'|, or what the row states."""
    if "output" not in row.saves:
        pytest.skip("its derivative does not follow from its output")
    try:
        call(row, torch.zeros(1), save="output", **params)
    except ValueError:
        pytest.skip("not with these parameters")
    x = inputs(row, params) if dtype == torch.float32 else all_halves(dtype)
    eps = torch.finfo(dtype).eps
    for kink in kinks(row, **params):  # the kink, and what cannot be told from it by the output
        x = x[(x.double() - kink).abs() > eps * max(1.0, abs(kink))]
    x = x[x.abs() < 1e30]
    true = truths(row, x, params)[-1]
    got = derivatives(row, x, save="output", **params)
    largest = true[1].abs().max()
    if largest > 1e3:  # an unbounded slope keeps its relative digits
        limit = 4.0 if dtype == torch.float32 else 1.01
        judge(f"{row.name}' from y", x, got[0], true[1], ulp_error(got[0], true[1], dtype) / limit)
        return
    error = (got[0].double() - true[1]).abs() / (eps * largest * bound(row, dtype).from_output)
    judge(f"{row.name}' from y", x, got[0], true[1], error)
    if dtype == torch.float32:
        error = (got[1].double() - true[2]).abs() / (4 * eps * max(true[2].abs().max(), largest))
        judge(f"{row.name}'' from y", x, got[1], true[2], error)


@rows
def test_mask_gives_the_gradient_of_the_input(row: Activation) -> None:
    """Bit for bit: the mask of a piecewise-linear function is exact."""
    if "mask" not in row.saves:
        pytest.skip("not piecewise linear")
    x = points()
    by_mask, by_input = (derivatives(row, x, save=save)[0] for save in ("mask", "input"))
    assert torch.equal(by_mask, by_input)


@functools.cache
def all_halves(dtype: torch.dtype) -> Tensor:
    x = torch.arange(65536).to(torch.uint16).view(dtype)
    return x[x.isfinite()]


@settings
@halves
def test_every_16_bit_input(row: Activation, params: dict, dtype: torch.dtype) -> None:
    x = all_halves(dtype)
    for edge in kinks(row, **params):
        x = x[x != edge]
    leaf = x.clone().requires_grad_()
    slope = torch.autograd.grad(call(row, leaf, save="input", **params).sum(), leaf)[0]
    hold(row, x, {0: call(row, x, **params), 1: slope}, truths(row, x, params), bound(row, dtype), **params)


@rows
@halves
def test_16_bit_specials_propagate(row: Activation, dtype: torch.dtype) -> None:
    """Every NaN pattern gives a NaN."""
    x = torch.arange(65536).to(torch.uint16).view(dtype)
    assert call(row, x)[x.isnan()].isnan().all()


@functools.cache
def points64() -> list[float]:
    draw = random.Random(3)
    everywhere = [draw.choice((-1, 1)) * draw.uniform(1, 2) * 2.0**e for e in range(-1074, 1023, 9)]
    return everywhere + [draw.uniform(-8, 8) for _ in range(150)] + [draw.uniform(-745, 710) for _ in range(50)]


@rows
def test_float64(row: Activation) -> None:
    if row.name not in FORMULAS:
        pytest.skip("no mpmath formula for it; float32 is held to its own reference")
    at = points64()
    true = tuple(torch.tensor([[float(v) for v in jet] for jet in exact(row.name, at)], dtype=torch.float64).T)
    x = torch.tensor(at, dtype=torch.float64)
    first, second = derivatives(row, x, save="input")
    hold(row, x, {0: call(row, x), 1: first, 2: second}, [true], bound(row, x.dtype))


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("sigmoid", [-1.0, 0.0, 1.0], [0.26894143, 0.5, 0.7310586]),
        ("tanh", [-1.0, 0.0, 1.0], [-0.7615942, 0.0, 0.7615942]),
        ("relu", [-1.0, 0.0, 1.0], [0.0, 0.0, 1.0]),
        ("sigmoid", [3.0], [0.95257413]),
        ("gelu", [-6.0], [-5.9195257e-9]),
        ("square", [-2.0, 2.0], [4.0, 4.0]),
        ("signed_sqrt", [-9.0, 0.0, 9.0], [-3.0, 0.0, 3.0]),
    ],
)
def test_known_values(name: str, x: list[float], y: list[float]) -> None:
    torch.testing.assert_close(call(name, torch.tensor(x)), torch.tensor(y), rtol=1.2e-7, atol=0)


def test_slopes_that_pytorch_rounds_to_zero_are_kept() -> None:
    """save="input" keeps the relative bound: PyTorch's sigmoid' is exactly 0 beyond 17, the true one is not."""
    x = torch.tensor([20.0, 50.0], requires_grad=True)
    (got,) = torch.autograd.grad(call("sigmoid", x, save="input").sum(), x)
    torch.testing.assert_close(got, torch.exp(-x.detach()), rtol=1e-6, atol=0)
