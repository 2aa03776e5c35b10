"""Which calls stay operators under torch.compile, and that the others compute the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import fusedact
from fusedact import lowering

# Two roundings of half a unit may differ by one; a bias gradient adds up to 30 terms in float32.
LIMITS = {torch.float32: {"rtol": 1e-6, "atol": 3e-5}, torch.bfloat16: {"rtol": 2.0**-7, "atol": 3e-5}}
CLOSE, LARGE = lowering.CLOSE["gelu"], lowering.SMALL + 1


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
    rows = 2 * CLOSE // 7
    assert operators(function, torch.randn(rows, 6), w, b) == []  # the product does half of it
    assert operators(function, torch.randn(rows + 1, 6), w, b) == ["fusedact.linear_act"]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("settings", [{}, {"gate": "second"}, {"layout": "interleaved", "dim": 0}], ids=str)
def test_a_gate(settings: dict[str, Any], dtype: torch.dtype) -> None:
    x = torch.randn(8, 6).to(dtype)
    function = lambda x: fusedact.gated_act(x, None, "gelu", **settings)  # noqa: E731
    assert operators(function, x) == []
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x), **LIMITS[dtype])
    pair = lambda a, b: fusedact.gated_act((a, b), None, "gelu")  # noqa: E731
    a, b = torch.randn(2, CLOSE, 1)
    assert operators(pair, a, b) == []
    torch.testing.assert_close(torch.compile(pair, backend="aot_eager")(a, b), pair(a, b))


@pytest.mark.parametrize(
    ("numel", "settings"),
    [
        (2 * CLOSE + 2, {}),
        (8, {"bias": torch.zeros(8)}),
        (8, {"limit": 1.0}),
        (8, {"alpha": 1.5}),
        (8, {"offset": 1.0}),
    ],
    ids=str,
)
def test_a_gate_that_stays(numel: int, settings: dict[str, Any]) -> None:
    x = torch.randn(1, numel)
    assert operators(lambda x: fusedact.gated_act(x, activation="gelu", **settings), x) == ["fusedact.gated_act"]


def test_what_is_wrong_with_a_gate_is_explained_by_the_operator() -> None:
    function = torch.compile(fusedact.gated_act, backend="aot_eager")
    for shape, settings in (((3, 5), {}), ((3, 4), {"dim": 2}), ((3, 4), {"gate": "third"})):
        with pytest.raises(Exception, match="gated_act"):
            function(torch.randn(shape), **settings)


def test_a_fused_linear() -> None:
    """Between the two limits it is the product before it that decides."""
    layers = nn.Sequential(nn.Linear(6, 8), nn.GELU())
    for rows, stays in ((2 * CLOSE // 8, False), (2 * CLOSE // 8 + 1, True)):
        assert operators(fusedact.fuse(layers), torch.randn(rows, 6)) == ["fusedact.bias_act"] * stays


@pytest.mark.parametrize(
    ("name", "numel", "training", "with_bias", "stays"),
    [
        ("gelu", CLOSE, False, False, False),
        ("gelu", CLOSE + 1, False, False, True),
        ("gelu", CLOSE, True, True, False),
        ("gelu", CLOSE + 1, True, True, True),
        ("tanh", lowering.SMALL, False, False, False),
        ("tanh", LARGE, False, False, True),
        ("relu", LARGE, False, True, False),  # a loop of its own has nothing to save
        ("relu", LARGE, True, False, False),
        ("relu", LARGE, True, True, True),  # but a bias gradient has
        ("relu", lowering.SMALL, True, True, False),
        ("squared_relu", 1, False, False, True),  # no function of torch's
    ],
)
def test_where_the_operator_stays(name: str, numel: int, training: bool, with_bias: bool, stays: bool) -> None:
    x = torch.randn(numel, 1, requires_grad=training)
    bias = torch.randn(1, requires_grad=training) if with_bias else None
    found = operators(lambda x, b: fusedact.bias_act(x, b, name), x, bias)
    assert found == ["fusedact.bias_act"] * stays


def test_free_shapes_and_exports_keep_it() -> None:
    assert operators(lambda x: fusedact.gelu(x), torch.randn(8, 8), dynamic=True) == ["fusedact.bias_act"]
    program = torch.export.export(fusedact.nn.GELU(), (torch.randn(8),))
    assert "fusedact.bias_act" in str(program.graph)


def test_what_is_wrong_is_explained_by_the_operator() -> None:
    function = torch.compile(lambda x, b: fusedact.gelu(x, b), backend="aot_eager")
    with pytest.raises(Exception, match="bias has 1 elements, but x has 4 channels"):
        function(torch.randn(3, 4), torch.randn(1))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="Inductor lays out for oneDNN's convolutions")
def test_convolutions_keep_the_layout_that_inductor_gives_them() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), fusedact.nn.Mish(), nn.Conv2d(16, 8, 3, padding=1))
    x = torch.randn(4, 8, 24, 24)
    assert lowering.SMALL < 4 * 16 * 24 * 24
    got, code = run_and_get_code(torch.compile(net), x)
    channels_last = r"\(4, 16, 24, 24\), \(9216, 1, 384, 16\), 'torch.ops.fusedact.bias_act.default'"
    assert re.search(channels_last, code[0]), code[0]
    torch.testing.assert_close(got, net(x))


def test_a_mask_survives_a_change_of_layout() -> None:
    torch._dynamo.reset()
    first, last = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
    function = lambda x: last(fusedact.bias_act(first(x), None, "hardtanh", gain=2.0, save="mask"))  # noqa: E731
    x = torch.randn(4, 8, 24, 24, requires_grad=True)
    results = []
    for call in (function, torch.compile(function)):
        (slope,) = torch.autograd.grad(call(x).square().sum(), x)
        results.append(slope)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
