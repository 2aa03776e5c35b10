"""The operators that count while they compute: the counts are those of the tensors, and the results are not touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import DTYPES, ROWS, row_id
from torch import Tensor

from fusedact import registry
from fusedact.health.statistics import BINS, COUNTED, HIGH, LOW, empty_sums
from fusedact.registry import Activation

OPS = torch.ops.fusedact
ZONES = (-math.inf, -1.0, 0.25, 0.5)
# Around a strip of 256 columns, a block of 16 rows, a chunk of 64, a vector's lanes; few channels, many, one; channels
# that run along a row, stand still on it, and repeat in it.
SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((1, 1), 1), ((7,), 0), ((5, 3), 1), ((130, 5), 1), ((17, 255), 1), ((65, 257), 1), ((1000, 64), 1), ((3, 600), 1),
    ((3, 4, 5), 1), ((2, 3, 255), 1), ((2, 3, 257), 1), ((2, 2, 20_000), 1), ((2, 70, 7, 9), 1), ((4, 6, 8), 0),
    ((2200, 40), 1),
]  # fmt: skip


def scalars(row: Activation) -> tuple[float, ...]:
    return row.resolve(None)[1]


def settings(row: Activation, dim: int, save: str = "auto") -> tuple[Any, ...]:
    return (row.name, scalars(row), dim, 1.0, None, None, save)


def counted(channels: int) -> tuple[Tensor, Tensor]:
    return empty_sums(channels), torch.zeros(BINS, dtype=torch.float64)


def expected(v: Tensor | None, y: Tensor | None, dim: int) -> tuple[dict[str, Tensor], Tensor]:
    """By torch, in float64."""

    def rows(t: Tensor) -> Tensor:
        return t.detach().double().movedim(dim, -1).reshape(-1, t.size(dim))

    found: dict[str, Tensor] = {}
    histogram = torch.zeros(BINS, dtype=torch.float64)
    if v is not None:
        w = rows(v)
        inside = torch.zeros_like(w, dtype=torch.bool)
        for low, high in zip(ZONES[::2], ZONES[1::2], strict=True):
            inside |= (w >= low) & (w <= high)
        found["saturated"] = inside.sum(0).double()
        number = w[~w.isnan()].clamp(LOW, HIGH)
        histogram = torch.bincount(((number - LOW) * 4).long().clamp(0, BINS - 1), minlength=BINS).double()
    if y is not None:
        w = rows(y)
        nan = w.isnan()
        found |= {
            "count": torch.full((w.size(1),), float(w.size(0)), dtype=torch.float64),
            "zeros": (w == 0).sum(0).double(),
            "nan": nan.sum(0).double(),
            "inf": w.isinf().sum(0).double(),
            "sum": w.sum(0),
            "squares": w.square().sum(0),
            "min": w.masked_fill(nan, math.inf).amin(0),
            "max": w.masked_fill(nan, -math.inf).amax(0),
        }
    return found, histogram


def agree(sums: Tensor, histogram: Tensor | None, v: Tensor | None, y: Tensor | None, dim: int) -> None:
    wanted, bins = expected(v, y, dim)
    for name, want in wanted.items():
        # sums of float64 in another order; everything else is exact
        limit = {"rtol": 1e-12, "atol": 1e-9} if name in ("sum", "squares") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(
            sums[COUNTED.index(name)], want, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}", **limit
        )
    if histogram is not None and v is not None:
        assert torch.equal(histogram, bins)


def numbers(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Multiples of 1/64: sums with a bias of such are exact, and nothing lies beside the edge of a bin or zone."""
    return (torch.randn(shape) * 200).round().div(64).to(dtype)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- one pass over what is there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_statistics_are_those_of_the_tensors(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    x, y = numbers(shape, dtype), numbers(shape, dtype).relu()
    bias = numbers((shape[dim],), dtype)
    v = x.double() + bias.double().view([-1 if d == dim else 1 for d in range(len(shape))])
    sums, histogram = counted(shape[dim])
    OPS.statistics_(sums, histogram, x, bias, y, dim, ZONES)
    agree(sums, histogram, v, y, dim)
    OPS.statistics_(sums, histogram, x, bias, y, dim, ZONES)  # adds
    assert sums[0, 0] == 2 * y.numel() // shape[dim]
    assert histogram.sum() == 2 * y.numel()
    for given in ((x, None), (None, y)):
        sums, histogram = counted(shape[dim])
        OPS.statistics_(sums, histogram, given[0], None, given[1], dim, ZONES)
        agree(sums, histogram, *given, dim)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinities_are_counted_apart(dtype: torch.dtype) -> None:
    y = numbers((70, 37), dtype)
    for place, value in (((3, 0), math.nan), ((69, 0), math.inf), ((20, 9), -math.inf), ((5, 36), math.nan)):
        y[place] = value
    y[:, 20] = math.nan
    sums, histogram = counted(37)
    OPS.statistics_(sums, histogram, y, None, y, 1, ZONES)
    agree(sums, histogram, y, y, 1)
    assert sums[COUNTED.index("nan")].tolist()[20] == 70
    assert histogram.sum() == y.numel() - 72, "NaN is in no bin"


def test_large_numbers_do_not_overflow_their_squares() -> None:
    y = torch.full((100, 8), 3e38)
    sums, _ = counted(8)
    OPS.statistics_(sums, None, None, None, y, 1, ())
    agree(sums, None, None, y, 1)
    assert sums.isfinite().all()


@pytest.mark.parametrize("make", ["channels_last", "transposed", "sliced", "expanded", "permuted output"])
def test_every_layout(make: str) -> None:
    x = numbers((4, 10, 6, 12))
    if make == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif make == "transposed":
        x = x.transpose(1, 3)
    elif make == "sliced":
        x = x[:, 1::2, 2:, ::3]
    elif make == "expanded":
        x = x[:1].expand(4, -1, -1, -1)
    y = x.relu()
    if make == "permuted output":
        y = y.contiguous(memory_format=torch.channels_last)
    sums, histogram = counted(x.size(1))
    OPS.statistics_(sums, histogram, x, None, y, -3, ZONES)
    agree(sums, histogram, x, y, 1)


@pytest.mark.parametrize(("shape", "dim"), [((3000, 300), 1), ((4, 5, 40_000), 1), ((70_000, 3), 1)], ids=str)
def test_the_same_bits_for_any_number_of_threads(
    shape: tuple[int, ...], dim: int, threads: Callable[[int], None]
) -> None:
    x = torch.randn(shape)
    found = []
    for count in (1, 2, 3, 7):
        threads(count)
        sums, histogram = counted(shape[dim])
        OPS.statistics_(sums, histogram, x, None, x.relu(), dim, ZONES)
        y_sums, y_histogram, gradient = *counted(shape[dim]), empty_sums(shape[dim])
        z = x.clone().requires_grad_()
        row = registry.get("gelu")
        y = OPS.bias_act_statistics(z, None, None, *settings(row, dim), ZONES, y_sums, y_histogram, gradient)
        y.backward(x)
        found.append((sums, histogram, y_sums, y_histogram, gradient))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


# ---- within bias_act ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=row_id)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_within_bias_act(row: Activation, dtype: torch.dtype) -> None:
    """Results and gradients to the bit, and the counts of both."""
    for shape, dim in (((33, 300), 1), ((3, 5, 700), 1), ((6, 9, 4), 1), ((40, 3), 1)):
        bias = numbers((shape[dim],), dtype).requires_grad_()
        x = numbers(shape, dtype).abs_().requires_grad_() if row.name == "square_root" else numbers(shape, dtype)
        x = x.detach().requires_grad_()
        for save in ("auto", *(kind for kind in row.saves if kind != "mask")):
            call = settings(row, dim, save)
            grad = torch.randn(shape, dtype=dtype)
            plain = OPS.bias_act(x, bias, None, *call)
            wanted = torch.autograd.grad(plain, (x, bias), grad)
            sums, histogram, back = *counted(shape[dim]), empty_sums(shape[dim])
            y = OPS.bias_act_statistics(x, bias, None, *call, ZONES, sums, histogram, back)
            found = torch.autograd.grad(y, (x, bias), grad)
            torch.testing.assert_close((y, *found), (plain, *wanted), rtol=0, atol=0, equal_nan=True)
            v = x.double() + bias.double().view([-1 if d == dim else 1 for d in range(len(shape))])
            agree(sums, histogram, v, y, dim)
            want, _ = expected(None, found[0], dim)
            for name in ("count", "zeros"):
                assert torch.equal(back[COUNTED.index(name)], want[name])
            torch.testing.assert_close(
                back[COUNTED.index("squares")], want["squares"], rtol=1e-12, atol=1e-300, equal_nan=True
            )


@pytest.mark.parametrize("elements", [1, 6])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("row", [row for row in ROWS if row.tensor_parameter], ids=row_id)
def test_within_a_learned_activation(row: Activation, elements: int, biased: bool) -> None:
    x, weight = torch.randn(50, 6, 3, requires_grad=True), torch.rand(elements, requires_grad=True)
    bias = torch.randn(6, requires_grad=True) if biased else None
    inputs = [t for t in (x, bias, weight) if t is not None]
    kernel, values, _ = row.resolve(None, **{row.tensor_parameter.name: weight})  # type: ignore[union-attr]
    call = (kernel, values, 1, 1.5, -2.0, None, "auto")
    plain = OPS.bias_act(x, bias, weight, *call)
    wanted = torch.autograd.grad(plain.sum(), inputs)
    sums, histogram, back = *counted(6), empty_sums(6)
    y = OPS.bias_act_statistics(x, bias, weight, *call, ZONES, sums, histogram, back)
    found = torch.autograd.grad(y.sum(), inputs)
    torch.testing.assert_close((y, *found), (plain, *wanted), rtol=0, atol=0)
    agree(sums, None, None, y, 1)
    torch.testing.assert_close(back[6], expected(None, found[0], 1)[0]["squares"], rtol=1e-12, atol=0)


def test_second_derivatives_are_bias_acts() -> None:
    x, bias = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)
    sums, histogram, back = *counted(4), empty_sums(4)

    def f(x: Tensor) -> Tensor:
        row = registry.get("tanh")
        result: Tensor = OPS.bias_act_statistics(x, bias, None, *settings(row, 1), ZONES, sums, histogram, back)
        return result

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)
    assert back[0, 0] > 0


