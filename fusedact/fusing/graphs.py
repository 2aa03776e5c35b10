"""The same rewriting on FX graphs: what Dynamo captures for torch.compile, and anything that torch.fx has traced.

    torch.compile(model, backend="fusedact")                                 the rewritten graph, run as it stands
    torch.compile(model, options={"pre_grad_custom_pass": fusedact.compile_pass})    ... and on to Inductor

Formulas are recognised by their numbers here too (recognise.py); a node is read by its function, never by its name.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

import fusedact  # noqa: F401  registers the operators
from fusedact import lowering
from fusedact.fusing import recognise, roles
from fusedact.fusing.calls import DEVICES, DTYPES
from fusedact.fusing.recognise import Gate, Match
from fusedact.fusing.source import tensor_functions

_ARITHMETIC = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg, operator.gt, operator.lt,
    operator.ge, operator.le,
    # x *= y of a value that nobody else holds is x * y; whether anybody does is looked at
    operator.imul, operator.iadd, operator.itruediv, operator.isub,
}  # fmt: skip
_INPLACE = {operator.imul, operator.iadd, operator.itruediv, operator.isub}
_NUMBER = (int, float, bool, type(None), str, torch.dtype)


# Whether a kernel over the elements of a node is left as it is.
_Left = Callable[[str, fx.Node], bool]


def compile_pass(graph: fx.Graph) -> None:
    """Fuse activations with the bias before them in a graph of torch functions, in place.

    For `torch.compile(model, options={"pre_grad_custom_pass": fusedact.compile_pass})`, in training and inference. What
    Inductor's own loops do faster (`fusedact.lowering`) is left to them.
    """
    _fuse(graph, _inductors_own)


def _inductors_own(kernel: str, node: fx.Node) -> bool:
    x = _value(node)
    return isinstance(x, Tensor) and lowering.torchs_own(kernel, x.numel(), None)


def _fuse(graph: fx.Graph, left: _Left) -> None:
    module = graph.owning_module
    claimed: set[fx.Node] = set()
    for node in list(graph.nodes):
        _glu(graph, node, module, left)
    for node in reversed(list(graph.nodes)):
        if node in claimed or not _elementwise(node, module):
            continue
        inner = _rewrite(graph, node, module, left)
        claimed.update(inner)
    graph.eliminate_dead_code()
    graph.lint()


def backend(module: fx.GraphModule, example_inputs: list[Any], **options: Any) -> Callable[..., Any]:
    """`torch.compile(model, backend="fusedact")`: the captured graph with its activations fused, run as it stands."""
    _fuse(module.graph, lambda kernel, node: False)
    module.recompile()
    forward: Callable[..., Any] = module.forward
    return forward


def _target(node: fx.Node, module: nn.Module | None) -> Any:
    """What a node calls."""
    if node.op == "call_module" and module is not None:
        return module.get_submodule(str(node.target))
    return node.target


def _elementwise(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_function":
        if not (node.target in _ARITHMETIC or id(node.target) in tensor_functions()):
            return False
        if id(node.target) in roles.product_functions():
            return False
    elif node.op == "call_method":
        name = str(node.target)
        if not hasattr(Tensor, name) or (name.endswith("_") and not name.endswith("__")):
            return False
    elif node.op == "call_module":
        called = _target(node, module)
        if len(node.args) != 1 or node.kwargs or roles.module_role(called) is None or list(called.parameters()):
            return False
    else:
        return False
    operands = [*node.args, *node.kwargs.values()]
    return all(isinstance(a, (fx.Node, *_NUMBER)) for a in operands) and bool(node.all_input_nodes)


def _rewrite(graph: fx.Graph, root: fx.Node, module: nn.Module | None, left: _Left) -> Iterable[fx.Node]:
    """Replace the formula under `root` if it is an activation; the nodes that it was made of."""
    below = set(root.all_input_nodes)
    for stop in (set[fx.Node](), {n for b in below for n in b.all_input_nodes}, below):
        leaves, inner = _cone(root, stop, module)
        written = [n for n in inner if n.target in _INPLACE or n.kwargs.get("inplace") is True]
        if not 1 <= len(leaves) <= 2 or any(n.all_input_nodes[0] in leaves for n in written if n.target in _INPLACE):
            continue
        if any(_writes(user, n) for n in leaves for user in n.users if user not in inner):
            continue
        order = [n for n in graph.nodes if n in inner]
        function = functools.partial(_evaluate, order, leaves, module)
        if len(leaves) == 1:
            if all(n.target in _ARITHMETIC for n in order) and operator.pow not in {n.target for n in order}:
                continue
            match = recognise.identify(function)
            if match is None or left(match.resolved[0], leaves[0]):
                continue
            if _emit(graph, root, leaves[0], None, match, order, module):
                return inner
            continue
        gate = recognise.identify_gate(function) if _alike(*leaves) else None
        if gate is not None and gate.match.gain == 1.0 and not left(gate.match.resolved[0], leaves[0]):
            _emit_gate(graph, root, leaves, gate)
            return inner
        if any(map(_is_vector, leaves)) and recognise.of_a_sum(function):
            bias = next(n for n in leaves if _is_vector(n))
            x = next(n for n in leaves if n is not bias)
            ordered = functools.partial(_evaluate, order, [x, bias], module)
            match = recognise.identify(functools.partial(_at_zero, ordered))
            if match is None or left(match.resolved[0], x):
                continue
            if _emit(graph, root, x, bias, match, order, module):
                return inner
    return ()


def _writes(node: fx.Node, value: fx.Node) -> bool:
    """Whether `node` may write over `value`."""
    if node.op == "call_method":
        return str(node.target).endswith("_") or str(node.target) == "__setitem__"
    named = getattr(node.target, "__name__", "")
    return (
        node.target in _INPLACE
        or node.target is operator.setitem
        or named.endswith("_")
        or node.kwargs.get("inplace") is True
        or node.kwargs.get("out") is value
    )


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether both are tensors of one shape and dtype that the operators take."""
    x, y = _value(a), _value(b)
    return (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)
        and x.dtype in DTYPES
        and x.device.type in DEVICES
    )


