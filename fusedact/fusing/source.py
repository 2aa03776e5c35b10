"""What a method's source computes, as far as straight lines go: a graph of values for every run of simple statements.

Nothing is executed, and nothing is baked in: control flow stays in the source, and only values that are named and read
within one run of statements are followed. Whatever is not understood is opaque, and a name that may be read later
escapes. Knows Python's syntax and how names resolve on one instance; knows no activation and no layer.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fusedact import registry

ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
_SIMPLE = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return, ast.Assert, ast.Raise, ast.Delete, ast.Pass)
_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_CONSTANT = (bool, int, float, str, type(None), torch.dtype)


class NoSource(Exception):
    """Why a function's source cannot be rewritten."""


@dataclass(eq=False)
class Value:
    """One value of the graph.

    kind: "constant" (a Python number or string), "object" (a module, function or parameter that was looked up),
    "operator" (arithmetic, or a call that may be elementwise), "call" (any other call), "opaque".
    """

    kind: str
    node: ast.expr  # where it is computed
    at: int  # index of the statement in its run
    object: Any = None  # what a constant or object is
    live: bool = False  # read off the instance: may be another at the next call
    parts: tuple[Value, ...] = ()  # the operands that are no constants
    function: Value | None = None  # of a call
    given: tuple[Value, ...] = ()  # to a call
    names: list[str] = field(default_factory=list)  # what it is assigned to
    readers: list[tuple[Value | None, int]] = field(default_factory=list)  # None: somebody outside the graph
    escapes: bool = False  # may be read after its run, or in another scope


@dataclass
class Run:
    """Simple statements in a row, and what they compute."""

    values: list[Value] = field(default_factory=list)  # in the order of evaluation
    mutations: list[int] = field(default_factory=list)  # statements that may write into a tensor
    of: dict[int, Value] = field(default_factory=dict)  # id of an expression -> its value


@dataclass
class Parsed:
    """A function with its source."""

    function: types.FunctionType
    tree: ast.FunctionDef
    owner: str  # name of the class, for private names

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The names that the function sees, apart from its own."""
        names = dict(self.function.__globals__)
        for name, cell in zip(self.function.__code__.co_freevars, self.function.__closure__ or (), strict=True):
            try:
                names[name] = cell.cell_contents
            except ValueError:  # not filled yet
                names.pop(name, None)
        return names


def parse(function: types.FunctionType, owner: str) -> Parsed:
    """The syntax tree of a function, with its line numbers in the file.

    Raises:
        NoSource: there is none, or it does not fit the function.
    """
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, ValueError):
        raise NoSource("its source is not available") from None
    if not isinstance(tree, ast.FunctionDef):
        raise NoSource("it is not a plain function")
    code = function.__code__
    given = [*tree.args.posonlyargs, *tree.args.args]
    if tree.name != code.co_name or [a.arg for a in given] != list(code.co_varnames[: code.co_argcount]):
        raise NoSource("its source does not fit it")
    for node in ast.walk(tree):
        if isinstance(node, (ast.Global, ast.Nonlocal, ast.Yield, ast.YieldFrom, ast.Await)):
            raise NoSource(f"it has a {type(node).__name__.lower()} statement")
        if isinstance(node, ast.Name) and node.id in ("locals", "eval", "exec", "vars"):
            raise NoSource(f"it calls {node.id}()")
    ast.increment_lineno(tree, max(first, 1) - 1)
    tree.decorator_list = []
    if owner:
        _Mangle(owner).visit(tree)
    return Parsed(function, tree, owner)


class _Mangle(ast.NodeTransformer):
    """Private names as the class body would have them."""

    def __init__(self, owner: str) -> None:
        self.prefix = "_" + owner.lstrip("_")

    def _name(self, name: str) -> str:
        return self.prefix + name if name.startswith("__") and not name.endswith("__") else name

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self._name(node.attr)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._name(node.id)
        return node


@functools.cache
def tensor_functions() -> dict[int, Callable[..., Any]]:
    """torch's functions of tensors, by id: calling one has no side effect unless its name ends in an underscore."""
    known = torch.overrides.get_overridable_functions()
    found = {}
    for space in (torch, torch.nn.functional, torch.special, torch._C._nn):
        for function in known.get(space, ()):
            name = getattr(function, "__name__", "_")
            if not name.endswith("_") and not name.startswith("_") and not _draws(function):
                found[id(function)] = function
    for row in registry.ROWS:
        if row.torch_function is not None and not _draws(row.torch_function):
            found[id(row.torch_function)] = row.torch_function
    return found