def test_within_autocast_the_bias_follows() -> None:
    x, bias = torch.randn(8, 4).bfloat16(), torch.randn(4, dtype=torch.float64)
    call = settings(registry.get("silu"), 1)
    with torch.autocast("cpu", torch.bfloat16):
        plain = OPS.bias_act(x, bias, None, *call)
        y = OPS.bias_act_statistics(x, bias, None, *call, ZONES, *counted(4), None)
    assert torch.equal(y, plain)


# ---- within linear_act ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("shape", [(3, 5, 7), (70, 33, 300), (530, 8, 520)], ids=str)
def test_within_linear_act(
    shape: tuple[int, int, int], name: str, dtype: torch.dtype, count: int, threads: Callable[[int], None]
) -> None:
    """The product in tiles, at once, and torch's own (fewer than 8 rows): bits, counts and gradient."""
    threads(count)
    rows, features, columns = shape
    x = (torch.randn(rows, features) / 4).to(dtype).requires_grad_()
    weight, bias = (
        torch.randn(columns, features).to(dtype).requires_grad_(),
        numbers((columns,), dtype).requires_grad_(),
    )
    row, grad = registry.get(name), torch.randn(rows, columns).to(dtype)
    for save in ("auto", *row.saves):
        call = (name, scalars(row), 1.0, None, None, save)
        plain = OPS.linear_act(x, weight, bias, None, *call)
        wanted = torch.autograd.grad(plain, (x, weight, bias), grad)
        sums, histogram, back = *counted(columns), empty_sums(columns)
        y, saved = OPS.linear_act_statistics(
            x, weight, bias, None, *call, False, ZONES, sums, histogram, back
        )  # fmt: skip
        found = torch.autograd.grad(y, (x, weight, bias), grad)
        torch.testing.assert_close((y, *found), (plain, *wanted), rtol=0, atol=0)
        agree(sums, None, None, y, 1)
        assert histogram.sum() == y.numel()
        if save == "input" and dtype in (torch.float32, torch.float64):  # the product, as it was counted
            bins = expected(saved.detach() + bias.detach(), None, 1)[1]
            assert (histogram - bins).abs().sum() <= 1e-3 * y.numel(), "a value on an edge may fall either way"
            v = (saved.detach() + bias.detach()).requires_grad_()
            (gradient,) = torch.autograd.grad(OPS.bias_act(v, None, None, *settings(row, 1, "input")), v, grad)
            squares = expected(None, gradient, 1)[0]["squares"]
            torch.testing.assert_close(back[6], squares, rtol=1e-5, atol=1e-12)
        assert back[0].eq(rows).all()
        with torch.no_grad():
            plain = OPS.linear_act(x, weight, bias, None, *call)  # its product may lie, and be rounded, elsewhere
            sums, histogram = counted(columns)
            y, _ = OPS.linear_act_statistics(x, weight, bias, None, *call, False, ZONES, sums, histogram, None)
            assert torch.equal(y, plain)
            agree(sums, None, None, y, 1)


