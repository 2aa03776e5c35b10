"""The gate arithmetic of LSTM and GRU cells: numbers, derivatives, transforms, errors, and the drop-in cells."""

from __future__ import annotations

from collections.abc import Callable

import family
import pytest
import torch
from cases import DTYPES
from torch import Tensor, nn

import fusedact

pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")


def lstm(gates: Tensor, c: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The formulas of torch.nn.LSTMCell."""
    i, f, g, o = (gates if bias is None else gates + bias).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(x: Tensor, h_gates: Tensor, h: Tensor, x_bias: Tensor | None = None, h_bias: Tensor | None = None) -> Tensor:
    """The formulas of torch.nn.GRUCell."""
    r, z, n = (x if x_bias is None else x + x_bias).chunk(3, -1)
    hr, hz, hn = (h_gates if h_bias is None else h_gates + h_bias).chunk(3, -1)
    r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
    n = (n + r * hn).tanh()
    return (1 - z) * n + z * h


FUNCTIONS = {"lstm": (fusedact.lstm_cell_act, lstm), "gru": (fusedact.gru_cell_act, gru)}
functions = pytest.mark.parametrize("name", FUNCTIONS)
# A vector ± 1; unbatched; more leading dims; past one block of rows.
SHAPES = [(3, 5), (2, 31), (2, 32), (2, 33), (5, 65), (7,), (2, 3, 4), (40, 9), (1, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def problem(
    name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, scale: float = 1.0, biases: bool = True
) -> list[Tensor]:
    *rows, hidden = shape

    def normal(*size: int) -> Tensor:
        return (torch.randn(*size, dtype=torch.float64) * scale).to(dtype)

    if name == "lstm":
        return [normal(*rows, 4 * hidden), normal(*shape), *([normal(4 * hidden)] if biases else [])]
    gates = [normal(*rows, 3 * hidden), normal(*rows, 3 * hidden), normal(*shape)]
    return gates + ([normal(3 * hidden), normal(3 * hidden)] if biases else [])


# ---- numbers --------------------------------------------------------------------------------------------------------


@functions
@shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Within a few units of the largest term: sums of terms of either sign keep no relative bound."""
    mine, theirs = FUNCTIONS[name]
    for biases in (True, False):
        for scale in (0.1, 1.0, 10.0):
            given = problem(name, shape, dtype, scale, biases)
            results = family.tuple_of(mine(*given))
            for result, truth in zip(results, family.tuple_of(theirs(*(t.double() for t in given))), strict=True):
                assert result.dtype == dtype
                assert result.is_contiguous()
                # gates and a state of up to 4 scale, each rounded a few times in the compute type; then once in storage
                compute = torch.finfo(torch.float32 if dtype.itemsize == 2 else dtype).eps
                storage = torch.finfo(dtype).eps * 0.51 if dtype.itemsize == 2 else 0.0
                limit = 4 * compute * (1 + 4 * scale) + storage * truth.abs() + (2e-8 if dtype == torch.float16 else 0)
                assert bool(((result.double() - truth).abs() <= limit).all())


@functions
@shapes
def test_gradients(name: str, shape: tuple[int, ...]) -> None:
    mine, theirs = FUNCTIONS[name]
    family.check_gradients(mine, theirs, *problem(name, shape))
    family.check_gradients(mine, theirs, *problem(name, shape, biases=False))


@functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_short_types(name: str, dtype: torch.dtype) -> None:
    """Computed in float32 and rounded once, unlike the same in 16-bit steps; biases may be float32."""
    mine, theirs = FUNCTIONS[name]
    given = problem(name, (40, 37), dtype)
    if dtype.itemsize == 2:
        count = 1 if name == "lstm" else 2
        given[-count:] = [b.float() for b in given[-count:]]
    eps = torch.finfo(dtype).eps
    a, b = family.leaves(given), family.leaves([t.double() for t in given])
    mine_out, theirs_out = family.tuple_of(mine(*a)), family.tuple_of(theirs(*b))
    grads = [torch.randn(y.shape).to(dtype) for y in mine_out]
    got = torch.autograd.grad(mine_out, a, grads)
    for result, truth, leaf in zip(
        got, torch.autograd.grad(theirs_out, b, [g.double() for g in grads]), a, strict=True
    ):
        assert result.dtype == leaf.dtype
        terms = 40 if leaf.dim() == 1 else 1
        limit = 8 * torch.finfo(torch.float32).eps * terms + 0.51 * (eps if result.dtype == dtype else 0) * truth.abs()
        assert bool(((result.double() - truth).abs() <= limit + (3e-8 if dtype == torch.float16 else 0)).all())


@functions
def test_saturated_gates(name: str) -> None:
    """Infinite gates are open or shut, with no gradient; NaN stays where it is."""
    inf, nan = float("inf"), float("nan")
    mine, theirs = FUNCTIONS[name]
    for width in (1, 40):
        given = problem(name, (2, width), torch.float32, biases=False)
        for i, v in enumerate((inf, -inf, 200.0, -200.0)):
            given[0][0, i % given[0].shape[1] :: 7] = v
        a, b = family.leaves(given), family.leaves([t.double() for t in given])
        mine_out, theirs_out = family.tuple_of(mine(*a)), family.tuple_of(theirs(*b))
        grads = [torch.ones_like(y) for y in mine_out]
        got = [*mine_out, *torch.autograd.grad(mine_out, a, grads)]
        wanted = [*theirs_out, *torch.autograd.grad(theirs_out, b, [g.double() for g in grads])]
        for x, y in zip(got, wanted, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-6)
        given[0][1, 0] = nan
        first = family.tuple_of(mine(*given))[0]
        assert bool(first[1, 0].isnan())
        assert int(first.isnan().sum()) == 1


def test_one_gradient_of_two() -> None:
    """h alone, c alone, or both may have come from a loss."""
    given = problem("lstm", (3, 5))
    for of_h, of_c in ((1, 0), (0, 1), (1, 2)):

        def loss(function: Callable[..., tuple[Tensor, Tensor]], of_h: int = of_h, of_c: int = of_c) -> family.Function:
            def weighted(*tensors: Tensor) -> Tensor:
                h, c = function(*tensors)
                return of_h * h if of_c == 0 else of_c * c if of_h == 0 else of_h * h + of_c * c

            return weighted

        family.check_gradients(loss(fusedact.lstm_cell_act), loss(lstm), *given)


@functions
def test_layouts(name: str) -> None:
    """Gates that are transposed, gapped or expanded."""
    mine, theirs = FUNCTIONS[name]
    given = problem(name, (4, 6))
    for i, tensor in enumerate(given):
        if tensor.dim() != 2:
            continue
        for _, other in family.variants(tensor):
            mixed = [*given[:i], other, *given[i + 1 :]]
            torch.testing.assert_close(mine(*mixed), theirs(*given), **family.EXACT)
        same_rows = [t[:1].expand_as(t) if t.dim() == 2 else t for t in given]
        torch.testing.assert_close(mine(*same_rows), theirs(*same_rows), **family.EXACT)


@functions
def test_empty(name: str) -> None:
    for shape in ((0, 3), (3, 0)):
        given = [t.requires_grad_() for t in problem(name, shape)]
        results = family.tuple_of(FUNCTIONS[name][0](*given))
        assert results[0].shape == shape
        for grad in torch.autograd.grad(results[0].sum(), given):
            assert bool((grad == 0).all())


# ---- derivatives ----------------------------------------------------------------------------------------------------


@functions
@pytest.mark.parametrize("biases", [True, False])
def test_derivatives(name: str, biases: bool) -> None:
    family.check_derivatives(FUNCTIONS[name][0], *problem(name, (2, 3), biases=biases))


@functions
def test_transforms(name: str) -> None:
    mine, theirs = FUNCTIONS[name]
    family.check_transforms(mine, theirs, *problem(name, (2, 3)))
    family.check_transforms(mine, theirs, *problem(name, (3,), biases=False))


@functions
def test_a_change_of_the_gates_is_noticed(name: str) -> None:
    given = family.leaves(problem(name, (2, 3)))
    gates = given[0] * 1
    y = family.tuple_of(FUNCTIONS[name][0](gates, *given[1:]))[0]
    gates.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_nodes_have_names() -> None:
    h, _ = fusedact.lstm_cell_act(*family.leaves(problem("lstm", (2, 3))))
    assert type(h.grad_fn).__name__ == "LstmCellActBackward0"
    assert type(fusedact.gru_cell_act(*family.leaves(problem("gru", (2, 3)))).grad_fn).__name__ == "GruCellActBackward0"


# ---- the dispatcher -------------------------------------------------------------------------------------------------


def test_opcheck() -> None:
    ops, check = torch.ops.fusedact, torch.library.opcheck
    for dtype in (torch.float32, torch.bfloat16):
        gates, c, bias = family.leaves(problem("lstm", (3, 5), dtype))
        check(ops.lstm_cell_act.default, (gates, c, bias))
        check(ops.lstm_cell_act.default, (gates.detach().t().contiguous().t(), c.detach(), None))
        grad = torch.randn(3, 5).to(dtype).requires_grad_()
        check(ops.lstm_cell_act_backward.default, (grad, None, gates, c, bias, True))
        check(ops.lstm_cell_act_backward.default, (None, grad.detach(), gates.detach(), c.detach(), None, False))
        given = family.leaves(problem("gru", (3, 5), dtype))
        check(ops.gru_cell_act.default, tuple(given))
        check(ops.gru_cell_act_backward.default, (grad, *given, True, True))
        check(
            ops.gru_cell_act_backward.default,
            (grad.detach(), *(t.detach() for t in given[:3]), None, None, False, False),
        )


@functions
def test_compile_and_export(name: str) -> None:
    family.check_compiled(FUNCTIONS[name][0], *problem(name, (6, 37), torch.float32))


@functions
@pytest.mark.parametrize("shape", [(700, 129), (64, 1024)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    family.check_threads(FUNCTIONS[name][0], *problem(name, shape, dtype))


# ---- errors ---------------------------------------------------------------------------------------------------------

gates4, gates3, state = torch.zeros(8, 20), torch.zeros(8, 15), torch.zeros(8, 5)
ERRORS = [
    (lambda: fusedact.lstm_cell_act(gates3, state), ValueError, [r"\[8, 15\]", r"\[8, 5\]", r"4 \* hidden"]),
    (lambda: fusedact.lstm_cell_act(gates4[:4], state), ValueError, [r"\[4, 20\]", r"\[8, 5\]"]),
    (lambda: fusedact.lstm_cell_act(gates4, state.double()), TypeError, ["float32", "float64", "the same"]),
    (lambda: fusedact.lstm_cell_act(gates4.int(), state.int()), TypeError, ["int32", "float32, float64"]),
    (lambda: fusedact.lstm_cell_act(gates4, state, torch.zeros(5)), ValueError, ["bias has 5", "20 channels"]),
    (lambda: fusedact.lstm_cell_act(torch.zeros(()), torch.zeros(())), ValueError, ["hidden"]),
    (lambda: fusedact.lstm_cell_act(gates4, state.to("meta")), ValueError, ["cpu", "meta", r"\.to\("]),
    (lambda: fusedact.lstm_cell_act(gates3, state.double()), TypeError, ["2 problems", "float64", r"4 \* hidden"]),
    (lambda: fusedact.lstm_cell_act(gates4, 1), TypeError, ["c must be Tensor", "1"]),
    (lambda: fusedact.gru_cell_act(gates3, gates4, state), ValueError, ["hidden_gates", r"\[8, 20\]", r"3 \* hidden"]),
    (lambda: fusedact.gru_cell_act(gates4, gates4, state), ValueError, ["problems", "input_gates", "hidden_gates"]),
    (
        lambda: fusedact.gru_cell_act(gates3, gates3, state, None, torch.zeros(5)),
        ValueError,
        ["hidden_bias has 5", "15 channels"],
    ),
    (lambda: fusedact.gru_cell_act(gates3, gates3, state, 2), TypeError, ["input_bias", "Tensor", "2"]),
    (lambda: fusedact.nn.LSTMCell(3, 4)(torch.zeros(2, 3, 3)), ValueError, ["LSTMCell", "3D"]),
    (
        lambda: fusedact.nn.GRUCell(3, 4)(torch.zeros(2, 3), torch.zeros(1, 2, 4)),
        ValueError,
        ["GRUCell", "hidden", "3D"],
    ),
]


@pytest.mark.parametrize(("call", "kind", "patterns"), ERRORS)
def test_errors(call: Callable[[], object], kind: type[Exception], patterns: list[str]) -> None:
    with pytest.raises(kind) as caught:
        call()
    for pattern in patterns:
        assert caught.match(pattern)


# ---- the cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(name: str, bias: bool) -> None:
    """Drop-ins: isinstance, repr, state_dict, numbers and gradients over steps; batched or not, hx or not."""
    mine, theirs = (getattr(m, name)(6, 4, bias=bias, dtype=torch.float64) for m in (fusedact.nn, nn))
    assert isinstance(mine, type(theirs))
    assert repr(mine) == repr(theirs)
    mine.load_state_dict(theirs.state_dict())
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for shape in ((3, 6), (6,)):
        inputs = torch.randn(4, *shape, dtype=torch.float64)
        state = torch.randn(*shape[:-1], 4, dtype=torch.float64)
        for hx in (None, (state, state * 2) if name == "LSTMCell" else state):
            losses = []
            for cell in (mine, theirs):
                cell.zero_grad()
                memory, total = hx, torch.zeros((), dtype=torch.float64)
                for step in inputs:
                    memory = cell(step, memory)
                    first = family.tuple_of(memory)[0]
                    total = total + first.sin().sum()
                total.backward()
                losses.append([total.detach(), *family.tuple_of(memory)] + [p.grad.clone() for p in cell.parameters()])
            torch.testing.assert_close(losses[0], losses[1], **family.EXACT)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_cells_under_autocast(name: str) -> None:
    """The dtypes that torch's cells have under autocast on the CPU, and numbers no farther than its rounding."""
    mine, theirs = (getattr(m, name)(16, 8) for m in (fusedact.nn, nn))
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = family.tuple_of(mine(x)), family.tuple_of(theirs(x))
    for y, wanted in zip(a, b, strict=True):
        assert y.dtype == wanted.dtype
        torch.testing.assert_close(y, wanted, rtol=0.02, atol=0.02)
