"""What nobody would write by hand: hypothesis draws layouts, aliasing, parameters at and past their limits.

A result is right if it has the bits of the same call on contiguous copies. tests/native does the same to the kernels,
without torch, a million times; tests/test_concurrency.py has threads and forks.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import random_operators
import torch
from cases import ROWS, call, reference
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusedact
from fusedact.registry import Activation

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
rows = st.sampled_from(ROWS)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
EDGES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 129]


@st.composite
def tensors(draw: Any, dtype: torch.dtype, most: int = 3000) -> Tensor:
    """Permuted, sliced, expanded, with elements that overlap, at any offset from an aligned address."""
    dims = draw(st.integers(0, 4))
    shape: list[int] = []
    for _ in range(dims):
        size = draw(st.one_of(st.integers(0, 5), st.sampled_from(EDGES)))
        shape.append(size if math.prod(shape) * size <= most else 1)
    kind = draw(st.sampled_from(["contiguous", "permuted", "sliced", "expanded", "overlapping", "channels_last"]))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    offset = draw(st.integers(0, 9))

    def fresh(shape: list[int]) -> Tensor:
        flat = torch.randn(math.prod(shape) + offset, generator=generator, dtype=torch.float64).mul(4).to(dtype)
        return flat[offset:].view(shape)

    if kind == "permuted":
        order = draw(st.permutations(range(dims)))
        back = [order.index(k) for k in range(dims)]
        return fresh([shape[k] for k in order]).permute(back)
    if kind == "sliced":
        step = draw(st.integers(1, 3))
        return fresh([s * step + 1 for s in shape])[tuple(slice(1, 1 + s * step, step) for s in shape)]
    if kind == "expanded" and dims:
        k = draw(st.integers(0, dims - 1))
        return fresh([1 if i == k else s for i, s in enumerate(shape)]).expand(shape)
    if kind == "overlapping" and dims:
        strides = [draw(st.integers(0, 3)) for _ in shape]
        reach = sum(max(s - 1, 0) * t for s, t in zip(shape, strides, strict=True)) + 1
        return fresh([reach]).as_strided(shape, strides, offset)
    x = fresh(shape)
    return x.contiguous(memory_format=torch.channels_last) if kind == "channels_last" and dims == 4 else x


@st.composite
def options(draw: Any, row: Activation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if draw(st.booleans()):
        found["save"] = draw(st.sampled_from(["auto", *row.saves]))
    if found.get("save", "auto") in ("auto", "input") and draw(st.booleans()):
        found["gain"] = draw(st.sampled_from([1.0, 2.0, -0.5]))
        found["clamp"] = draw(st.sampled_from([None, 0.75, (-0.5, 1.0)]))
    return found


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(123.0), b.nan_to_num(123.0))


@st.composite
def calls(draw: Any) -> tuple[Activation, Tensor, Tensor | None, int, dict[str, Any]]:
    row, dtype = draw(rows), draw(dtypes)
    x = draw(tensors(dtype))
    dim = draw(st.integers(-x.dim(), x.dim() - 1)) if x.dim() else -1
    bias = None
    if x.dim() and draw(st.booleans()):
        wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) and draw(st.booleans()) else dtype
        bias = torch.linspace(-2, 2, 2 * x.shape[dim]).to(wide)[:: draw(st.sampled_from([1, 2]))][: x.shape[dim]]
        if draw(st.booleans()) and x.shape[dim]:
            bias = bias[:1].expand(x.shape[dim])
    return row, x, bias, dim, draw(options(row))


@quick
@given(calls(), st.booleans(), st.booleans(), st.booleans())
def test_any_layout_has_the_bits_of_a_contiguous_copy(drawn: Any, to_x: bool, to_bias: bool, spread: bool) -> None:
    row, x, bias, dim, found = drawn

    def run(x: Tensor, bias: Tensor | None) -> list[Tensor]:
        x = x.detach().requires_grad_(to_x)
        bias = None if bias is None else bias.detach().requires_grad_(to_bias)
        y = call(row, x, bias, **({"dim": dim} if x.dim() else {}), **found)
        leaves = [t for t in (x, bias) if t is not None and t.requires_grad]
        if not leaves:
            return [y]
        grad = (
            torch.ones((), dtype=y.dtype).expand_as(y) if spread else torch.arange(y.numel()).view(y.shape).to(y.dtype)
        )
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.remainder(7) - 3 if not spread else grad)]

    plain = run(x.clone(memory_format=torch.contiguous_format), None if bias is None else bias.contiguous())
    first, *others = zip(run(x, bias), plain, strict=True)
    assert same(*first)
    for k, (got, wanted) in enumerate(others):  # a bias gradient is summed in the order of memory
        if to_x and k == 0:
            assert same(got, wanted)
        else:
            torch.testing.assert_close(got, wanted, equal_nan=True)


@quick
@given(calls(), st.sampled_from(["same", "shifted", "overlapping", "expanded"]))
def test_out_is_right_or_refused(drawn: Any, kind: str) -> None:
    """`out` may be the input itself; where they overlap otherwise, or out has an element twice, it raises."""
    row, x, bias, dim, found = drawn
    found.pop("save", None)
    if x.dim():
        found["dim"] = dim
    assume(x.numel() > 1)
    wanted = call(row, x.clone(memory_format=torch.contiguous_format), bias, **found)
    if kind == "same":
        x = x.clone(memory_format=torch.contiguous_format)
        out = x
    elif kind == "overlapping":
        memory = torch.zeros(x.numel() + 1, dtype=x.dtype)
        x = memory[:-1].view(x.shape).copy_(x)
        out = memory[1:].view(x.shape)
    elif kind == "expanded":
        out = torch.zeros(1, dtype=x.dtype).expand(x.shape)
    else:
        out = torch.zeros(x.numel() + 3, dtype=x.dtype)[3:].view(x.shape)
    try:
        call(row, x, bias, out=out, **found)
    except (RuntimeError, ValueError, TypeError):
        assert kind in ("overlapping", "expanded")
        return
    assert kind in ("same", "shifted")
    assert same(out, wanted)


@pytest.mark.parametrize("operator", [*random_operators.OPERATORS, "aliased"])
def test_random_calls_of_an_operator(operator: str) -> None:
    """The first of what `python tests/random_operators.py --count N` draws without end."""
    judged = 0
    for seed in range(1, 51):
        try:
            assert random_operators.attempt(seed, operator) is None, f"--only {operator} --seed {seed} --count 1"
        except random_operators.UndecidedError:
            continue
        judged += 1
    assert judged > 40


LIMITS = [0, -0.0, 1, -1, 1e-320, 1e308, -1e308, math.inf, -math.inf, math.nan, 10**40, "1", None, True, [1.0], 1 + 2j]


@quick
@given(rows, st.data())
def test_parameters_at_and_past_their_limits(row: Activation, data: Any) -> None:
    """A value is refused, with the parameter's name in the message, or the result is the reference's."""
    numbers = [p for p in row.parameters if not isinstance(p.default, str)]
    assume(numbers)
    parameter = data.draw(st.sampled_from(numbers))
    value = data.draw(st.sampled_from(LIMITS))
    x = torch.tensor([-3.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    try:
        y = call(row, x, **{parameter.name: value})
    except (TypeError, ValueError, OverflowError, parameter.error) as error:
        if parameter.name not in str(error) and row.name not in str(error):
            raise
        return
    if isinstance(value, (int, float)) and abs(value) < 1e300 and not 0 < abs(value) < 1e-300:
        torch.testing.assert_close(y, reference(row, x, **{parameter.name: value}), equal_nan=True)


@quick
@given(rows, st.sampled_from(["input", "output", "mask"]))
def test_saved_tensors_may_go_and_come_back(row: Activation, save: str) -> None:
    """Hooks that put every saved tensor elsewhere, as offloading does: nothing is kept that they do not see."""
    assume(save in row.saves)
    x, bias = torch.randn(5, 9, requires_grad=True), torch.randn(9, requires_grad=True)
    wanted = torch.autograd.grad(call(row, x, bias, save=save).sum(), [x, bias])
    kept: list[bytes] = []

    def pack(t: Tensor) -> tuple[int, torch.dtype, torch.Size]:
        kept.append(bytes(t.detach().contiguous().view(torch.uint8).flatten().tolist()))
        return len(kept) - 1, t.dtype, t.shape

    def unpack(where: tuple[int, torch.dtype, torch.Size]) -> Tensor:
        return torch.frombuffer(bytearray(kept[where[0]]), dtype=where[1]).view(where[2])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        moved = x * 1
        y = call(row, moved, bias, save=save)
        moved.detach().fill_(math.nan) if save != "output" else None  # what they packed is a copy
        del moved
    got = torch.autograd.grad(y.sum(), [x, bias])
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


@quick
@given(st.data())
def test_softmax_and_gated_units_in_any_layout(data: Any) -> None:
    x = data.draw(tensors(torch.float32))
    assume(x.dim() > 0 and x.numel() > 0)
    dim = data.draw(st.integers(0, x.dim() - 1))
    plain = x.clone(memory_format=torch.contiguous_format)
    # Sums along a row and down a column have different orders.
    torch.testing.assert_close(fusedact.softmax(x, dim=dim), fusedact.softmax(plain, dim=dim))
    torch.testing.assert_close(fusedact.log_softmax(x, dim=dim), fusedact.log_softmax(plain, dim=dim))
    if x.shape[-1] % 2 == 0:
        assert same(fusedact.gated_act(x, activation="silu"), fusedact.gated_act(plain, activation="silu"))


def test_an_interrupted_call_leaves_nothing_behind() -> None:
    """An exception between forward and backward, and one in a hook: the next call has the same bits."""
    x = torch.randn(64, 64, requires_grad=True)
    wanted = torch.autograd.grad(fusedact.gelu(x).sum(), x)[0]

    def stop(_: Tensor) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        y = fusedact.gelu(x)
        y.register_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            y.sum().backward()
    assert torch.equal(torch.autograd.grad(fusedact.gelu(x).sum(), x)[0], wanted)
