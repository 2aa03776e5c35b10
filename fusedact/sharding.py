"""How the operators run on tensors that are spread over several machines: sharding rules for torch's DTensor.

One row of `RULES` per operator. Elementwise work is done where the elements are, along any dimension; a vector along
the operator's dim is cut with it, and its gradient summed over the machines where another dimension is cut. So a
column-wise product keeps its columns, its bias and its activation without a gather. Rules are registered when
torch.distributed.tensor is imported, which `import fusedact` leaves to others: it takes a second.

Knows names and shapes; touches no tensor.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["RULES", "Rule", "placements"]

DTENSOR = "torch.distributed.tensor"


@dataclass(frozen=True)
class Rule:
    """What each tensor of an operator is, in the order of its schema.

    full: has the elements of the result; vector: one for each channel; weight: an activation's tensor, of one element,
    a vector or full, as given; rows: the input of a product, whose last dimension is summed; whole: never cut.
    """

    results: str
    arguments: str
    cut: str = "any"  # which dimensions may be cut: any, those "across" the operator's dim, "along" it, or "none"
    dim: int | None = None  # the operator's, where it is no argument


RULES: dict[str, Rule] = {
    "bias_act": Rule("full", "full vector weight"),
    "bias_act_": Rule("", "full vector weight"),
    "bias_act_mask": Rule("full whole", "full vector weight", "none"),  # 8 or 4 elements of anywhere share a byte
    "bias_act_backward": Rule("full vector weight", "full full vector weight"),
    "bias_act_double_backward": Rule("full full vector", "full full full vector"),
    "bias_act_epilogue": Rule("full", "full vector weight vector full whole"),
    "bias_act_epilogue_backward": Rule("full vector weight vector", "full full vector weight vector whole"),
    "dropout_mask": Rule("full", "whole", "none"),
    "batch_norm_act": Rule("full vector vector", "full vector vector weight", "along", 1),
    "batch_norm_act_backward": Rule(
        "full vector vector weight", "full full vector vector weight vector vector", "along", 1),
    "gated_act": Rule("full", "full full vector vector"),
    "gated_act_backward": Rule("full full vector vector", "full full full vector vector"),
    "linear_act": Rule("full", "rows vector vector weight", dim=-1),
    "linear_act_saving": Rule("full full", "rows vector vector weight", dim=-1),
    "linear_act_backward": Rule("rows vector vector weight", "full full rows vector vector weight", dim=-1),
    "softmax": Rule("full", "full vector", "across"),
    "softmax_backward": Rule("full vector", "full full vector", "across"),
    "maxout": Rule("full full", "full vector", "across"),
    "maxout_backward": Rule("full vector", "full full vector", "across"),
    "lstm_cell_act": Rule("full full", "full full vector", "across", -1),
    "lstm_cell_act_backward": Rule("full full vector", "full full full full vector", "across", -1),
    "gru_cell_act": Rule("full", "full full full vector vector", "across", -1),
    "gru_cell_act_backward": Rule("full full full vector vector", "full full full full vector vector", "across", -1),
}  # fmt: skip

# Never called with tensors that are spread: a monitor passes them by, as no machine sees all that it would count.
LOCAL = frozenset((
    "statistics_", "bias_act_statistics", "bias_act_backward_statistics", "linear_act_statistics",
    "linear_act_backward_statistics",
))  # fmt: skip


def placements(name: str, arguments: dict[str, Any]) -> list[list[Any]]:
    """The ways to run an operator on one dimension of a mesh: placements of its results, then of its arguments.

    Args:
        name: of the operator.
        arguments: by name; a tensor is anything with a shape, and None one that is not given.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    rule = RULES[name]
    given = dict(zip(list(arguments)[: len(rule.arguments.split())], rule.arguments.split(), strict=True))
    results = rule.results.split()
    everywhere = [Replicate()] * len(results)
    ways = [[*everywhere, *(Replicate() if hasattr(v, "shape") else None for v in arguments.values())]]
    shape = next((arguments[n].shape for n, kind in given.items() if kind in ("full", "rows")
                  and hasattr(arguments[n], "shape")), ())  # fmt: skip
    dim = (arguments["dim"] if rule.dim is None and "dim" in arguments else rule.dim or 0) % max(len(shape), 1)
    weight = next((arguments[n] for n, kind in given.items() if kind == "weight"), None)

    def placed(kind: str, at: int, result: bool) -> Any:
        missing = Partial() if result else Replicate()
        if kind == "weight" and weight is not None and len(weight.shape) < 2:
            kind = "one" if weight.shape.numel() == 1 else "vector"
        if kind in ("full", "weight"):
            return Shard(at)
        if kind == "vector":
            return Shard(0) if at == dim else missing
        if kind == "rows":
            return Shard(at) if at != dim else missing
        return missing

    for at in range(len(shape)):
        if _may_cut(rule, arguments, at, dim):
            cut = [placed(kind, at, True) for kind in results]
            for n, value in arguments.items():
                cut.append(placed(given[n], at, False) if hasattr(value, "shape") else None)
            ways.append(cut)
    return ways


def _may_cut(rule: Rule, arguments: dict[str, Any], at: int, dim: int) -> bool:
    if arguments.get("seed") is not None or arguments.get("save") == "mask":
        return False  # elements are numbered, or packed, across the whole tensor
    if "layout" in arguments and arguments.get("other") is None and at == dim:
        return False  # both halves lie along it
    return rule.cut == "any" or (rule.cut == "along" and at == dim) or (rule.cut == "across" and at != dim)


def _strategy(name: str, schema: Any) -> Any:
    """What DTensor asks for: `placements`, for every dimension of the mesh."""
    from torch.distributed.tensor._ops.utils import expand_to_full_mesh_op_strategy

    names = [argument.name for argument in schema.op._schema.arguments]
    ways = placements(name, dict(zip(names, schema.args_schema, strict=False)))
    results = len(schema.op._schema.returns)
    mesh = schema.get_mesh_from_args()
    inplace = schema.is_inplace_op()
    return expand_to_full_mesh_op_strategy(mesh, schema, ways, input_index=results, inplace_op=inplace)


def register() -> None:
    """Tell DTensor the rules. `out=` has none: DTensor takes no operator that returns nothing but writes there."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo

    propagator = DTensor._op_dispatcher.sharding_propagator
    for name, rule in RULES.items():
        packet = getattr(torch.ops.fusedact, name)
        # What follows the tensors (dim, save, which gradients) tells one decision from another.
        info = RuntimeSchemaInfo(len(rule.arguments.split()), needs_pytree=True)
        for overload in set(packet.overloads()) - {"out"}:
            propagator.register_op_strategy(getattr(packet, overload), functools.partial(_strategy, name), info)


class _Later(importlib.abc.MetaPathFinder):
    """Registers the rules as soon as anybody has imported DTensor."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == DTENSOR else None
        if spec is not None and spec.loader is not None:
            execute: Callable[[types.ModuleType], None] = spec.loader.exec_module

            def then_register(module: types.ModuleType) -> None:
                execute(module)
                register()
                sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

            spec.loader.exec_module = then_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register the rules now if DTensor is there, else when it is imported."""
    if not torch.distributed.is_available():
        return
    if DTENSOR in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Later())
