"""What the tests of an operator beside bias_act share: calls, references and tolerances come from the caller.

Each function asserts one promise of an operator: derivatives, transforms, compilation, threads, layouts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

Function = Callable[..., Any]
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # two float64 computations of one formula, in another order


def precise(x: Tensor) -> Any:
    """As an array of NumPy's long double, which has 11 bits more than float64 on x86 and 60 on 64-bit ARM."""
    return x.detach().double().numpy().astype(np.longdouble)


def ulp_error(result: Tensor, truth: Any) -> float:
    """The largest error of `result`, in units in the last place of its dtype at `truth`, an array as of `precise`."""
    info = torch.finfo(result.dtype)
    exponent = np.floor(np.log2(np.maximum(np.abs(truth), np.longdouble(info.smallest_normal))))
    ulp = np.exp2(exponent) * np.longdouble(info.eps)
    return float((np.abs(precise(result) - truth) / ulp).max())


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def tuple_of(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def check_derivatives(function: Function, *tensors: Tensor) -> None:
    """Finite differences in float64: reverse and forward mode, each under vmap too, and the second order."""
    given = leaves(tensors)
    assert gradcheck(function, given, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, given, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


def check_gradients(fused: Function, plain: Function, *tensors: Tensor, **limits: float) -> None:
    """Results and gradients are those of `plain`."""
    mine, theirs = leaves(tensors), leaves(tensors)
    a, b = tuple_of(fused(*mine)), tuple_of(plain(*theirs))
    torch.testing.assert_close(a, b, **(limits or EXACT))
    grads = [torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype) for y in a]
    torch.testing.assert_close(
        torch.autograd.grad(a, mine, grads), torch.autograd.grad(b, theirs, grads), **(limits or EXACT)
    )


def check_transforms(fused: Function, plain: Function, *tensors: Tensor) -> None:
    """vmap over every choice of arguments, jacrev, jacfwd, hessian, and their nesting, as `plain` has them."""
    same = torch.testing.assert_close
    for chosen in range(1, 2 ** len(tensors)):
        dims = tuple(0 if chosen >> i & 1 else None for i in range(len(tensors)))
        batch = [torch.stack([t, t.flip(-1) * 0.5, t + 1]) if d == 0 else t for t, d in zip(tensors, dims, strict=True)]
        same(torch.vmap(fused, dims)(*batch), torch.vmap(plain, dims)(*batch), **EXACT)
        # gradients of each sample, the unbatched arguments among them
        every = tuple(range(len(tensors)))

        def total(function: Function) -> Function:
            return lambda *given: sum(y.sin().sum() for y in tuple_of(function(*given)))

        same(
            torch.vmap(torch.func.grad(total(fused), every), dims)(*batch),
            torch.vmap(torch.func.grad(total(plain), every), dims)(*batch),
            **EXACT,
        )
    every = tuple(range(len(tensors)))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        same(transform(fused, every)(*tensors), transform(plain, every)(*tensors), **EXACT)
    same(torch.func.hessian(total(fused), every)(*tensors), torch.func.hessian(total(plain), every)(*tensors), **EXACT)
    # the last dim of the outputs, not the first
    out = torch.vmap(fused, tuple(-1 for _ in tensors), out_dims=-1)(*(torch.stack([t, t * 2], -1) for t in tensors))
    same(
        out, torch.vmap(plain, tuple(-1 for _ in tensors), out_dims=-1)(*(torch.stack([t, t * 2], -1) for t in tensors))
    )


def check_compiled(fused: Function, *tensors: Tensor) -> None:
    """torch.compile in one graph, forward and backward, static and dynamic; and torch.export, saved and loaded."""
    for dynamic in (False, True):
        compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        check_gradients(compiled, fused, *tensors, rtol=0.0, atol=0.0)

    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Any:
            return fused(*given)

    program = torch.export.export(Module(), tuple(tensors))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()(*tensors)
    torch.testing.assert_close(tuple_of(again), tuple_of(fused(*tensors)), rtol=0, atol=0)


def check_threads(fused: Function, *tensors: Tensor) -> None:
    """The same bits whatever the number of threads: results and gradients."""

    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        given = leaves(tensors)
        outputs = tuple_of(fused(*given))
        grads = [torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype) for y in outputs]
        return [*outputs, *torch.autograd.grad(outputs, given, grads)]

    one = run(1)
    for threads in (2, 3):
        for a, b in zip(one, run(threads), strict=True):
            assert torch.equal(a, b)


def variants(x: Tensor) -> list[tuple[str, Tensor]]:
    """`x` with the same values in layouts that a caller may bring, whatever its rank."""
    gapped = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2].copy_(x)
    shifted = torch.cat([x.new_zeros(3), x.flatten()])[3:].view_as(x)
    order = list(range(x.dim()))[::-1]
    reversed_ = x.permute(order).contiguous().permute(order)
    found = [("contiguous", x.contiguous()), ("gapped", gapped), ("shifted", shifted), ("reversed", reversed_)]
    if x.dim() == 4:
        found.append(("channels_last", x.contiguous(memory_format=torch.channels_last)))
    return found
