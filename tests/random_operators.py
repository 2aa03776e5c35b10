"""Random calls of every operator, judged by float64: layouts, dtypes, sizes around packs and blocks, shared memory.

    python tests/random_operators.py [--count N] [--seed S] [--only OPERATOR]

Each case follows from its seed, which is printed where one is wrong. Results and gradients are held to the defining
formulas, in torch's operators and float64, on the same rounded inputs. tests/native draws the passes of a plain
bias_act instead, between guard pages and without torch.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from cases import ROWS, kinks, reference
from torch import Tensor

import fusedact
from fusedact.registry import Activation

OPS = torch.ops.fusedact
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Of a result: half a step of its own dtype and what the computation in float32, or float64, leaves beside it.
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2.0**-8 * 1.02, torch.float16: 2.0**-11 * 1.02}
COMPUTED = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2e-6, torch.float16: 2e-6}
SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 257, 513)
MOST = 3000  # elements of one tensor
PLAIN = [row for row in ROWS if row.tensor_parameter is None and row.noise is None]
SMOOTH = [row for row in PLAIN if not kinks(row) and row.name not in ("signed_sqrt", "square")]

Function = Callable[..., Any]
Case = tuple[str, Function, Function, list[Tensor], float]


class UndecidedError(Exception):
    """The case lies so near a bend, or a bound, that a rounding decides on which side."""


class Draw:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.of(DTYPES)

    def of(self, choices: Any) -> Any:
        return self.random.choice(choices)

    def flag(self) -> bool:
        return self.random.random() < 0.5

    def shape(self, least: int = 1, multiple: int = 1, last: bool = False) -> tuple[list[int], int]:
        """A shape, and the dim that an operator works along: a multiple of `multiple`."""
        dims = self.random.randint(least, 4)
        dim = dims - 1 if last else self.random.randrange(dims)
        shape, total = [1] * dims, 1
        for k in self.random.sample(range(dims), dims):
            step = multiple if k == dim else 1
            size = step * (self.of(SIZES) if self.flag() else self.random.randint(1, 5))
            shape[k] = size if total * size <= MOST else step
            total *= shape[k]
        return shape, dim - dims if self.flag() else dim

    def tensor(self, shape: list[int], scale: float = 2.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers in some layout: gapped, permuted, off an aligned address, expanded."""
        dtype = dtype or self.dtype
        x = (torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale).to(dtype)
        kind = self.random.randrange(6)
        if kind == 0:
            return x.new_zeros([*shape, 2])[..., 1].copy_(x) if shape else x
        if kind == 1 and len(shape) > 1:
            order = self.random.sample(range(len(shape)), len(shape))
            return x.permute(order).contiguous().permute([order.index(k) for k in range(len(shape))])
        if kind == 2:
            offset = self.random.randint(1, 9)
            return x.new_zeros(x.numel() + offset)[offset:].view(shape).copy_(x)
        if kind == 3 and shape:
            return x.narrow(0, 0, 1).expand(shape)
        return x

    def bias(self, size: int, scale: float = 1.0) -> Tensor:
        """Of the input's dtype, or float32 beside 16 bits."""
        wide = self.dtype.itemsize == 2 and self.flag()
        return self.tensor([size], scale, torch.float32 if wide else self.dtype)


# ---- the formulas ----------------------------------------------------------------------------------------------------


def rounded(exact: Tensor, computed: Tensor) -> Tensor:
    """The value of `computed`, as the kernels have it, with the gradient of `exact`."""
    return exact + (computed.double() - exact).detach()


