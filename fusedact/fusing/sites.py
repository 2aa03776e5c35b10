"""Where in a method an activation stands, and the edits that fuse it: one row of `KINDS` per form.

Looks at the graph of values (source.py), asks what a piece computes (recognise.py, roles.py), and answers with edits of
the syntax tree. Changes nothing itself.
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusedact.fusing import calls, recognise, roles
from fusedact.fusing.recognise import Gate, Match
from fusedact.fusing.source import Reader, Run, Value, rebuilt


@dataclass
class Site:
    """One place to rewrite, or one that was found and left."""

    what: str  # "linear + gelu", "silu gate"
    text: str  # the source
    line: int
    reason: str = ""  # why it is left; empty: it is fused
    note: str = ""  # what could have been fused besides
    helper: Callable[..., Any] | None = None  # the call that takes its place
    edits: dict[int, Callable[[str], ast.expr]] = field(default_factory=dict)  # id of a node -> (helper's name) -> new
    modules: tuple[nn.Module, ...] = ()  # activation modules that are served here


class Left(Exception):
    """Why a site is left alone."""


@dataclass
class Cone:
    """A formula: its root, what goes in, and the operators between."""

    root: Value
    leaves: list[Value]
    inner: list[Value]


def find(reader: Reader, dropout: bool = False) -> list[Site]:
    """Every site of a method, outermost formulas first; with `dropout`, residual + dropout(...) too."""
    found: list[Site] = []
    for run in reader.runs:
        claimed: set[int] = set()
        for value in reversed(run.values):
            if (value.kind == "operator" or _is_glu(value)) and id(value) not in claimed:
                finder = _Finder(reader, run)
                residual = finder.residual(value) if dropout else None
                if residual is not None:
                    found.append(residual)
                    claimed.add(id(value))
                    continue
                site, inner = finder.at(value)
                if site is not None:
                    found.append(site)
                    claimed.update(map(id, inner))
    return found


_cache: dict[Any, Any] = {}


def _remembered(key: Any, compute: Callable[[], Any]) -> Any:
    try:
        if key not in _cache:
            _cache[key] = compute()
    except TypeError:  # something that cannot be a key
        return compute()
    return _cache[key]


class _Finder:
    def __init__(self, reader: Reader, run: Run) -> None:
        self.reader, self.run = reader, run

    def cone(self, root: Value, stop: frozenset[int]) -> Cone:
        """The largest formula under `root` that nobody reads from inside, down to `stop`."""
        halt = set(stop)
        while True:
            leaves: dict[int, Value] = {}
            inner: dict[int, Value] = {}
            waiting = [root]
            while waiting:
                value = waiting.pop()
                if id(value) in leaves or id(value) in inner:
                    continue
                if value is not root and (value.kind != "operator" or id(value) in halt):
                    leaves[id(value)] = value
                    continue
                inner[id(value)] = value
                waiting += reversed(value.parts)
            open_ = [
                v for v in inner.values()
                if v is not root and (v.escapes or len(v.names) > 1
                or any(r is None or id(r) not in inner for r, _ in v.readers))
            ]  # fmt: skip
            if not open_:
                return Cone(root, list(leaves.values()), list(inner.values()))
            halt.update(id(v) for v in open_)

    def at(self, root: Value) -> tuple[Site | None, list[Value]]:
        if _is_glu(root):
            call = root.node
            assert isinstance(call, ast.Call)
            glu = Site("sigmoid gate", _text(root), _line(root), helper=calls.glu)
            glu.edits[id(call)] = lambda name: ast.Call(_load(name), call.args, call.keywords)
            return glu, [root]
        tried: set[frozenset[int]] = set()
        below = root.parts
        stops = [
            frozenset[int](),
            frozenset(id(p) for p in itertools.chain.from_iterable(p.parts for p in below)),
            frozenset(map(id, below)),
        ]
        for stop in stops:
            cone = self.cone(root, stop)
            key = frozenset(map(id, cone.inner))
            if key in tried or not 1 <= len(cone.leaves) <= 2:
                continue
            tried.add(key)
            site = self.site(cone)
            if site is not None and (not site.reason or len(cone.inner) == 1):
                return site, cone.inner
        whole = self.cone(root, frozenset()).inner
        for value in reversed(whole[1:]):  # an activation of something elementwise: the largest one that is known
            cone = self.cone(root, frozenset({id(value)}))
            key = frozenset(map(id, cone.inner))
            if key in tried or len(cone.leaves) != 1 or cone.leaves[0] is not value:
                continue
            tried.add(key)
            site = self.site(cone)
            if site is not None and (not site.reason or len(cone.inner) == 1):
                return site, cone.inner
        return None, []

    def site(self, cone: Cone) -> Site | None:
        root = cone.root
        if any(v.function is not None and v.function.kind == "constant" for v in cone.leaves):
            return None  # calls None: this instance never gets here
        module = root.function.object if root.function is not None else None
        if isinstance(module, nn.Module) and _inside(self.reader, module):
            if len(cone.inner) > 1 or len(cone.leaves) != 1:
                return None
            return self.module_site(cone, module)
        plain = all(isinstance(v.node, (ast.BinOp, ast.UnaryOp)) and not _power(v.node) for v in cone.inner)
        if plain and len(cone.leaves) == 1:
            return None  # a polynomial
        try:
            formula = self.formula(cone)
        except Left:
            return None
        key = (formula.key, len(cone.leaves))
        if len(cone.leaves) == 1:
            match = _remembered(key, lambda: recognise.identify(formula.probe))
            return self.single(cone, formula, match) if match is not None else None
        gate = _remembered((*key, "gate"), lambda: recognise.identify_gate(formula.probe))
        if gate is not None:
            return self.gate(cone, formula, gate)
        if _remembered((*key, "sum"), lambda: recognise.of_a_sum(formula.probe)):
            return self.sum(cone, formula)
        return None

    # One form each

    def module_site(self, cone: Cone, module: nn.Module) -> Site | None:
        """act(layer(...)), where both are modules."""
        root, leaf = cone.root, cone.leaves[0]
        role = roles.module_role(module)
        assert role is not None
        assert isinstance(root.node, ast.Call)
        if len(root.node.args) != 1 or root.node.keywords:
            return None
        layer, why = self.layer(cone, leaf)
        if not layer:
            return Site(str(role), _text(root), _line(root), note=why, modules=(module,))
        function = root.function
        assert function is not None
        assert isinstance(leaf.node, ast.Call)
        call = leaf.node
        site = Site(f"{layer} + {role}", _text(root), _line(root), helper=calls.after, modules=(module,))
        site.edits[id(root.node)] = lambda name: self.path(cone, leaf, root, site)
        act = copy.deepcopy(function.node)
        site.edits[id(call)] = lambda name: ast.Call(_load(name), [act, call.func, *call.args], call.keywords)
        return self.checked(site, cone, [leaf])

    def single(self, cone: Cone, formula: Formula, match: Match) -> Site | None:
        """A formula of one tensor."""
        root, leaf = cone.root, cone.leaves[0]
        layer, why = self.layer(cone, leaf)
        if roles.is_general(match.row) and layer in ("", "layer"):
            return None
        if not layer:
            site = Site(str(match), _text(root), _line(root), note=why)
            site.helper = calls.make_alone(match, calls.checker(formula.expected), formula.call)
            if match.inplace and len(cone.inner) > 1:
                return _left(site, "it writes over a tensor that others may read")
            site.edits[id(root.node)] = lambda name: ast.Call(
                _load(name), [formula.live(), self.path(cone, leaf, root, site)], []
            )
            return self.checked(site, cone, [leaf])
        assert isinstance(leaf.node, ast.Call)
        call = leaf.node
        check = calls.checker(formula.expected)
        site = Site(f"{layer} + {match}", _text(root), _line(root))
        functions = roles.product_functions()
        target = leaf.function.object if leaf.function is not None else None
        if id(target) in functions:
            site.helper = calls.make_after_function(match, check, formula.call, functions[id(target)][1])
        else:
            site.helper = calls.make_after(match, check, formula.call)
        site.edits[id(root.node)] = lambda name: self.path(cone, leaf, root, site)
        site.edits[id(call)] = lambda name: ast.Call(
            _load(name), [formula.live(), call.func, *call.args], call.keywords
        )
        return self.checked(site, cone, [leaf])

    def gate(self, cone: Cone, formula: Formula, gate: Gate) -> Site | None:
        """activation(a) * b."""
        root, leaves = cone.root, cone.leaves
        helper = calls.make_gate(gate, calls.checker(formula.expected), formula.call)
        if helper is None or gate.match.gain != 1.0:
            return None  # the activation alone, then
        if any(isinstance(v.node, ast.Name) and v.node.id in self.reader.optional for v in leaves):
            return None  # an optional argument is more often a number than a tensor
        site = Site(f"{gate} gate", _text(root), _line(root), helper=helper, modules=formula.modules)
        site.edits[id(root.node)] = lambda name: ast.Call(
            _load(name), [formula.live(), *(self.path(cone, leaf, root, site) for leaf in leaves)], []
        )
        return self.checked(site, cone, leaves)

    def sum(self, cone: Cone, formula: Formula) -> Site | None:
        """activation(x + parameter)."""
        root = cone.root
        bias = [v for v in cone.leaves if isinstance(v.object, nn.Parameter)]
        if len(bias) != 1 or not _repeatable(bias[0].node, self.reader.self_name):
            return None
        x = next(v for v in cone.leaves if v is not bias[0])
        ordered = Cone(root, [x, bias[0]], cone.inner)
        formula = self.formula(ordered)
        probe: Callable[..., Any] = formula.probe
        match = _remembered((formula.key, "of sum"), lambda: recognise.identify(lambda v: probe(v, _zeros(v))))
        if match is None or match.inplace:
            return None
        site = Site(f"bias + {match}", _text(root), _line(root))
        site.helper = calls.make_bias(match, calls.checker(formula.expected), formula.call)
        parameter = copy.deepcopy(bias[0].node)
        site.edits[id(root.node)] = lambda name: ast.Call(
            _load(name), [formula.live(), self.path(cone, x, root, site), parameter], []
        )
        return self.checked(site, cone, [x])

    def residual(self, root: Value) -> Site | None:
        """x + dropout(y), and y's bias if a layer makes it: the calls wait, and the sum makes all of them at once."""
        node = root.node
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add) or len(root.parts) != 2:
            return None
        drop = next((v for v in root.parts if _is_dropout(v)), None)
        if drop is None or not self.waits(drop, root, root):
            return None
        site = Site("dropout + residual", _text(root), _line(root), helper=calls.residual)
        waiting = [drop]
        value = drop.given[0]
        target = value.function.object if value.function is not None else None
        alone = value.kind == "call" and self.waits(value, drop, root)
        if alone and isinstance(target, nn.Module) and roles.takes_residual(target):
            site.what = f"{type(target).__name__.lower()} + {site.what}"
            waiting.append(value)
        for call in waiting:
            site.edits[id(call.node)] = lambda name, call=call.node: ast.Call(  # type: ignore[misc]
                ast.Attribute(_load(name), "later", ast.Load()), [call.func, *call.args], call.keywords
            )
        site.edits[id(node)] = lambda name: ast.Call(_load(name), [node.left, node.right], [])
        return site

    def waits(self, call: Value, reader: Value, root: Value) -> bool:
        """Whether a call can be made in the place of `root`: only `reader` reads it, and nobody writes its inputs."""
        if call.escapes or len(call.names) > 1 or any(r is not reader for r, _ in call.readers):
            return False
        between = range(call.at + 1, root.at + 1)
        if any(at in between for at in self.run.mutations):
            return False
        readers = (r for v in call.given for r, at in v.readers if at in between)
        return all(r is not None and r.kind == "operator" for r in readers)

    # What they share

    def layer(self, cone: Cone, leaf: Value) -> tuple[str, str]:
        """The layer whose result `leaf` is and whose bias can be taken along, or "" and perhaps why not."""
        if leaf.kind != "call" or leaf.function is None:
            return "", ""
        why: str | None = None
        inner = set(map(id, cone.inner))
        target = leaf.function.object
        if leaf.function.kind == "object" and isinstance(target, nn.Module):
            why = roles.why_not_a_layer(target)
            if why is None and not roles.is_layer(target):
                return "", ""
            name = type(target).__name__.lower()
        elif leaf.function.kind == "object" and id(target) in roles.product_functions():
            name = target.__name__
        elif leaf.function.kind == "opaque" and not leaf.names and isinstance(leaf.node, ast.Call):
            if not isinstance(leaf.function.node, (ast.Name, ast.Subscript)):
                return "", ""
            name = "layer"  # known when it is called
        else:
            return "", ""
        if leaf.escapes or len(leaf.names) > 1 or any(r is None or id(r) not in inner for r, _ in leaf.readers):
            return "", "somebody else reads what stands before the activation"
        return ("", why) if why is not None else (name, "")

    def checked(self, site: Site, cone: Cone, leaves: list[Value]) -> Site:
        """The site with the edits of the statements between its leaves and its root, or left with the reason."""
        named = [v for v in cone.inner if v is not cone.root and v.names]
        if named:
            first = min(v.at for v in named)
            between = range(first + 1, cone.root.at + 1)
            inner = set(map(id, cone.inner))
            if any(at in between for at in self.run.mutations):
                return _left(site, "a tensor may be written over in between")
            for leaf in leaves:
                if any(at in between and (r is None or id(r) not in inner) for r, at in leaf.readers):
                    return _left(site, "somebody else may write over its argument in between")
        passed: dict[int, int] = {}
        try:
            for leaf in leaves:
                self.route(cone, leaf, cone.root, passed)
        except Left as reason:
            return _left(site, str(reason))
        values = {id(v): v for v in named}
        for key, value in values.items():
            if key in passed:
                leaf = next(x for x in leaves if id(x) == passed[key])
                site.edits[id(value.node)] = lambda name, v=value, x=leaf: self.path(cone, x, v, site)  # type: ignore[misc]
            else:
                site.edits[id(value.node)] = lambda name: ast.Constant(None)
        return site

    def within(self, root: Value) -> list[Value]:
        """The values that the expression of `root` reads by itself, not through names."""
        result = []
        for node in ast.walk(root.node):
            value = self.run.of.get(id(node))
            if value is not None and value is not root:
                result.append(value)
        return result

    def route(self, cone: Cone, leaf: Value, root: Value, passed: dict[int, int]) -> None:
        """Which named values carry `leaf` to `root`; each can carry one."""
        own = self.within(root)
        if any(v is leaf for v in own):
            return
        inner = set(map(id, cone.inner))
        for value in own:
            if value.names and id(value) in inner and self.reaches(value, leaf):
                if passed.setdefault(id(value), id(leaf)) != id(leaf):
                    raise Left("one name carries both of its arguments")
                self.route(cone, leaf, value, passed)
                return
        raise Left("its argument cannot be named where it is used")

    def reaches(self, value: Value, leaf: Value) -> bool:
        return value is leaf or any(self.reaches(p, leaf) for p in value.parts if value.kind == "operator")

    def path(self, cone: Cone, leaf: Value, root: Value, site: Site) -> ast.expr:
        """The expression that stands for `leaf` in the place of `root`."""
        for node in ast.walk(root.node):
            if self.run.of.get(id(node)) is leaf and isinstance(node, ast.expr):
                return node if node is leaf.node and not _is_name(node) else copy.deepcopy(node)
        inner = set(map(id, cone.inner))
        for value in self.within(root):
            if value.names and id(value) in inner and self.reaches(value, leaf):
                return _load(value.names[0])
        raise AssertionError("route() has found a way")

    def formula(self, cone: Cone) -> Formula:
        return Formula(self.reader, self.run, cone)


