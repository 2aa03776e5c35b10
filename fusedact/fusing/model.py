"""`fuse`, `unfuse`, `explain`: a whole model, module by module."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn

from fusedact.fusing import plan as planning
from fusedact.fusing import swap
from fusedact.fusing.plan import Plan
from fusedact.fusing.report import Entry, Report

Model = TypeVar("Model", bound=nn.Module)
Exclude = Iterable["str | type[nn.Module] | nn.Module"]


def fuse(
    model: Model,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    exclude: Exclude = (),
    report: bool = False,
    verify: bool = False,
    dropout: bool = False,
) -> Any:
    """The model with its activations fused: with the bias of the layer before them where that is safe.

    Outputs and gradients are the same up to rounding; parameters, buffers, hooks, state_dict keys, dtype, device and
    mode are the same objects; `unfuse` undoes it. What is not safe is left alone, see `explain`.

    Args:
        model: any torch.nn.Module.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments; for `verify`.
        inplace: change `model` itself instead of a deep copy of it.
        exclude: what to leave alone, with all that it contains: qualified names (`"encoder.*"` is a pattern), module
            classes, or modules of `model`.
        report: return (model, Report).
        verify: run the original and the fused model on `example_inputs`, in training and evaluation mode, and undo
            what makes outputs or gradients differ by more than the dtype's tolerance.
        dropout: fuse `x + dropout(y)` too, with the bias of the layer that makes y: one pass, and no mask in memory.
            In training the elements that are dropped are others than torch would drop under the same seed, with the
            same probability; in evaluation mode the author's code runs. So it is a choice, and `verify` undoes it.

    Raises:
        TypeError: `model` is no module, or `exclude` holds something else than names, classes and modules.
        ValueError: a name in `exclude` fits no module; or `verify` without `example_inputs`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse takes a torch.nn.Module, but got {type(model).__name__}: {_fix(model)}")
    if verify and example_inputs is None:
        raise ValueError("verify=True needs example_inputs: a tensor, a tuple of arguments or a dict of keywords")
    skipped = _excluded(model, exclude)
    if not inplace:
        names = {id(m): n for n, m in model.named_modules()}
        try:
            model = copy.deepcopy(model)
        except Exception as error:
            raise TypeError(
                f"this model cannot be copied ({type(error).__name__}: {error}); fuse it itself with inplace=True"
            ) from error
        by_name = dict(model.named_modules())
        skipped = {id(by_name[names[i]]) for i in skipped if i in names}
    plans = _plans(model, skipped, dropout)
    note = ""
    if verify:
        from fusedact.fusing.verify import settle

        note = settle(model, plans, example_inputs)
    else:
        for made in plans:
            apply(made)
    return (model, _report(plans, note)) if report else model


def apply(made: Plan) -> None:
    """Fuse one module; one whose class cannot be changed (a layout of its own) is left."""
    if made.kind is not None:
        try:
            made.module.__class__ = made.kind
        except TypeError as error:
            made.kind = None
            made.entries = [Entry(e.name, e.what, False, str(error), e.text, e.line) for e in made.entries]


def unfuse(model: Model) -> Model:
    """The same model, in place, with every class set back to what its author wrote."""
    for module in model.modules():
        swap.restore(module)
    return model


def explain(model: nn.Module) -> Report:
    """What is fused in a model and what is left, and why; for a model that is not fused, what `fuse` would do."""
    before = [(m, type(m)) for m in model.modules()]
    fused = any(swap.is_fused(m) for m in model.modules())
    dropout = any(swap.has_dropout(getattr(type(m), "fusedact_key", ())) for m in model.modules())
    unfuse(model)
    try:
        plans = _plans(model, set(), dropout)
    finally:
        for module, kind in before:
            module.__class__ = kind
    if fused:
        plans = [_as_it_is(p) for p in plans]
    return _report(plans, "")


def _as_it_is(made: Plan) -> Plan:
    """The plan's entries, left where the module has another class."""
    if made.kind is not None and type(made.module) is not made.kind:
        made.entries = [Entry(e.name, e.what, False, "excluded or undone", e.text, e.line) for e in made.entries]
    return made


def _plans(model: nn.Module, skipped: set[int], dropout: bool) -> list[Plan]:
    plans = []
    for name, module in model.named_modules():
        if swap.is_fused(module):
            swap.restore(module)
        made = planning.plan(module, name, dropout)
        if id(module) in skipped and (made.kind is not None or made.entries):
            made.kind = None
            made.entries = [Entry(e.name, e.what, False, "excluded", e.text, e.line) for e in made.entries]
        plans.append(made)
    return plans


def _report(plans: list[Plan], note: str) -> Report:
    served = {id(m) for p in plans for m in p.served}
    entries = [e for p in plans for e in p.entries if not (p.role is not None and id(p.module) in served)]
    unread = [(p.name, why) for p in plans for why in p.unread]
    return Report(tuple(entries), tuple(unread), note)


def _excluded(model: nn.Module, exclude: Exclude) -> set[int]:
    named = dict(model.named_modules())
    inside: set[int] = set()
    for item in (exclude,) if isinstance(exclude, (str, type, nn.Module)) else exclude:
        if isinstance(item, str):
            roots = [m for n, m in named.items() if fnmatch.fnmatchcase(n, item)]
            if not roots:
                raise ValueError(
                    f"exclude: no module of this model is called {item!r}; names are those of named_modules()"
                )
        elif isinstance(item, type):
            roots = [m for m in named.values() if isinstance(m, item)]
        elif isinstance(item, nn.Module):
            roots = [item]
        else:
            raise TypeError(f"exclude takes qualified names, module classes and modules, but got {item!r}")
        inside.update(id(m) for root in roots for m in root.modules())
    return inside


def _fix(given: Any) -> str:
    return "give the module, not its class" if isinstance(given, type) else "functions can be compiled instead"