def _emit_gate(graph: fx.Graph, root: fx.Node, leaves: list[fx.Node], gate: Gate) -> None:
    """Put `gated_act` in the place of `root`: of the whole tensor, where the leaves are its halves."""
    a, b = leaves[::-1] if gate.swapped else leaves
    kernel, scalars, _ = gate.match.resolved
    halves = _halves(a, b)
    whole, dim, which = halves if halves is not None else (a, -1, "first")
    bounds = ("concat", gate.limit, 1.0, gate.offset)
    other = b if halves is None else None
    settings: tuple[Any, ...] = (whole, other, None, None, kernel, list(scalars), dim, which, *bounds)
    _replace(graph, root, torch.ops.fusedact.gated_act.default, settings)


def _replace(graph: fx.Graph, root: fx.Node, operator: Callable[..., Any], settings: tuple[Any, ...]) -> None:
    with graph.inserting_before(root):
        fused = graph.call_function(operator, settings)
    fused.meta = dict(root.meta)
    root.replace_all_uses_with(fused)
    graph.erase_node(root)


def _halves(a: fx.Node, b: fx.Node) -> tuple[fx.Node, int, str] | None:
    """(whole, dim, which half `a` is), if `a` and `b` are the two halves of one tensor, and of nothing else."""
    parts = a.args[0] if a.target is operator.getitem else None
    if not isinstance(parts, fx.Node) or b.target is not operator.getitem or b.args[0] is not parts:
        return None
    whole = parts.all_input_nodes[0] if len(parts.all_input_nodes) == 1 else None
    x, half = (_value(whole), _value(a)) if whole is not None else (None, None)
    if not isinstance(x, Tensor) or not isinstance(half, Tensor) or x.dim() != half.dim():
        return None
    if parts.target not in _SPLITS or {a.args[1], b.args[1]} != {0, 1}:
        return None
    different = [d for d in range(x.dim()) if x.size(d) != half.size(d)]
    if len(different) != 1 or x.size(different[0]) != 2 * half.size(different[0]):
        return None
    assert whole is not None
    return whole, different[0], "first" if a.args[1] == 0 else "second"


_SPLITS = {"chunk", "split", "tensor_split", torch.chunk, torch.split, torch.functional.split, torch.tensor_split}


def _glu(graph: fx.Graph, node: fx.Node, module: nn.Module | None, left: _Left) -> None:
    """torch.nn.functional.glu, or its module, as one operator."""
    called = _target(node, module)
    if type(called) is nn.GLU and not called._forward_hooks and not called._forward_pre_hooks:
        dim: Any = called.dim
    elif node.target is torch.nn.functional.glu:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", -1)
    else:
        return
    x = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(x, fx.Node) or not isinstance(dim, int) or not _alike(x, x):
        return
    if left("sigmoid", x):
        return
    settings: tuple[Any, ...] = (x, None, None, None, "sigmoid", [], dim, "second", "concat", None, 1.0, 0.0)
    _replace(graph, node, torch.ops.fusedact.gated_act.default, settings)


