"""The operators on DTensors: two gloo processes compute what one does, and what needs no gather has none."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import gloo
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fusedact
from fusedact import sharding

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

# name: (function, shapes of its tensors). Tensors of two dimensions and more are cut along each of them in turn, and
# so are vectors, which then have to be gathered, or cut with the tensor.
CASES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "bias_act": (lambda x, b: fusedact.gelu(x, b), ((4, 6, 8), (8,))),
    "bias_act, no bias": (lambda x: fusedact.silu(x), ((4, 6),)),
    "bias_act along dim 1": (lambda x, b: fusedact.tanh(x, b, dim=1, gain=2.0), ((4, 6, 8), (6,))),
    "bias_act with slopes": (lambda x, b, w: fusedact.prelu(x, b, weight=w), ((4, 6), (6,), (6,))),
    "bias_act with one slope": (lambda x, w: fusedact.prelu(x, weight=w), ((4, 6), (1,))),
    "bias_act with a mask": (lambda x, b: fusedact.relu(x, b, save="mask"), ((4, 6), (6,))),
    "bias_act_": (lambda x, b: fusedact.relu(x * 1, b, inplace=True), ((4, 6), (6,))),
    "scale and residual": (
        lambda x, b, s, r: fusedact.bias_act(x, b, "silu", scale=s, residual=r), ((4, 6), (6,), (6,), (4, 6))),
    "dropout": (lambda x, b: fusedact.bias_act(x, b, "silu", dropout_p=0.5), ((4, 6), (6,))),
    "batch_norm_act": (
        lambda x, w, b: torch.ops.fusedact.batch_norm_act(x, w, b, None, 1e-5, "silu", [])[0], ((4, 6, 5), (6,), (6,))),
    "gated_act of halves": (lambda x, b: fusedact.gated_act(x, b), ((4, 6, 8), (8,))),
    "gated_act of two": (lambda x, y, b, c: fusedact.gated_act((x, y), (b, c)), ((4, 6), (4, 6), (6,), (6,))),
    "linear_act": (lambda x, w, b: fusedact.linear_act(x, w, b, "gelu"), ((4, 6, 8), (10, 8), (10,))),
    "linear_act with slopes": (
        lambda x, w, b, p: fusedact.linear_act(x, w, b, "prelu", weight=p), ((4, 8), (10, 8), (10,), (10,))),
    "linear_act with a mask": (
        lambda x, w, b: fusedact.linear_act(x, w, b, "relu", save="mask"), ((4, 8), (10, 8), (10,))),
    "softmax": (lambda x, b: fusedact.softmax(x, b), ((4, 6, 8), (8,))),
    "log_softmax along dim 1": (lambda x, b: fusedact.log_softmax(x, b, dim=1), ((4, 6, 8), (6,))),
    "maxout": (lambda x, b: fusedact.maxout(x, b, pieces=2), ((4, 6, 8), (8,))),
    "lstm_cell_act": (lambda g, c, b: fusedact.lstm_cell_act(g, c, b), ((4, 12), (4, 3), (12,))),
    "lstm_cell_act, one result": (lambda g, c: fusedact.lstm_cell_act(g, c)[0], ((4, 12), (4, 3))),
    "gru_cell_act": (
        lambda i, h, s, b, c: fusedact.gru_cell_act(i, h, s, b, c), ((4, 12), (4, 12), (4, 4), (12,), (12,))),
}  # fmt: skip

# (case, where each tensor is cut or None): neither the call nor its gradient talks to the other machine.
SILENT: list[tuple[str, tuple[int | None, ...]]] = [
    ("bias_act", (2, 0)),
    ("bias_act", (0, None)),
    ("bias_act", (1, None)),
    ("bias_act along dim 1", (1, 0)),
    ("bias_act with slopes", (1, 0, 0)),
    ("bias_act_", (1, 0)),
    ("scale and residual", (1, 0, 0, 1)),
    ("batch_norm_act", (1, 0, 0)),
    ("gated_act of halves", (1, None)),
    ("gated_act of two", (1, 1, 0, 0)),
    ("linear_act", (None, 0, 0)),  # column-wise
    ("linear_act", (0, None, None)),  # a batch in parts
    ("linear_act", (1, None, None)),
    ("softmax", (1, None)),
    ("maxout", (0, None)),
    ("lstm_cell_act", (0, 0, None)),
    ("gru_cell_act", (0, 0, 0, None, None)),
]


def test_every_operator_has_a_rule() -> None:
    names = {n.removeprefix("fusedact::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("fusedact::")}
    assert set(sharding.RULES) == {name.split(".")[0] for name in names} - sharding.LOCAL  # overloads share one
    assert names >= sharding.LOCAL


def test_rules_fit_the_schemas() -> None:
    """A rule has a word for each tensor of the schema, arguments and results."""
    for name, rule in sharding.RULES.items():
        schema = getattr(torch.ops.fusedact, name).default._schema
        tensors = [a for a in schema.arguments if "Tensor" in str(a.type)]
        assert [a.name for a in schema.arguments[: len(tensors)]] == [a.name for a in tensors], name
        assert len(rule.arguments.split()) == len(tensors), name
        assert len(rule.results.split()) == len(schema.returns), name


def tensors(name: str) -> list[Tensor]:
    shapes = CASES[name][1]
    return [torch.randn(s, generator=torch.Generator().manual_seed(i)).double() for i, s in enumerate(shapes)]


def results(function: Callable[..., Any], given: list[Any], second: bool) -> list[Any]:
    """Results, gradients, and gradients of the gradients' sum of sines."""
    given = [t.detach().requires_grad_() for t in given]
    torch.manual_seed(0)  # the same mask
    y = function(*given)
    outputs = [y] if isinstance(y, Tensor) else list(y)
    loss = functools.reduce(operator.add, (t.sin().sum() for t in outputs))  # 0 + a partial sum would make it whole
    gradients = torch.autograd.grad(loss, given, create_graph=second)
    if not second:
        return [*outputs, *gradients]
    more = torch.autograd.grad(sum(g.sin().sum() for g in gradients), given, allow_unused=True)  # type: ignore[arg-type]
    return [*outputs, *gradients, *(g for g in more if g is not None)]


