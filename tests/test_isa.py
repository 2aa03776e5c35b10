"""Every instruction set that this processor has, one process each: the contracts hold with it, too.

The whole accuracy test runs on the widest set; the narrower ones repeat its float32 and 16-bit parts. The other
operators' tests run on the widest set, too, and the narrower ones must compute the same as it, but for a last rounding.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fusedact
from fusedact import _C

ISAS = ("default", "avx2", "avx512")
HERE = Path(__file__).parent


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FUSEDACT_CPU_CAPABILITY": isa}
    environment.pop("PYTEST_XDIST_WORKER", None)
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("isa", ISAS)
def test_the_override_is_obeyed(isa: str) -> None:
    if isa == _C.capability():
        pytest.skip("what is in use anyway")
    done = run(isa, sys.executable, "-c", "import fusedact; print(fusedact._C.capability())")
    if ISAS.index(isa) < ISAS.index(_C.capability()):
        assert done.stdout.strip() == isa
    else:
        assert done.returncode != 0, "an instruction set that is not there must raise, not fall back"
        assert isa in done.stderr


def test_a_wrong_override_raises() -> None:
    done = run("sse9", sys.executable, "-c", "import fusedact; fusedact._C.capability()")
    assert done.returncode != 0
    assert "sse9" in done.stderr
    assert "avx2" in done.stderr


CONTRACTS = (
    "(accuracy and defaults and not float64) or nan or infinities or test_slope_at_kinks or every_row or in_place"
    " or (position and (float32 or bfloat16))"
)


@pytest.mark.parametrize("isa", ISAS)
def test_contracts(isa: str) -> None:
    if ISAS.index(isa) > ISAS.index(_C.capability()):
        pytest.skip(f"this processor's widest instruction set is {_C.capability()}, not {isa}")
    if isa == _C.capability():
        pytest.skip("the rest of the tests run with it")
    files = ("test_accuracy.py", "test_kinks.py", "test_determinism.py")
    arguments = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "-k", CONTRACTS)
    done = run(isa, sys.executable, "-m", "pytest", *files, *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


# ---- the operators beside bias_act ----------------------------------------------------------------------------------

Named = Iterator[tuple[str, Tensor]]
KINDS = ("relu", "gelu", "tanh", "mish")  # by its zone, of the input, of the output, wide
# Whole vectors of every width and what is left over; few columns, many, and channels before the last dim.
SHAPES = ((5, 6), (33, 130), (3, 34, 7))


def with_gradients(name: str, f: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> Named:
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = f(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    incoming = [torch.cos(torch.arange(float(y.numel()))).view(y.shape).to(y.dtype) for y in results]
    gradients = torch.autograd.grad(results, leaves, incoming)
    for kind, tensors in (("result", results), ("gradient", gradients)):
        yield from ((f"{name} {kind} {n}", t.detach()) for n, t in enumerate(tensors))


def gated(dtype: torch.dtype, shape: tuple[int, ...]) -> Named:
    x, bias = numbers(shape, dtype), numbers(shape[1:2], dtype)
    for kind in KINDS:
        yield from with_gradients(kind, lambda x, b, k=kind: fusedact.gated_act(x, b, k, dim=1), x, bias)
    options = {"layout": "interleaved", "limit": 1.0, "alpha": 1.7, "offset": 1.0, "dim": 1}
    yield from with_gradients("clamped", lambda x, b: fusedact.gated_act(x, b, "silu", **options), x, bias)


def softmax(dtype: torch.dtype, shape: tuple[int, ...]) -> Named:
    x = numbers(shape, dtype)
    for dim in range(len(shape)):
        bias = numbers((shape[dim],), dtype)
        yield from with_gradients(f"dim {dim}", lambda x, b, d=dim: fusedact.softmax(x, b, d), x, bias)
        yield from with_gradients(f"log, dim {dim}", lambda x, b, d=dim: fusedact.log_softmax(x, b, d), x, bias)


def maxout(dtype: torch.dtype, shape: tuple[int, ...]) -> Named:
    x, bias = numbers(shape, dtype), numbers(shape[1:2], dtype)
    yield from with_gradients("pairs", lambda x, b: fusedact.maxout(x, b, 2, 1), x, bias)


def epilogue(dtype: torch.dtype, shape: tuple[int, ...]) -> Named:
    x, residual = numbers(shape, dtype), numbers(shape, dtype)
    bias, scale = numbers(shape[1:2], dtype), numbers(shape[1:2], dtype)

    def f(x: Tensor, b: Tensor, s: Tensor, r: Tensor, kind: str) -> Tensor:
        dropped = torch.Generator().manual_seed(7)
        return fusedact.bias_act(x, b, kind, dim=1, scale=s, residual=r, dropout_p=0.3, generator=dropped)

    for kind in KINDS:
        yield from with_gradients(kind, lambda *t, k=kind: f(*t, k), x, bias, scale, residual)


def cells(dtype: torch.dtype, shape: tuple[int, ...]) -> Named:
    *rows, hidden = shape
    state, four, three = numbers(shape, dtype), numbers((*rows, 4 * hidden), dtype), numbers((*rows, 3 * hidden), dtype)
    four_bias, three_bias = numbers((4 * hidden,), dtype), numbers((3 * hidden,), dtype)
    yield from with_gradients("lstm", fusedact.lstm_cell_act, four, state, four_bias)
    yield from with_gradients("gru", fusedact.gru_cell_act, three, three.flip(0), state, three_bias, -three_bias)


def linear(dtype: torch.dtype, shape: tuple[int, ...]) -> Named:
    x, weight, bias = numbers(shape, dtype), numbers((19, shape[-1]), dtype) / shape[-1] ** 0.5, numbers((19,), dtype)
    for kind in KINDS:
        yield from with_gradients(kind, lambda x, w, b, k=kind: fusedact.linear_act(x, w, b, k), x, weight, bias)
    wide = numbers((600, shape[-1]), dtype), numbers((2000, shape[-1]), dtype) / shape[-1] ** 0.5  # product in tiles
    yield "tiles", fusedact.linear_act(*wide, None, "gelu")


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape) * 2).to(dtype)


# How far results may be apart, relatively and beside the largest of them: exactly what a kernel without arithmetic that
# rounds differently must give; else float32 where one set fuses a multiplication and an addition and another does not
# (some ulp of 2^-23, and sums of as many terms), or the neighbouring 16-bit number.
EXACT = (maxout,)
APART = {torch.float32: 4e-6, torch.bfloat16: 2.0**-7}


def everything() -> dict[str, Tensor]:
    """What all families compute on the instruction set in use."""
    found = {}
    for family in (gated, softmax, maxout, epilogue, cells, linear):
        for dtype in APART:
            for shape in SHAPES:
                torch.manual_seed(0)
                for name, tensor in family(dtype, shape):
                    found[f"{family.__name__} {dtype} {shape} {name}"] = tensor
    return found


@pytest.mark.parametrize("isa", ISAS)
def test_the_other_operators_compute_the_same(isa: str, tmp_path: Path) -> None:
    if ISAS.index(isa) > ISAS.index(_C.capability()):
        pytest.skip(f"this processor's widest instruction set is {_C.capability()}, not {isa}")
    if isa == _C.capability():
        pytest.skip("what the others are compared with")
    path = tmp_path / "results.pt"
    done = run(isa, sys.executable, "-c", f"import torch, test_isa; torch.save(test_isa.everything(), {str(path)!r})")
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = torch.load(path), everything()
    assert theirs.keys() == ours.keys()
    exact = tuple(family.__name__ for family in EXACT)
    different = 0
    for name, tensor in ours.items():
        assert tensor.isfinite().all(), name
        if name.startswith(exact):
            assert torch.equal(theirs[name], tensor), name
            continue
        limit = APART[torch.bfloat16 if "bfloat16" in name else torch.float32]
        different += not torch.equal(theirs[name], tensor)
        torch.testing.assert_close(
            theirs[name],
            tensor,
            rtol=limit,
            atol=limit * float(tensor.abs().max()),
            msg=lambda m, n=name: f"{n}: {m}",
        )
    assert different, "not one bit differs: was it another instruction set at all?"