class Formula:
    """float64, but for sums that the kernels round to float32 before a function that may bend there."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32

    def plus(self, x: Tensor, bias: Tensor | None, dim: int) -> Tensor:
        if bias is None:
            return x
        shape = [1] * x.dim()
        shape[dim] = -1
        b = bias.view(shape)
        return rounded(x + b, x.to(self.wide) + b.to(self.wide))


def away(v: Tensor, edges: Any) -> None:
    for edge in edges:
        if math.isfinite(edge) and bool(((v - edge).abs() < 1e-5 * max(1.0, abs(edge))).any()):
            raise UndecidedError


def act(row: Activation, v: Tensor, alpha: float = 1.0, **params: Any) -> Tensor:
    away(alpha * v, kinks(row, **params))
    return reference(row, alpha * v, **params) / alpha


# ---- the operators ---------------------------------------------------------------------------------------------------


def parameters(draw: Draw, row: Activation) -> dict[str, Any]:
    found = {p.name: draw.of(p.samples) for p in row.parameters if p.samples and draw.flag()}
    try:
        row.resolve(None, **found)
    except (TypeError, ValueError, ZeroDivisionError):
        return {}
    return found


def gated(draw: Draw) -> Case:
    row = draw.of(PLAIN)
    two = draw.random.random() < 0.3
    shape, dim = draw.shape(multiple=1 if two else 2)
    size = shape[dim]
    options: dict[str, Any] = {"dim": dim, "gate": draw.of(["first", "second"])}
    options["layout"] = "concat" if two else draw.of(["concat", "interleaved"])
    options["limit"] = draw.of([None, None, 7.0, 0.7])
    options["offset"] = draw.of([0.0, 0.0, 1.0])
    if "alpha" not in row.defaults():
        options["alpha"] = draw.of([1.0, 1.0, 1.702])
    biased = draw.flag()
    tensors = [draw.tensor(shape) for _ in range(2 if two else 1)]
    if biased:
        tensors += [draw.bias(size)] if not two else [draw.bias(size), draw.bias(size).to(tensors[0].dtype)]
        if two:
            tensors[2] = tensors[2].to(tensors[0].dtype)
    formula = Formula(draw.dtype)

    def fused(*given: Tensor) -> Tensor:
        if two:
            return fusedact.gated_act(given[:2], given[2:] if biased else None, row.name, **options)
        return fusedact.gated_act(given[0], given[1] if biased else None, row.name, **options)

    def plain(*given: Tensor) -> Tensor:
        if two:
            first, second = (formula.plus(x, given[k + 2] if biased else None, dim) for k, x in enumerate(given[:2]))
        else:
            v = formula.plus(given[0], given[1] if biased else None, dim).movedim(dim, -1)
            pair = (v[..., 0::2], v[..., 1::2]) if options["layout"] == "interleaved" else v.chunk(2, -1)
            first, second = (t.movedim(-1, dim) for t in pair)
        g, value = (first, second) if options["gate"] == "first" else (second, first)
        if (limit := options["limit"]) is not None:
            away(g, [limit])
            away(value, [-limit, limit])
            g, value = g.clamp(max=limit), value.clamp(-limit, limit)
        return act(row, g, options.get("alpha", 1.0)) * (value + options["offset"])

    return f"gated_act {row.name} {options}, two tensors: {two}", fused, plain, tensors, 40.0


def softmax(draw: Draw) -> Case:
    shape, dim = draw.shape()
    log, biased = draw.flag(), draw.flag()
    tensors = [draw.tensor(shape, draw.of([1.0, 4.0, 30.0])), *([draw.bias(shape[dim])] if biased else [])]
    formula, name = Formula(draw.dtype), "log_softmax" if log else "softmax"

    def fused(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return getattr(fusedact, name)(x, bias, dim)

    def plain(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return getattr(torch, name)(formula.plus(x, bias, dim), dim)

    # The gradient is made of the result, which 16 bits have rounded, as torch's is.
    loose = {torch.bfloat16: 8192.0, torch.float16: 1024.0}.get(draw.dtype, 40.0)
    return f"{name} dim {dim}", fused, plain, tensors, loose


def maxout(draw: Draw) -> Case:
    pieces = draw.of([1, 2, 2, 3, 4, 5, 8])
    shape, dim = draw.shape(multiple=pieces)
    biased = draw.flag()
    tensors = [draw.tensor(shape), *([draw.bias(shape[dim])] if biased else [])]
    formula = Formula(draw.dtype)

    def plain(x: Tensor, bias: Tensor | None = None) -> Tensor:
        v = formula.plus(x, bias, dim).movedim(dim, -1).unflatten(-1, (-1, pieces))
        return v.gather(-1, v.argmax(-1, keepdim=True)).squeeze(-1).movedim(-1, dim)  # the first of equals

    def fused(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return fusedact.maxout(x, bias, pieces, dim)

    return f"maxout of {pieces}, dim {dim}", fused, plain, tensors, 4.0


def epilogue(draw: Draw) -> Case:
    row = draw.of(PLAIN)
    shape, dim = draw.shape()
    parts = [part for part in ("bias", "scale", "residual") if draw.flag()]
    p = draw.of([0.0, 0.1, 0.5, 0.9])
    gain, clamp = draw.of([1.0, 1.0, 2.0, -0.5]), draw.of([None, None, (-0.5, 1.0)])
    x = draw.tensor(shape)
    make: dict[str, Function] = {
        "bias": lambda: draw.bias(shape[dim]),
        "scale": lambda: draw.bias(shape[dim]),
        "residual": lambda: draw.tensor(shape),
    }
    tensors = [x, *(make[part]() for part in parts)]
    seed = torch.tensor(draw.random.randrange(2**40)) if p else None
    if not p and not parts:
        parts, tensors = ["residual"], [x, draw.tensor(shape)]
    kernel, scalars, _ = row.resolve()
    low, high = (None, None) if clamp is None else clamp
    formula = Formula(draw.dtype)

    def fused(x: Tensor, *given: Tensor) -> Tensor:
        of = dict(zip(parts, given, strict=True))
        return OPS.bias_act_epilogue(
            x, of.get("bias"), None, of.get("scale"), of.get("residual"), seed, kernel, scalars, dim, gain, low, high, p
        )  # fmt: skip

    def plain(x: Tensor, *given: Tensor) -> Tensor:
        of = dict(zip(parts, given, strict=True))
        v = x
        if "scale" in of:
            along = [1] * x.dim()
            along[dim] = -1
            v = v * of["scale"].view(along)
        y = act(row, formula.plus(v, of.get("bias"), dim)) * gain
        if clamp is not None:
            away(y, clamp)
            y = y.clamp(*clamp)
        if seed is not None:
            y = y * OPS.dropout_mask(seed, shape, p, formula.wide).double()
        return y + of["residual"] if "residual" in of else y

    return f"epilogue {row.name} {parts} p {p} gain {gain} clamp {clamp} dim {dim}", fused, plain, tensors, 100.0


def linear(draw: Draw) -> Case:
    """Smooth activations: what the order of a sum leaves decides on no side of a bend."""
    row = draw.of(SMOOTH)
    *rows, inner = [draw.of(SIZES[:18]) for _ in range(draw.random.randint(1, 3))]
    if math.prod(rows) * inner > MOST:
        rows = [3]
    outer, biased = draw.of(SIZES[:18]), draw.flag()
    size = 1 / math.sqrt(inner)
    tensors = [draw.tensor([*rows, inner], 1.0), draw.tensor([outer, inner], size)]
    tensors += [draw.bias(outer)] if biased else []

    def fused(*given: Tensor) -> Tensor:
        return fusedact.linear_act(*given, activation=row.name)

    def plain(*given: Tensor) -> Tensor:
        v = given[0] @ given[1].t()
        return act(row, v + given[2] if biased else v)

    # Torch's own 16-bit product is rounded, which the activation and two sums over products then spread.
    loose = {torch.bfloat16: 32768.0, torch.float16: 4096.0}.get(draw.dtype, 16.0)
    return f"linear_act {row.name} {rows} x {inner} -> {outer}", fused, plain, tensors, loose


def cells(draw: Draw) -> Case:
    *rows, hidden = draw.shape(last=True)[0]
    name, biased = draw.of(["lstm", "gru"]), draw.flag()
    formula = Formula(draw.dtype)
    if name == "lstm":
        tensors = [draw.tensor([*rows, 4 * hidden]), draw.tensor([*rows, hidden])]
        tensors += [draw.bias(4 * hidden)] if biased else []
    else:
        tensors = [draw.tensor([*rows, 3 * hidden]) for _ in range(2)] + [draw.tensor([*rows, hidden])]
        tensors += [draw.bias(3 * hidden).to(draw.dtype) for _ in range(2)] if biased else []

    def lstm(gates: Tensor, c: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        i, f, g, o = formula.plus(gates, bias, -1).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def gru(x: Tensor, y: Tensor, h: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        r, z, n = formula.plus(x, b, -1).chunk(3, -1)
        hr, hz, hn = formula.plus(y, c, -1).chunk(3, -1)
        r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
        return (1 - z) * (n + r * hn).tanh() + z * h

    return f"{name} cell", getattr(fusedact, f"{name}_cell_act"), locals()[name], tensors, 16.0


OPERATORS: dict[str, Callable[[Draw], Case]] = {
    "gated": gated,
    "softmax": softmax,
    "maxout": maxout,
    "epilogue": epilogue,
    "linear": linear,
    "cells": cells,
}


# ---- judgement -------------------------------------------------------------------------------------------------------


def complaint(what: str, got: Tensor, want: Tensor, terms: int, loose: float) -> str | None:
    """Empty where each element is within its rounding, and `loose` times the computation's of the largest around."""
    if got.shape != want.shape:
        return f"{what} has shape {list(got.shape)}, expected {list(want.shape)}"
    if got.numel() == 0:
        return None
    dtype, step = got.dtype, 1e-7 if got.dtype == torch.float16 else 0.0
    around = max(1.0, want.abs().max().item())
    allowed = want.abs() * ROUNDING[dtype] + step + COMPUTED[dtype] * loose * around * terms
    error = (got.double() - want).abs()
    wrong = ~(error <= allowed)
    if not wrong.any():
        return None
    k = int(torch.where(wrong, error.nan_to_num(math.inf), -1.0).argmax())
    return f"{what} {k} is {got.flatten()[k].item()!r}, expected {want.flatten()[k].item()!r}"