def whole(t: Any) -> Tensor:
    return (t.full_tensor() if hasattr(t, "full_tensor") else t).detach()


def check_case(name: str, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    function, given = CASES[name][0], tensors(name)
    second = name == "bias_act"
    wanted = [whole(t) for t in results(function, given, second)]
    for i, cut in enumerate(given):
        for at in (None, *range(cut.dim())):
            if at is not None and cut.size(at) < 2:
                continue
            placed = [Shard(at) if j == i and at is not None else Replicate() for j in range(len(given))]
            spread = [distribute_tensor(t, mesh, [p]) for t, p in zip(given, placed, strict=True)]
            got = [whole(t) for t in results(function, spread, second)]
            assert len(got) == len(wanted)
            for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
                torch.testing.assert_close(
                    a, b, rtol=1e-10, atol=1e-12, msg=lambda m, k=k, placed=placed: f"{name} {placed} {k}: {m}"
                )


def check_silent(name: str, cuts: tuple[int | None, ...], mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    placed = [Replicate() if at is None else Shard(at) for at in cuts]
    spread = [distribute_tensor(t, mesh, [p]) for t, p in zip(tensors(name), placed, strict=True)]
    with CommDebugMode() as talk:
        results(CASES[name][0], spread, False)
    assert talk.get_total_counts() == 0, f"{name} {placed}: {talk.get_comm_counts()}"


class Block(nn.Module):
    """Two products with an activation between, as fuse finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.out = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.act(self.fc(x)))
        return result


def check_modules(mesh: Any) -> None:
    """Column-wise then row-wise: one reduction, in the end; by fuse, and by fusedact.nn.Linear."""
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    plain, x = Block(), torch.randn(6, 8)
    wanted = plain(x)

    def spread(name: str, module: nn.Module, mesh: Any) -> None:
        for key, p in list(module.named_parameters(recurse=False)):
            cut = Shard(0) if name == "fc" else Shard(1) if key == "weight" else Replicate()
            module.register_parameter(key, nn.Parameter(distribute_tensor(p.data, mesh, [cut])))

    fused = distribute_module(fusedact.fuse(plain), mesh, spread)
    calls: list[Any] = []
    kept = fusedact._C.bias_act
    fusedact._C.bias_act = lambda *args: (calls.append(args[1]), kept(*args))[1]  # type: ignore[assignment]
    given = distribute_tensor(x, mesh, [Replicate()])
    fused(given)
    fusedact._C.bias_act = kept
    assert type(calls[-1]).__name__ == "DTensor", "the bias goes along with the activation"
    with CommDebugMode() as talk:  # has hooks on every module, so that the bias stays with its layer
        y = fused(given)
    assert talk.get_total_counts() == 0, "columns, bias and activation need nothing; the last sum is still to be made"
    torch.testing.assert_close(whole(y), wanted, rtol=1e-4, atol=1e-6)

    own = nn.ModuleDict({"fc": fusedact.nn.Linear(8, 32, activation="gelu"), "out": nn.Linear(32, 8)})
    own.load_state_dict(plain.state_dict())
    parallelize_module(own, mesh, {"fc": ColwiseParallel(), "out": RowwiseParallel()})
    with CommDebugMode() as talk:
        y = own["out"](own["fc"](x))
    assert talk.get_total_counts() == 1, "the row-wise product's sum"
    torch.testing.assert_close(whole(y), wanted, rtol=1e-4, atol=1e-6)


def check() -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name in CASES:
        check_case(name, mesh)
    for name, cuts in SILENT:
        check_silent(name, cuts, mesh)
    check_modules(mesh)


def test_two_processes() -> None:
    """Every case, cut along every dimension, gives the results and gradients of one process."""
    gloo.run(check)