def _draws(function: Callable[..., Any]) -> bool:
    """Whether a function of torch behaves differently in training: dropout, and what draws random numbers."""
    try:
        return "training" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin: its documentation has the signature
        return "dropout" in getattr(function, "__name__", "")


def attribute(owner: Any, name: str) -> tuple[bool, Any]:
    """(found, value) of owner.name, without running anybody's code."""
    if isinstance(owner, nn.Module):
        for table in ("_modules", "_parameters", "_buffers"):
            entries = vars(owner).get(table, {})
            if name in entries:
                return True, entries[name]
    if isinstance(owner, types.ModuleType):
        return (True, vars(owner)[name]) if name in vars(owner) else (False, None)
    held = getattr(owner, "__dict__", {})
    if isinstance(held, dict) and name in held:
        return True, held[name]
    found = inspect.getattr_static(type(owner), name, None)
    if isinstance(found, staticmethod):
        return True, found.__func__
    if isinstance(found, _CONSTANT) and found is not None:
        return True, found
    return False, None


class Reader:
    """Reads one method for one instance; `runs` is the result."""

    def __init__(self, parsed: Parsed, instance: nn.Module | None, elementwise: Callable[[Any], bool]) -> None:
        self.parsed, self.instance, self.elementwise = parsed, instance, elementwise
        self.runs: list[Run] = []
        tree = parsed.tree
        arguments = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
        arguments += [a for a in (tree.args.vararg, tree.args.kwarg) if a is not None]
        positional = [*tree.args.posonlyargs, *tree.args.args]
        self.optional = {a.arg for a in positional[len(positional) - len(tree.args.defaults) :]}
        self.optional |= {
            a.arg for a, d in zip(tree.args.kwonlyargs, tree.args.kw_defaults, strict=True) if d is not None
        }
        self.self_name = arguments[0].arg if arguments and instance is not None else None
        stored = (n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load))
        self.local = {a.arg for a in arguments} | set(stored)
        self.local |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))} - {tree.name}
        if self.self_name in _names(tree, ast.Store):
            raise NoSource("it assigns to its first argument")
        self.loads: dict[str, int] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self.loads[node.id] = self.loads.get(node.id, 0) + 1
        self.scan(tree.body, top=True)

    # Statements

    def scan(self, statements: list[ast.stmt], top: bool = False) -> None:
        """One list of statements: a run, which compound statements interrupt for the names that they touch."""
        run = self.run = Run()
        self.runs.append(run)
        env: dict[str, Value] = {}
        before: set[str] = set()  # names read before the run set them: in a loop, the last turn's
        seen: dict[str, int] = {}
        state = (env, before, seen)
        for self.at, statement in enumerate(statements):
            self.state = state
            if isinstance(statement, _SIMPLE) and not any(isinstance(n, ast.NamedExpr) for n in ast.walk(statement)):
                self.simple(statement, env)
                continue
            run.mutations.append(self.at)
            for name in _names(statement, ast.Load):
                if name in env:
                    env[name].escapes = True
            for name in _names(statement, ast.Store, ast.Del):
                if name in env:  # perhaps it is not set: then the old value is read later
                    env.pop(name).escapes = True
            for body in self.alive(statement):
                outer, at = self.run, self.at
                self.scan(body)
                self.run, self.at = outer, at
            self.state = state
            if not isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                for expression in _headers(statement):
                    self.isolated(expression)
        if not top:
            for name, value in env.items():
                if name in before or self.loads.get(name, 0) > seen.get(name, 0):
                    value.escapes = True

    def alive(self, statement: ast.stmt) -> list[list[ast.stmt]]:
        """The bodies of a compound statement, without a branch that this instance cannot take."""
        if isinstance(statement, ast.If):
            test = statement.test
            negated = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
            taken = self.truth(test.operand if isinstance(test, ast.UnaryOp) and negated else test)
            if taken is not None:
                body = statement.body if taken != negated else statement.orelse
                return [body] if body else []
        return list(_bodies(statement))

    def truth(self, test: ast.expr) -> bool | None:
        """What a condition on the instance alone is (a flag, or `is None`), or None."""
        operand: ast.expr = test
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], (ast.Is, ast.IsNot)):
            if not isinstance(test.comparators[0], ast.Constant) or test.comparators[0].value is not None:
                return None
            operand = test.left
        if not isinstance(operand, ast.Attribute) or operand.attr == "training":
            return None
        if not isinstance(operand.value, ast.Name) or operand.value.id != self.self_name:
            return None
        found, value = attribute(self.instance, operand.attr)
        if not found:
            return None
        if operand is test:
            return value if isinstance(value, bool) else None
        return (value is None) == isinstance(test.ops[0], ast.Is)  # type: ignore[attr-defined]

    def simple(self, statement: ast.stmt, env: dict[str, Value]) -> None:
        for node in ast.walk(statement):
            inplace = isinstance(node, ast.Attribute) and node.attr.endswith("_") and not node.attr.endswith("__")
            stored = isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load)
            if inplace or stored or isinstance(statement, ast.AugAssign):
                self.run.mutations.append(self.at)
                break
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            targets: list[ast.expr] = (
                list(statement.targets) if isinstance(statement, ast.Assign) else [statement.target]
            )
            pairs = _pairs(targets, statement.value)
            if pairs:
                values = [self.value(expression) for _, expression in pairs]
                for (bound, expression), value in zip(pairs, values, strict=True):
                    if value.names or isinstance(expression, ast.Name):  # an alias: two names, one value
                        value.readers.append((None, self.at))
                    value.names.append(bound.id)
                    env[bound.id] = value
                return
            value = self.value(statement.value)
            value.readers.append((None, self.at))
            for target in targets:
                for node in ast.walk(target):
                    if isinstance(node, ast.Name):
                        if isinstance(node.ctx, ast.Load):
                            self.value(node).escapes = True
                        else:
                            env[node.id] = Value("opaque", node, self.at, names=[node.id])
            return
        if isinstance(statement, ast.AugAssign):
            self.value(statement.value).readers.append((None, self.at))
            for node in ast.walk(statement.target):
                if isinstance(node, ast.Name):
                    if node.id in env:
                        env[node.id].escapes = True
                    if not isinstance(node.ctx, ast.Load):
                        env[node.id] = Value("opaque", node, self.at, names=[node.id])
            return
        for child in ast.iter_child_nodes(statement):
            if isinstance(child, ast.expr):
                self.value(child).readers.append((None, self.at))
        if isinstance(statement, ast.Delete):
            for name in _names(statement, ast.Del):
                env.pop(name, None)

    # Expressions

    def isolated(self, node: ast.expr) -> None:
        """An expression of another scope, or one that is evaluated again and again: a run of its own."""
        outer, at, state = self.run, self.at, self.state
        self.run, self.at, self.state = Run(), 0, ({}, set(), {})
        self.runs.append(self.run)
        self.value(node).readers.append((None, 0))
        self.run, self.at, self.state = outer, at, state

    def make(self, kind: str, node: ast.expr, parts: Iterable[Value] = (), **more: Any) -> Value:
        value = Value(
            kind, node, self.at, parts=tuple(p for p in parts if p.kind not in ("constant", "object")), **more
        )
        for part in parts:
            part.readers.append((value, self.at))
        self.run.of[id(node)] = value
        self.run.values.append(value)
        return value

    def value(self, node: ast.expr) -> Value:
        method = getattr(self, "_" + type(node).__name__.lower(), None)
        value: Value = method(node) if method is not None else self.opaque(node)
        self.run.of[id(node)] = value
        return value

    def opaque(self, node: ast.AST) -> Value:
        """Not understood, but what stands inside is."""
        children: list[Value] = []
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                children.append(self.value(child))
            elif isinstance(child, (ast.keyword, ast.slice)):
                children.append(self.opaque(child))
        expression = node if isinstance(node, ast.expr) else ast.Constant(None)
        result = self.make("opaque", expression)
        for child_value in children:
            child_value.readers.append((None, self.at))
        return result

    def _scope(self, node: ast.expr) -> Value:
        env, _, _ = self.state
        bound = _names(node, ast.Store) | {
            a.arg for n in ast.walk(node) if isinstance(n, ast.Lambda) for a in n.args.args
        }
        for name in _names(node, ast.Load):
            if name in env:
                env[name].escapes = True
        hidden, self.local = self.local, self.local | bound
        for child in ast.walk(node):
            if isinstance(child, ast.comprehension):
                self.isolated(child.iter)
        for name in ("elt", "key", "value", "body"):
            if isinstance(getattr(node, name, None), ast.expr):
                self.isolated(getattr(node, name))
        self.local = hidden
        return self.make("opaque", node)

    _lambda = _listcomp = _setcomp = _dictcomp = _generatorexp = _scope

    def _constant(self, node: ast.Constant) -> Value:
        return self.make("constant", node, object=node.value)

    def _name(self, node: ast.Name) -> Value:
        env, before, seen = self.state
        seen[node.id] = seen.get(node.id, 0) + 1
        if node.id == self.self_name:
            return self.make("object", node, object=self.instance, live=True)
        if node.id in env:
            return env[node.id]
        if node.id in self.local:
            before.add(node.id)
            value = env[node.id] = self.make("opaque", node, names=[node.id], escapes=True)
            return value
        names = self.parsed.environment
        if node.id in names:  # a number may be set anew, a function is taken as it is
            return self.known(node, names[node.id], isinstance(names[node.id], (int, float)))
        if hasattr(builtins, node.id):
            return self.known(node, getattr(builtins, node.id), False)
        return self.make("opaque", node)

    def known(self, node: ast.expr, found: Any, live: bool) -> Value:
        kind = "constant" if isinstance(found, _CONSTANT) else "opaque" if isinstance(found, torch.Tensor) else "object"
        return self.make(kind, node, object=found, live=live)

    def _attribute(self, node: ast.Attribute) -> Value:
        owner = self.value(node.value)
        if owner.kind == "object":
            found, value = attribute(owner.object, node.attr)
            if found:
                return self.known(node, value, owner.live)
        result = self.make("opaque", node)
        owner.readers.append((None, self.at))
        return result

    def _subscript(self, node: ast.Subscript) -> Value:
        owner, index = self.value(node.value), self.value(node.slice)
        if owner.kind == "object" and index.kind == "constant":
            if isinstance(owner.object, (nn.ModuleList, nn.Sequential)) and isinstance(index.object, int):
                with_index = list(owner.object)
                if -len(with_index) <= index.object < len(with_index):
                    return self.known(node, with_index[index.object], True)
            if isinstance(owner.object, (nn.ModuleDict, dict)) and index.object in owner.object:
                return self.known(node, owner.object[index.object], True)
        if isinstance(owner.object, nn.Parameter):
            index.readers.append((None, self.at))
            return self.make("opaque", node, object=owner.object)  # a slice of a parameter
        result = self.make("opaque", node)
        for part in (owner, index):
            part.readers.append((None, self.at))
        return result

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        value = self.value(node.operand)
        if value.kind == "constant" and isinstance(node.op, ast.USub) and isinstance(value.object, (int, float)):
            return self.make("constant", node, object=-value.object, live=value.live)
        if isinstance(node.op, ast.USub):
            return self.make("operator", node, [value])
        value.readers.append((None, self.at))
        return self.make("opaque", node)

    def _binop(self, node: ast.BinOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        if left.kind == right.kind == "constant":
            return self.folded(node, [left, right])
        if isinstance(node.op, ARITHMETIC):
            return self.make("operator", node, [left, right])
        for value in (left, right):
            value.readers.append((None, self.at))
        return self.make("opaque", node)

    def _compare(self, node: ast.Compare) -> Value:
        parts = [self.value(n) for n in (node.left, *node.comparators)]
        if len(parts) == 2 and isinstance(node.ops[0], (ast.Lt, ast.LtE, ast.Gt, ast.GtE)):
            return self.make("operator", node, parts)
        for value in parts:
            value.readers.append((None, self.at))
        return self.make("opaque", node)

    def folded(self, node: ast.expr, parts: list[Value]) -> Value:
        try:
            code = compile(ast.Expression(_replaced(node, self.run.of)), "<constant>", "eval")
            found = eval(code, {"math": math, "float": float, "int": int})
        except Exception:
            return self.make("opaque", node)
        return self.make("constant", node, object=found, live=any(p.live for p in parts))

    def _call(self, node: ast.Call) -> Value:
        starred = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value)
            if owner.kind in ("opaque", "operator", "call"):  # a method of a tensor, it seems
                parts = [owner, *(self.value(a) for a in node.args), *(self.value(k.value) for k in node.keywords)]
                name = node.func.attr
                pure = not name.endswith("_") and callable(getattr(torch.Tensor, name, None)) and not starred
                if pure and all(p.kind == "constant" for p in parts[1 + len(node.args) :]):
                    return self.make("operator", node, parts)
                return self.called(node, None, parts)
        function = self.value(node.func)
        parts = [self.value(a) for a in node.args] + [self.value(k.value) for k in node.keywords]
        if function.kind == "object" and not starred:
            target = function.object
            if parts and all(p.kind == "constant" for p in parts) and (
                getattr(target, "__module__", None) == "math" or target in (float, int)
            ):  # fmt: skip
                result = self.folded_call(node, target, parts)
                if result is not None:
                    return result
            keywords = parts[len(node.args) :]
            if self.elementwise(target) and all(p.kind == "constant" for p in keywords):
                return self.make("operator", node, parts, function=function)
        return self.called(node, function, parts)

    def folded_call(self, node: ast.Call, target: Any, parts: list[Value]) -> Value | None:
        if node.keywords:
            return None
        try:
            found = target(*(p.object for p in parts))
        except Exception:
            return None
        return self.make("constant", node, object=found, live=any(p.live for p in parts))

    def called(self, node: ast.Call, function: Value | None, parts: list[Value]) -> Value:
        if function is not None and function.kind == "opaque":
            function.readers.append((None, self.at))
        result = self.make("call", node, function=function, given=tuple(parts))
        for part in parts:
            part.readers.append((result, self.at))
        return result

    def _starred(self, node: ast.Starred) -> Value:
        return self.opaque(node)


