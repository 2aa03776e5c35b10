"""One module at a time: what it is, what would be fused in it, and the class that does it.

Puts roles, sources, sites and classes together. Changes a module only in `apply`, by its class.
"""

from __future__ import annotations

import inspect
import itertools
import types
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fusedact.fusing import edit, roles, sites, swap
from fusedact.fusing.report import Entry
from fusedact.fusing.roles import Role
from fusedact.fusing.source import NoSource, Parsed, Reader, parse


@dataclass
class Plan:
    """What fusing one module means."""

    module: nn.Module
    name: str
    kind: type[nn.Module] | None = None  # the class to give it; None: nothing to do
    role: Role | None = None  # if it is an activation
    entries: list[Entry] = field(default_factory=list)
    served: list[nn.Module] = field(default_factory=list)  # activation modules that its entries count
    unread: list[str] = field(default_factory=list)


def plan(module: nn.Module, name: str = "", dropout: bool = False) -> Plan:
    """What would be done to `module`; nothing is changed."""
    made = Plan(module, name)
    try:
        return _planned(made, dropout)
    except Exception as error:  # a class that cannot have subclasses, a formula that nobody foresaw
        why = f"{type(error).__name__}: {error}"
        entries = [Entry(e.name, e.what, False, why, e.text, e.line) for e in made.entries]
        return Plan(module, name, entries=entries, unread=[why])


def _planned(made: Plan, dropout: bool) -> Plan:
    module, name = made.module, made.name
    kind = swap.original(module)
    if "forward" in module.__dict__:
        if roles.torch_activations().get(kind) is not None:
            made.entries.append(Entry(name, kind.__name__, False, "its forward was replaced on the instance"))
        elif not kind.__module__.startswith("torch."):
            made.unread.append("its forward was replaced on the instance")
        return made
    role = roles.module_role(module)
    if role is not None:
        made.role, made.kind = role, swap.activation_class(kind, role)
        made.entries.append(Entry(name, str(role), True))
    elif kind is nn.GLU:
        made.kind = swap.glu_class(kind)
        made.entries.append(Entry(name, "sigmoid gate", True))
    elif _random(kind):
        made.entries.append(Entry(name, kind.__name__.lower(), False, "it draws random numbers, and would draw others"))
    elif isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
        if getattr(kind, "__iter__", None) is nn.Sequential.__iter__:
            _chain(made, kind)
    elif not _torchs(kind):
        _methods(made, kind, dropout)
    return made


# Written like anyone's, or generated from it; torch's other modules call no activation.
_READ_IN_TORCH = ("torch.nn.modules.transformer", "torch.fx.graph_module")


def _torchs(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith("torch.") and kind.__module__ not in _READ_IN_TORCH


def _random(kind: type[nn.Module]) -> bool:
    from fusedact import registry

    return any(row.noise is not None and row.torch_module is kind for row in registry.ROWS)


def _chain(made: Plan, kind: type[nn.Module]) -> None:
    """Neighbours in a Sequential."""
    children = list(made.module._modules.items())
    for (first, layer), (second, act) in itertools.pairwise(children):
        role = roles.module_role(act) if act is not None else None
        if role is None or layer is None or act is None:
            continue
        why = roles.why_not_a_layer(layer)
        if why is None and not roles.is_layer(layer):
            continue
        prefix = f"{made.name}." if made.name else ""
        if why is None:
            what = f"{type(layer).__name__.lower()} + {role}"
            made.entries.append(Entry(prefix + second, what, True, text=f"{first}, {second}"))
            made.served.append(act)
            made.kind = swap.chain_class(kind)
        else:
            made.entries.append(Entry(prefix + second, str(role), True, why, text=f"{first}, {second}"))
            made.served.append(act)


def _methods(made: Plan, kind: type[nn.Module], dropout: bool) -> None:
    """Sites in the methods that the class and its bases define."""
    found: dict[str, tuple[types.FunctionType, types.FunctionType, Parsed, list[sites.Site]]] = {}
    for name, owner, function in _own_methods(kind):
        try:
            inner = edit.innermost(function)
            parsed = parse(inner, owner)
            here = sites.find(Reader(parsed, made.module, roles.elementwise), dropout)
        except NoSource as why:
            if name == "forward":
                made.unread.append(str(why))
            continue
        except RecursionError:
            made.unread.append(f"{name} is nested too deeply")
            continue
        if here:
            found[name] = (function, inner, parsed, here)
    everything: list[str] = []
    for name, (_, _, _, here) in found.items():
        for site in here:
            made.entries.append(
                Entry(made.name, site.what, not site.reason, site.reason or site.note, site.text, site.line)
            )
            made.served += site.modules
            if site.edits:
                everything += [name, *sites.signature([site])]
    if not everything:
        return

    def methods() -> dict[str, Any]:
        return {
            name: edit.rewrapped(function, inner, edit.rewritten(parsed, here))
            for name, (function, inner, parsed, here) in found.items()
            if any(site.edits for site in here)
        }

    try:
        made.kind = swap.rewritten_class(kind, tuple(everything), methods)
    except NoSource as why:
        made.kind = None
        made.unread.append(str(why))
        made.entries = [Entry(e.name, e.what, False, str(why), e.text, e.line) for e in made.entries]


def _own_methods(kind: type[nn.Module]) -> list[tuple[str, str, types.FunctionType]]:
    """(name, class that defines it, function) of the methods that an instance would call."""
    found: dict[str, tuple[str, str, types.FunctionType]] = {}
    for owner in kind.__mro__:
        if owner is nn.Module:
            break
        for name, function in vars(owner).items():
            if name in found or (name.startswith("__") and name.endswith("__")):
                continue
            if isinstance(function, types.FunctionType) and _may_compute(function):
                found[name] = (name, owner.__name__, function)
    return list(found.values())


def _may_compute(function: types.FunctionType) -> bool:
    try:
        return bool(inspect.unwrap(function).__code__.co_argcount)
    except (ValueError, AttributeError):
        return False


def again(module: nn.Module, dropout: bool) -> None:
    """Fuse one module that was fused when it was pickled."""
    made = plan(module, dropout=dropout)
    if made.kind is not None:
        module.__class__ = made.kind