def test_the_counts_of_linear_act_do_not_depend_on_the_threads(threads: Callable[[int], None]) -> None:
    x, weight = torch.randn(1100, 16), torch.randn(1003, 16)  # beyond 4 MiB: in tiles, not torch's own product
    found = []
    for count in (1, 2, 5):
        threads(count)
        sums, histogram = counted(1003)
        call = ("relu", (), 1.0, None, None, "auto")
        y, _ = OPS.linear_act_statistics(x, weight, None, None, *call, False, ZONES, sums, histogram, None)
        found.append((y, sums, histogram))
    for y, sums, histogram in found[1:]:
        assert torch.equal(y, found[0][0]), "else the counts may differ, too"
        assert torch.equal(sums, found[0][1])
        assert torch.equal(histogram, found[0][2])


def test_second_derivatives_are_those_of_linear_act() -> None:
    x, weight = torch.randn(9, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)
    weight.requires_grad_()
    sums, histogram, back = *counted(4), empty_sums(4)

    def f(x: Tensor, weight: Tensor) -> Tensor:
        call = ("gelu", scalars(registry.get("gelu")), 1.0, None, None, "auto")
        y: Tensor = OPS.linear_act_statistics(
            x, weight, None, None, *call, False, ZONES, sums, histogram, back
        )[0]  # fmt: skip
        return y

    assert torch.autograd.gradcheck(f, (x, weight))
    assert torch.autograd.gradgradcheck(f, (x, weight))
    assert back[0, 0] > 0


