"""A fused module is the same object with another class: a subclass of its own, made here, with other methods.

So parameters, buffers, hooks, `isinstance`, shared references and the state_dict are untouched, and undoing is setting
the class back. Copies, pickles and replicas follow, because nothing is kept on the instance.
"""

from __future__ import annotations

import copyreg
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from fusedact import registry
from fusedact.fusing import calls
from fusedact.fusing.recognise import Match
from fusedact.fusing.roles import Role

ORIGINAL = "fusedact_original"
_NEW: Any = vars(copyreg)["__newobj__"]  # what classes without a __reduce__ of their own are pickled with
_CLASSES: dict[Any, type[nn.Module]] = {}


def is_fused(module: nn.Module) -> bool:
    """Whether the module's class was made here."""
    return ORIGINAL in vars(type(module))


def original(module: nn.Module) -> type[nn.Module]:
    """The class that the module's author gave it."""
    kind: type[nn.Module] = getattr(type(module), ORIGINAL, type(module))
    return kind


def has_dropout(key: tuple[Any, ...]) -> bool:
    """Whether a class was made with `fuse(..., dropout=True)`, and has a dropout fused."""
    return key[:1] == ("methods",) and "dropout" in key


def restore(module: nn.Module) -> None:
    """Set the class back."""
    if is_fused(module):
        module.__class__ = original(module)


def activation_class(kind: type[nn.Module], role: Role) -> type[nn.Module]:
    """An activation class whose forward is fused."""
    match = role.match and (role.match.row.name, role.match.params, role.match.gain, role.match.inplace)
    key = ("activation", role.row.name, role.names, match)
    return _made(kind, key, {calls.ROLE: role, "forward": calls.forward_of(role)})


def glu_class(kind: type[nn.Module]) -> type[nn.Module]:
    """torch.nn.GLU in one pass."""
    return _made(kind, ("glu",), {"forward": calls.glu_forward})


def chain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """torch.nn.Sequential, or a subclass with its forward, that fuses neighbours."""
    return _made(kind, ("chain",), {"forward": calls.chain})


def rewritten_class(
    kind: type[nn.Module], signature: tuple[str, ...], methods: Callable[[], dict[str, types.FunctionType]]
) -> type[nn.Module]:
    """A class with some methods rewritten; `signature` says which sites, `methods` makes them if need be."""
    key = ("methods", *signature)
    known = _CLASSES.get((kind, key))
    return known if known is not None else _made(kind, key, methods())


def _made(kind: type[nn.Module], key: tuple[Any, ...], body: dict[str, Any]) -> type[nn.Module]:
    made = _CLASSES.get((kind, key))
    if made is None:
        names = {n: getattr(kind, n) for n in ("__module__", "__qualname__", "__doc__")}
        more = {ORIGINAL: kind, "fusedact_key": key, "__reduce_ex__": _reduce}
        made = types.new_class(kind.__name__, (kind,), {}, lambda space: space.update({**names, **body, **more}))
        _CLASSES[kind, key] = made
    return made


def _reduce(module: Any, protocol: Any) -> Any:
    """Pickled and copied as its author's class, with what was fused."""
    kind = type(module)
    base = getattr(kind, ORIGINAL)
    reduced = super(_maker(kind), module).__reduce_ex__(max(int(protocol), 2))
    if isinstance(reduced, tuple) and reduced[0] is _NEW and reduced[1][0] is kind:
        return (_renewed, (base, kind.fusedact_key, *reduced[1][1:]), *reduced[2:])
    return reduced


def _maker(kind: type) -> Any:
    """The class in the order of resolution whose `__reduce_ex__` is `_reduce`."""
    return next(c for c in kind.__mro__ if ORIGINAL in vars(c))


def _renewed(base: type[nn.Module], key: tuple[Any, ...], *args: Any) -> nn.Module:
    module: nn.Module = base.__new__(base, *args)
    kind = _CLASSES.get((base, key))
    if kind is None and key[0] == "activation":
        _, row, names, match = key
        found = match and Match(registry.get(match[0]), *match[1:])
        kind = activation_class(base, Role(registry.get(row), names, found))
    if kind is None and key[0] == "chain":
        kind = chain_class(base)
    if kind is None and key[0] == "glu":
        kind = glu_class(base)
    if kind is None:  # rewritten in another process: read the source again, once the state is there
        kind = _made(base, ("pending", *key[:2]), {"__setstate__": _awake, "fusedact_dropout": has_dropout(key)})
    module.__class__ = kind
    return module


def _awake(module: Any, state: Any) -> None:
    from fusedact.fusing import plan

    kind: Any = type(module)
    module.__class__ = getattr(kind, ORIGINAL)
    if hasattr(module, "__setstate__"):
        module.__setstate__(state)
    else:
        module.__dict__.update(state)
    plan.again(module, kind.fusedact_dropout)
