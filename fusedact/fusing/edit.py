"""A function with some of its expressions replaced: same defaults, closure, decorators and line numbers.

Knows code objects and syntax trees; what is replaced by what comes from sites.py.
"""

from __future__ import annotations
import __future__ as futures

import ast
import copy
import types
from collections.abc import Callable, Iterable
from typing import Any

from fusedact.fusing.sites import Site
from fusedact.fusing.source import NoSource, Parsed

_FLAGS = 0
for _name in futures.all_feature_names:
    _FLAGS |= getattr(futures, _name).compiler_flag


class _Replace(ast.NodeTransformer):
    def __init__(self, edits: dict[int, Callable[[], ast.expr]]) -> None:
        self.edits = edits

    def visit(self, node: ast.AST) -> Any:
        edit = self.edits.get(id(node))
        if edit is None:
            return self.generic_visit(node)
        new = edit()
        if id(new) in self.edits:
            return self.visit(new)
        return ast.copy_location(self.generic_visit(new), node)


def rewritten(parsed: Parsed, sites: Iterable[Site]) -> types.FunctionType:
    """The function with the sites' edits.

    Raises:
        NoSource: the function cannot be put together again.
    """
    edits: dict[int, Callable[[], ast.expr]] = {}
    helpers: dict[str, Any] = {}
    for k, site in enumerate(sites):
        name = f"_fusedact_{k}"
        if not site.edits:
            continue
        helpers[name] = site.helper
        for key, edit in site.edits.items():
            edits[key] = lambda edit=edit, name=name: edit(name)  # type: ignore[misc]
    tree = _shallow(_Replace(edits).visit(parsed.tree))
    function = parsed.function
    free = [*function.__code__.co_freevars, *helpers]
    arguments = ast.arguments([], [ast.arg(n) for n in free], None, [], [], None, [])
    factory = ast.FunctionDef("factory", arguments, [tree], [], None)
    if "type_params" in ast.FunctionDef._fields:  # Python 3.12
        vars(factory)["type_params"] = []
    module = ast.fix_missing_locations(ast.Module([factory], []))
    code = function.__code__
    try:
        made = compile(module, code.co_filename, "exec", flags=code.co_flags & _FLAGS, dont_inherit=True)
    except (SyntaxError, ValueError, TypeError) as error:
        raise NoSource(f"its rewritten source does not compile: {error}") from None
    inner = _code(_code(made, "factory"), tree.name)
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    cells.update((name, types.CellType(helper)) for name, helper in helpers.items())
    if not set(inner.co_freevars) <= set(cells) or inner.co_argcount != code.co_argcount:
        raise NoSource("its names cannot be resolved")
    qualified: dict[str, Any] = {"co_qualname": getattr(code, "co_qualname", None)}  # Python 3.11
    inner = inner.replace(**qualified) if qualified["co_qualname"] else inner
    closure = tuple(cells[name] for name in inner.co_freevars)
    return _like(function, types.FunctionType(inner, function.__globals__, function.__name__, None, closure))


def _shallow(tree: ast.FunctionDef) -> ast.FunctionDef:
    """Without defaults and annotations, which the old function has evaluated."""
    tree.returns = None
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    tree.args.defaults = [ast.Constant(None) for _ in tree.args.defaults]
    tree.args.kw_defaults = [d if d is None else ast.Constant(None) for d in tree.args.kw_defaults]
    return tree


def _code(outer: types.CodeType, name: str) -> types.CodeType:
    return next(c for c in outer.co_consts if isinstance(c, types.CodeType) and c.co_name == name)


def _like(old: types.FunctionType, new: types.FunctionType) -> types.FunctionType:
    new.__defaults__, new.__kwdefaults__ = old.__defaults__, copy.copy(old.__kwdefaults__)
    new.__qualname__, new.__module__, new.__doc__ = old.__qualname__, old.__module__, old.__doc__
    new.__annotations__ = dict(getattr(old, "__annotations__", {}))
    new.__dict__.update(old.__dict__)
    return new


def innermost(function: Any) -> types.FunctionType:
    """The function that decorators have wrapped.

    Raises:
        NoSource: it is no function, or a decorator keeps it where it cannot be replaced.
    """
    while isinstance(function, types.FunctionType):
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is None:
            return function
        if _cell(function, wrapped) is None:
            raise NoSource("a decorator hides it")
        function = wrapped
    raise NoSource("it is not a plain function")


def rewrapped(function: types.FunctionType, inner: types.FunctionType, new: types.FunctionType) -> types.FunctionType:
    """`function` with `inner`, somewhere under its decorators, replaced by `new`."""
    if function is inner:
        return new
    wrapped = vars(function)["__wrapped__"]
    replaced = rewrapped(wrapped, inner, new)
    closure = list(function.__closure__ or ())
    for i, cell in enumerate(closure):
        if _holds(cell, wrapped):
            closure[i] = types.CellType(replaced)
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, tuple(closure))
    made = _like(function, made)
    made.__wrapped__ = replaced  # type: ignore[attr-defined]
    return made


def _holds(cell: Any, wanted: Any) -> bool:
    try:
        return cell.cell_contents is wanted
    except ValueError:
        return False


def _cell(function: types.FunctionType, wanted: Any) -> Any:
    return next((cell for cell in function.__closure__ or () if _holds(cell, wanted)), None)