# ---- the operators as the dispatcher sees them, and bad input -------------------------------------------------------

CHEAP = ("test_schema", "test_autograd_registration", "test_faketensor")


def test_opcheck() -> None:
    check = torch.library.opcheck
    x, bias = torch.randn(6, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    weight, call = torch.randn(4, 4, requires_grad=True), settings(registry.get("relu"), 1)
    check(OPS.statistics_.default, (*counted(4), x.detach(), bias.detach(), x.detach(), 1, ZONES), test_utils=CHEAP)
    arguments = (x, bias, None, *call, ZONES, *counted(4), empty_sums(4))
    check(OPS.bias_act_statistics.default, arguments, test_utils=CHEAP[::2])
    grad = torch.randn(6, 4)
    check(
        OPS.bias_act_backward_statistics.default,
        (grad, x.detach(), bias.detach(), None, *call[:-1], "input", True, False, empty_sums(4)),
        test_utils=CHEAP,
    )
    linear = ("relu", (), 1.0, None, None, "auto")
    arguments = (x, weight, bias, None, *linear, False, ZONES, *counted(4), empty_sums(4))
    check(OPS.linear_act_statistics.default, arguments, test_utils=CHEAP[::2])
    check(
        OPS.linear_act_backward_statistics.default,
        (grad, x.detach(), x.detach(), weight.detach(), bias.detach(), None, *linear[:-1], "input", True, True, True,
         False, empty_sums(4)),
        test_utils=CHEAP,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sums": empty_sums(3)}, ValueError, r"sums is float64 of shape \[9, 3\], but it must be .* \[9, 4\]"),
        ({"sums": empty_sums(4).float()}, ValueError, "sums is float32 of shape"),
        ({"histogram": torch.zeros(7)}, ValueError, r"histogram is float32 of shape \[7\], but .* \[66\]"),
        ({"zones": (1.0,)}, ValueError, "zones has 1 numbers, but they must be pairs"),
        ({"input": None}, ValueError, "a bias, but no input"),
        ({"input": None, "bias": None, "output": None}, ValueError, "there is nothing to count"),
        ({"output": torch.zeros(2, 4)}, ValueError, r"output has shape \[2, 4\], but input has \[3, 4\]"),
        ({"output": torch.zeros(3, 4).double()}, TypeError, "output is float64, but input is float32"),
        ({"output": torch.zeros(3, 4).int()}, TypeError, "output is int32, but it must be"),
        ({"bias": torch.zeros(5)}, ValueError, "bias has 5 elements, but x has 4 channels in dim 1"),
        ({"dim": 2}, ValueError, "dim is 2, but x has 2 dims"),
    ],
)  # fmt: skip
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    sums, histogram = counted(4)
    given = {"sums": sums, "histogram": histogram, "input": torch.zeros(3, 4), "bias": torch.zeros(4),
             "output": torch.zeros(3, 4), "dim": 1, "zones": ZONES, **change}  # fmt: skip
    with pytest.raises(error, match=message):
        OPS.statistics_(*given.values())


def test_what_is_not_counted_says_so() -> None:
    row, x = registry.get("relu"), torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"save is 'mask', .* use bias_act, and statistics_ after it"):
        OPS.bias_act_statistics(x, None, None, *settings(row, 1, "mask"), ZONES, *counted(4), None)
    with pytest.raises(ValueError, match=r"sums is float64 of shape \[9, 3\]"):
        OPS.bias_act_statistics(x, None, None, *settings(row, 1), ZONES, *counted(3), None)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="no forward-mode AD; use bias_act"):
            OPS.bias_act_statistics(dual, None, None, *settings(row, 1), ZONES, *counted(4), None)
        call = ("relu", (), 1.0, None, None, "auto", False, ZONES)
        with pytest.raises(NotImplementedError, match="no forward-mode AD; use linear_act"):
            OPS.linear_act_statistics(dual, torch.randn(4, 4), None, None, *call, *counted(4), None)
