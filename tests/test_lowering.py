"""Which calls stay operators under torch.compile, and that the others compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedact
from fusedact import lowering

# Two roundings of half a unit may differ by one; a bias gradient adds up to 30 terms in float32.
LIMITS = {torch.float32: {"rtol": 1e-6, "atol": 3e-5}, torch.bfloat16: {"rtol": 2.0**-7, "atol": 3e-5}}


def operators(function: Callable[..., Any], *inputs: Tensor, **options: Any) -> list[str]:
    """The operators of fusedact in the graph that Dynamo captures."""
    found: list[str] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        found.extend(str(n.target) for n in module.graph.nodes if str(n.target).startswith("fusedact"))
        return module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True, **options)(*inputs)
    return found


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(("name", "dim"), [*((n, -1) for n in lowering.ALSO_IN_TORCH), ("gelu", 0), ("gelu", 1)])
def test_small_calls_are_torchs_own(name: str, dim: int, dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 5).to(dtype)
    leaves = [x, torch.randn(x.size(dim)).to(dtype)]
    function = lambda x, b: fusedact.bias_act(x, b, name, dim=dim, gain=1.5, clamp=(None, 2.0))  # noqa: E731
    assert operators(function, *leaves) == []
    results = []
    for call in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        x, b = (t.detach().requires_grad_() for t in leaves)
        y = call(x, b)
        results.append([y, *torch.autograd.grad(y, [x, b], torch.ones_like(y))])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, **LIMITS[dtype])


def test_linear() -> None:
    x, w, b = torch.randn(9, 6), torch.randn(7, 6), torch.randn(7)
    function = lambda x, w, b: fusedact.linear_act(x, w, b, "gelu", gain=2.0)  # noqa: E731
    assert operators(function, x, w, b) == []
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, w, b), function(x, w, b))
    assert operators(function, *(t.bfloat16() for t in (x, w, b))) == ["fusedact.linear_act"]


LARGE = lowering.SMALL + 1


@pytest.mark.parametrize(
    ("name", "numel", "training", "stays"),
    [
        ("gelu", lowering.SMALL, False, False),
        ("gelu", LARGE, False, True),
        ("gelu", lowering.SMALL_IN_TRAINING, True, False),
        ("gelu", lowering.SMALL_IN_TRAINING + 1, True, True),
        ("relu", LARGE, False, False),  # a loop of its own has nothing to save
        ("relu", LARGE, True, True),  # but a bias gradient has
        ("squared_relu", 1, False, True),  # no function of torch's
    ],
)
def test_where_the_operator_stays(name: str, numel: int, training: bool, stays: bool) -> None:
    x = torch.randn(numel, requires_grad=training)
    found = operators(lambda x: fusedact.bias_act(x, None, name), x)
    assert found == ["fusedact.bias_act"] * stays


def test_free_shapes_and_exports_keep_it() -> None:
    assert operators(lambda x: fusedact.gelu(x), torch.randn(8, 8), dynamic=True) == ["fusedact.bias_act"]
    program = torch.export.export(fusedact.nn.GELU(), (torch.randn(8),))
    assert "fusedact.bias_act" in str(program.graph)


def test_what_is_wrong_is_explained_by_the_operator() -> None:
    function = torch.compile(lambda x, b: fusedact.gelu(x, b), backend="aot_eager")
    with pytest.raises(Exception, match="bias has 1 elements, but x has 4 channels"):
        function(torch.randn(3, 4), torch.randn(1))