def _is_dropout(value: Value) -> bool:
    """A call of torch.nn.Dropout, or of its function, with one tensor."""
    if value.kind != "call" or value.function is None or not isinstance(value.node, ast.Call) or not value.given:
        return False
    target, arguments = value.function.object, value.node.args
    if any(isinstance(a, ast.Starred) for a in arguments) or any(k.arg is None for k in value.node.keywords):
        return False
    if type(target) is nn.Dropout:
        return len(arguments) == 1 and not value.node.keywords
    return target is nn.functional.dropout and len(arguments) >= 1


def _is_glu(value: Value) -> bool:
    return value.function is not None and value.function.object is nn.functional.glu


def _zeros(v: Tensor) -> Tensor:
    return torch.zeros_like(v)


def _left(site: Site, reason: str) -> Site:
    site.reason, site.edits, site.helper = reason, {}, None
    return site


def _text(value: Value) -> str:
    return ast.unparse(value.node)


def _line(value: Value) -> int:
    return getattr(value.node, "lineno", 0)


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def _power(node: ast.expr) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)


def _repeatable(node: ast.expr, self_name: str | None) -> bool:
    """Whether an expression reads self's attributes only, so that it may be evaluated elsewhere."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id == self_name


class Formula:
    """The formula of a cone as a function: of its leaves, then of what is read off the instance."""

    def __init__(self, reader: Reader, run: Run, cone: Cone) -> None:
        self.reader, self.run = reader, run
        self.inner = {id(v) for v in cone.inner}
        self.leaves = {id(v): f"leaf_{i}" for i, v in enumerate(cone.leaves)}
        self.nodes: list[ast.expr] = []  # what is read off the instance, as source
        self.found: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.objects: list[Any] = []  # the functions that its names stand for
        body = self.copy(cone.root.node)
        names = [*self.leaves.values(), *(f"live_{i}" for i in range(len(self.nodes)))]
        arguments = ast.arguments([], [ast.arg(n) for n in names], None, [], [], None, [])
        tree = ast.fix_missing_locations(ast.Expression(ast.Lambda(arguments, body)))
        environment = {**reader.parsed.environment, **self.constants}
        try:
            self.call: Callable[..., Any] = eval(compile(tree, "<fusedact formula>", "eval"), environment)
        except Exception:
            raise Left("its formula cannot be evaluated") from None
        self.expected = tuple(self.found)
        self.modules = tuple(m for m in self.found if isinstance(m, nn.Module))
        stand_ins = [_stand_in(f) for f in self.found]
        self.probe: Callable[..., Any] = lambda *leaves: self.call(*leaves, *stand_ins)
        # What tells formulas apart: the text, what its names stand for, and what was read. Objects are kept, not their
        # ids, so that none can take the place of another that is gone.
        seen = tuple(calls.found(f) if isinstance(f, nn.Module) else (type(f), f) for f in self.found)
        self.key = (ast.dump(body), seen, tuple(self.objects), tuple(self.constants.values()))

    def copy(self, node: Any) -> Any:
        value = self.run.of.get(id(node))
        if value is None:
            return rebuilt(node, self.copy)
        if id(value) in self.leaves:
            return _load(self.leaves[id(value)])
        if value.kind in ("constant", "object"):
            if value.live:
                if isinstance(node, ast.Name) and value.node is not node:
                    return self.copy(value.node)
                if isinstance(node, (ast.Attribute, ast.Subscript)):
                    return self.read(node, value.object)
                if isinstance(node, ast.Name) and value.kind == "constant":
                    return self.read(node, value.object)
                if isinstance(node, ast.Name):
                    raise Left("it reads self")
                return rebuilt(node, self.copy)
            if value.kind == "constant" and not isinstance(value.object, (int, float, str, bool, type(None))):
                name = f"constant_{len(self.constants)}"
                self.constants[name] = value.object
                return _load(name)
            if value.kind == "constant":
                return ast.Constant(value.object)
            if isinstance(node, ast.Name) and value.node is not node:
                return self.copy(value.node)
            if isinstance(value.object, nn.Module):
                return self.read(node, value.object)
            self.objects.append(value.object)
            return copy.deepcopy(node)
        if id(value) not in self.inner:
            raise Left("it reads a value that is not followed")
        if isinstance(node, ast.Name):
            return self.copy(value.node)
        return rebuilt(node, self.copy)

    def read(self, node: ast.expr, found: Any) -> ast.expr:
        if isinstance(node, ast.Attribute) and node.attr == "training":
            raise Left("it depends on the mode")
        text = ast.dump(node)
        for i, known in enumerate(self.nodes):
            if ast.dump(known) == text:
                return _load(f"live_{i}")
        self.nodes.append(copy.deepcopy(node))
        outside = isinstance(found, nn.Module) and not _inside(self.reader, found)
        self.found.append(calls.Outside.of(found) if outside else found)
        return _load(f"live_{len(self.nodes) - 1}")

    def live(self) -> ast.expr:
        """The tuple of what is read off the instance, as an expression."""
        return ast.Tuple([copy.deepcopy(n) for n in self.nodes], ast.Load())


def _inside(reader: Reader, module: nn.Module) -> bool:
    """Whether fusing the instance gives `module` the class of a fused one."""
    return reader.instance is not None and any(m is module for m in reader.instance.modules())


def _stand_in(found: Any) -> Any:
    """What is probed in the place of something read off the instance: a module without its hooks."""
    module = found.module if isinstance(found, calls.Outside) else found
    if not isinstance(module, nn.Module):
        return module
    forward = type(module).forward
    return lambda *inputs: forward(module, *inputs)


def signature(sites: Iterable[Site]) -> tuple[str, ...]:
    """What tells two rewritings of one class apart."""
    here = [s for s in sites if not s.reason]
    marks = ["dropout"] if any(s.helper is calls.residual for s in here) else []
    return (*marks, *(f"{s.line}:{s.text}:{s.what}" for s in here))