def _pairs(targets: list[ast.expr], value: ast.expr) -> list[tuple[ast.Name, ast.expr]]:
    """(name, expression) of an assignment to one name, or of as many names as expressions; else nothing."""
    if len(targets) != 1:
        return []
    names, values = [targets[0]], [value]
    if isinstance(targets[0], ast.Tuple) and isinstance(value, ast.Tuple):
        names, values = targets[0].elts, value.elts
    if len(names) != len(values) or any(isinstance(v, ast.Starred) for v in values):
        return []
    return [(n, v) for n, v in zip(names, values, strict=True) if isinstance(n, ast.Name)] * all(
        isinstance(n, ast.Name) for n in names
    )


def _replaced(node: ast.expr, of: dict[int, Value]) -> ast.expr:
    """The expression with its constants in place."""

    def copy(n: Any) -> Any:
        value = of.get(id(n))
        if value is not None and value.kind == "constant" and n is not node:
            return ast.copy_location(ast.Constant(value.object), n)
        return rebuilt(n, copy)

    result: ast.expr = copy(node)
    return result


def rebuilt(node: Any, copy: Callable[[Any], Any]) -> Any:
    """A copy of a node whose children are `copy` of the old ones."""
    if isinstance(node, list):
        return [copy(n) for n in node]
    if not isinstance(node, ast.AST):
        return node
    fields = {name: (rebuilt if isinstance(v, list) else _one)(v, copy) for name, v in ast.iter_fields(node)}
    return ast.copy_location(type(node)(**fields), node)


def _one(node: Any, copy: Callable[[Any], Any]) -> Any:
    return copy(node) if isinstance(node, ast.AST) else node


def _names(node: ast.AST, *contexts: type[ast.expr_context]) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, contexts)}


def _bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        body = getattr(statement, name, None)
        if isinstance(body, list) and body and not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield body
    for name in ("handlers", "cases"):
        for part in getattr(statement, name, ()):
            yield part.body


def _headers(statement: ast.stmt) -> Iterator[ast.expr]:
    for name in ("test", "iter", "subject", "value"):
        if isinstance(getattr(statement, name, None), ast.expr):
            yield getattr(statement, name)
    for item in getattr(statement, "items", ()):
        yield item.context_expr
