"""Runs a model as it was and as it is fused, on the user's inputs, and undoes what makes a difference.

Both runs are of the same object: buffers, gradients, mode and random state are put back after each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fusedact.fusing import swap
from fusedact.fusing.plan import Plan
from fusedact.fusing.report import Entry

# Relative to the largest element of the tensor that is compared, and absolute. Rounding differs in every fused layer,
# and a gradient gathers the differences of the whole depth; a wrong activation or bias is far outside.
TOLERANCE = {
    torch.float64: (1e-7, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (2e-2, 2e-3),
    torch.bfloat16: (5e-2, 1e-2),
}


def settle(model: nn.Module, plans: list[Plan], example_inputs: Any) -> str:
    """Fuse what gives equal results; the plans' entries say what was undone. Returns a note for the report."""
    for made in plans:
        swap.restore(made.module)
    wanted = _results(model, example_inputs)
    if not _agree(_results(model, example_inputs), wanted):
        for made in plans:
            _undo(made, "the original does not repeat its own results, so nothing can be verified")
        return "nothing verified: the original's own results differ from run to run"
    active = [p for p in plans if p.kind is not None]
    undone = _keep(model, active, example_inputs, wanted)
    for made in undone:
        _undo(made, "undone: outputs or gradients differ from the original's")
    return f"verified: {len(active) - len(undone)} of {len(active)} fused modules kept"


def _undo(made: Plan, why: str) -> None:
    made.kind = None
    made.entries = [Entry(e.name, e.what, False, why, e.text, e.line) for e in made.entries]


def _keep(model: nn.Module, plans: list[Plan], inputs: Any, wanted: Any) -> list[Plan]:
    """Fuse `plans`; those that cannot stay, found by halving."""
    if not plans:
        return []
    for made in plans:
        assert made.kind is not None
        made.module.__class__ = made.kind
    try:
        if _agree(_results(model, inputs), wanted):
            return []
    except Exception:  # what the fused model raises, the original did not
        if len(plans) > 1:
            pass
    for made in plans:
        swap.restore(made.module)
    if len(plans) == 1:
        return plans
    half = len(plans) // 2
    return _keep(model, plans[:half], inputs, wanted) + _keep(model, plans[half:], inputs, wanted)


def _results(model: nn.Module, inputs: Any) -> list[list[Tensor | None]]:
    """Outputs and gradients, in training and in evaluation mode."""
    found = []
    modes = [(m, m.training) for m in model.modules()]
    try:
        for training in (True, False):
            model.train(training)
            found.append(_once(model, inputs))
    finally:
        for module, training in modes:
            module.training = training
    return found


def _once(model: nn.Module, inputs: Any) -> list[Tensor | None]:
    parameters = list(model.parameters())
    with _undisturbed(model, parameters), torch.enable_grad():
        torch.manual_seed(0)
        fresh = pytree.tree_map_only(Tensor, lambda t: t.detach().clone().requires_grad_(t.is_floating_point()), inputs)
        given = [t for t in pytree.tree_leaves(fresh) if isinstance(t, Tensor) and t.requires_grad]
        if isinstance(fresh, dict):
            output = model(**fresh)
        else:
            output = model(*fresh) if isinstance(fresh, (tuple, list)) else model(fresh)
        outputs = [t for t in _tensors(output) if t.is_floating_point()]
        seen = [t for t in outputs if t.requires_grad]
        sources = [t for t in (*parameters, *given) if t.requires_grad]
        gradients: list[Tensor | None] = []
        if seen and sources:
            # a loss with a different weight for every element, so that no two errors cancel
            weights = [torch.linspace(-1, 2, t.numel(), dtype=torch.float64).to(t).reshape(t.shape) for t in seen]
            gradients = list(torch.autograd.grad(seen, sources, weights, allow_unused=True))
        return [*(t.detach().clone() for t in outputs), *gradients]


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dataclass_fields__"):
        for name in output.__dataclass_fields__:
            yield from _tensors(getattr(output, name))


@contextlib.contextmanager
def _undisturbed(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    gradients = [p.grad for p in parameters]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


def _agree(found: list[list[Tensor | None]], wanted: list[list[Tensor | None]]) -> bool:
    pairs = [pair for a, b in zip(found, wanted, strict=True) for pair in zip(a, b, strict=True)]
    return len(found) == len(wanted) and all(_same(a, b) for a, b in pairs)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    rtol, atol = TOLERANCE.get(a.dtype, (0.0, 0.0))
    if not b.numel():
        return True
    finite = b[b.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return bool(torch.isclose(a, b, rtol=0.0, atol=rtol * largest + atol, equal_nan=True).all())