def _at_zero(function: Callable[..., Any], v: Tensor) -> Any:
    return function(v, torch.zeros_like(v))


def _is_vector(node: fx.Node) -> bool:
    value = _value(node)
    return isinstance(value, Tensor) and value.dim() == 1


def _cone(root: fx.Node, stop: set[fx.Node], module: nn.Module | None) -> tuple[list[fx.Node], set[fx.Node]]:
    halt = set(stop)
    while True:
        leaves: dict[fx.Node, None] = {}
        inner: dict[fx.Node, None] = {}
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if node in leaves or node in inner:
                continue
            if node is not root and (node in halt or not _elementwise(node, module)):
                leaves[node] = None
                continue
            inner[node] = None
            waiting += node.all_input_nodes
        open_ = [n for n in inner if n is not root and any(u not in inner for u in n.users)]
        if not open_:
            return list(leaves), set(inner)
        halt.update(open_)


def _evaluate(order: list[fx.Node], leaves: list[fx.Node], module: nn.Module | None, *values: Any) -> Any:
    known: dict[fx.Node, Any] = dict(zip(leaves, values, strict=True))
    for node in order:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
        if node.op == "call_method":
            known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "call_module":
            called = _target(node, module)
            known[node] = type(called).forward(called, *args, **kwargs)
        else:
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[order[-1]]


def _value(node: fx.Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


def _emit(
    graph: fx.Graph, root: fx.Node, leaf: fx.Node, bias: fx.Node | None, match: Match, inner: list[fx.Node],
    module: nn.Module | None,
) -> bool:  # fmt: skip
    """Put the fused operator in the place of `root`."""
    shown = _value(leaf)
    if isinstance(shown, Tensor) and (shown.dtype not in DTYPES or shown.device.type not in DEVICES):
        return False
    if match.row.noise is not None or (match.inplace and len(inner) > 1):
        return False
    dim = -1
    without: fx.Node | None = None
    if bias is not None:
        vector = _value(bias)
        if not isinstance(vector, Tensor) or vector.dim() != 1 or not isinstance(shown, Tensor):
            return False
        if shown.dim() < 2 or shown.size(-1) != vector.size(0) or shown.dtype != vector.dtype:
            return False
        x = leaf
    else:
        product = roles.product_functions().get(id(leaf.target)) if leaf.op == "call_function" else None
        if match.inplace and len(leaf.users) > 1:
            return False
        if product is not None and all(u in inner for u in leaf.users) and leaf.args[1:]:
            bias = leaf.args[2] if len(leaf.args) > 2 else leaf.kwargs.get("bias")  # type: ignore[assignment]
            dim = product[1]
            if not isinstance(bias, fx.Node):
                bias = None
            without = leaf if bias is not None else None
        if match.inplace and without is None and not leaf.op.startswith("call"):
            return False  # writes over an input
        x = leaf
    if bias is None and roles.is_general(match.row):
        return False
    if match.inplace and without is None and _may_alias(leaf):
        return False
    kernel, scalars, _ = match.resolved
    with graph.inserting_before(root):
        if without is not None:
            args = (*without.args[:2], None, *without.args[3:]) if len(without.args) > 2 else without.args
            kwargs = {k: None if k == "bias" else v for k, v in without.kwargs.items()}
            x = graph.call_function(without.target, args, kwargs)  # type: ignore[arg-type]
            x.meta = dict(without.meta)
        settings = (x, bias, None, kernel, list(scalars), dim, match.gain, None, None, "auto")
        fused = graph.call_function(torch.ops.fusedact.bias_act.default, settings)
        fused.meta = dict(root.meta)
    root.replace_all_uses_with(fused)
    for node in [root, *reversed(inner), *([without] if without is not None else [])]:
        if not node.users and node in graph.nodes:
            graph.erase_node(node)
    return True


def _may_alias(node: fx.Node) -> bool:
    """Whether an in-place write to the node's value may be seen elsewhere: unless a product or a norm made it."""
    if node.op == "call_module":
        return False
    made = ("linear", "conv", "norm", "addmm", "matmul")
    return not any(part in getattr(node.target, "__name__", str(node.target)) for part in made)