def compared(case: Case, draw: Draw) -> str | None:
    words, fused, plain, tensors, loose = case
    which = [draw.random.random() < 0.8 for _ in tensors]
    mine = [t.detach().requires_grad_(w) for t, w in zip(tensors, which, strict=True)]
    theirs = [t.detach().double().requires_grad_(w) for t, w in zip(tensors, which, strict=True)]
    want = plain(*theirs)
    got = fused(*mine)
    got, want = ((y,) if isinstance(y, Tensor) else tuple(y) for y in (got, want))
    about = f"{words}; {', '.join(f'{list(t.shape)} {t.stride()} {t.dtype}' for t in tensors)}: "
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        if wrong := complaint(f"result {k}", a.detach(), b.detach(), 1, loose):
            return about + wrong
    if not any(which):
        return None
    grads = [draw.tensor(list(y.shape), 1.0, y.dtype) for y in got]
    mine_, theirs_ = ([t for t in ts if t.requires_grad] for ts in (mine, theirs))
    a_grads = torch.autograd.grad(got, mine_, grads)
    b_grads = torch.autograd.grad(want, theirs_, [g.double() for g in grads])
    for k, (a, b) in enumerate(zip(a_grads, b_grads, strict=True)):
        terms = max(1, max(y.numel() for y in got) // max(1, b.numel()))
        if wrong := complaint(f"gradient {k}", a, b, terms, loose):
            return about + wrong
    return None


def aliased(draw: Draw) -> str | None:
    """out= and in place on memory that is shared: right, or refused with a message and nothing written."""
    row, (shape, dim) = draw.of(PLAIN), draw.shape()
    numel, kind = math.prod(shape), draw.of(["same", "beside", "overlapping", "expanded", "bias", "in place", "twice"])
    memory = draw.tensor([2 * numel + 8]).contiguous().clone()
    shift = draw.random.randint(1, max(1, min(numel - 1, 7)))
    x, bias = memory[:numel].view(shape), draw.bias(shape[dim]).to(draw.dtype) if draw.flag() else None
    target = x
    if kind == "beside":
        target = memory[numel : 2 * numel].view(shape)
    elif kind == "overlapping":
        target = memory[shift : shift + numel].view(shape)
    elif kind == "expanded":
        target = memory[-1:].expand(shape)
    elif kind == "bias":
        start = draw.random.randrange(max(1, numel - shape[dim] + 1))
        bias = memory[start : start + shape[dim]]
    elif kind == "twice":
        x = target = memory[-1:].expand(shape)
    elif kind == "in place":
        target = x
    copy = memory.clone()
    want = fusedact.bias_act(x.clone(), None if bias is None else bias.clone(), row.name, dim=dim)
    # One element twice, or shared in part: an element that is written is read again as an input.
    shared = (kind in ("expanded", "twice") and numel > 1) or (kind == "overlapping" and shift < numel)
    shared |= kind == "bias"  # an operator may take it where it is the whole of x
    about = f"bias_act {row.name} {shape} {draw.dtype}, {kind}: "
    try:
        if kind in ("in place", "twice"):
            got = fusedact.bias_act(x, bias, row.name, dim=dim, inplace=True)
        else:
            got = fusedact.bias_act(x, bias, row.name, dim=dim, out=target)
    except RuntimeError as error:
        if not shared:
            return about + f"refused: {error}"
        same = torch.equal(memory.nan_to_num(), copy.nan_to_num())
        return None if same else about + "wrote before it refused"
    if shared and kind != "bias":
        return about + "accepted"
    return None if torch.equal(got.nan_to_num(123), want.nan_to_num(123)) else about + "another result"


def attempt(seed: int, only: str | None = None) -> str | None:
    """What was wrong with a case; raises UndecidedError where it says nothing."""
    draw = Draw(seed)
    name = only or draw.of([*OPERATORS, "aliased"])
    return aliased(draw) if name == "aliased" else compared(OPERATORS[name](draw), draw)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[*OPERATORS, "aliased"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    judged = wrong = 0
    begin = time.monotonic()
    for seed in range(asked.seed, asked.seed + asked.count):
        try:
            found = attempt(seed, asked.only)
        except UndecidedError:
            continue
        except KeyboardInterrupt:
            break
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        judged += 1
        if found:
            wrong += 1
            print(f"seed {seed}: {found}", flush=True)
            if wrong == 20:
                break
    print(f"{judged} cases judged from seed {asked.seed}, {wrong} wrong, {time.monotonic() - begin:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
