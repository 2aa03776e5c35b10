"""fusedact.nn: drop-ins for torch.nn's activation classes, and layers whose checkpoints move both ways."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from cases import ROWS, legal, row_id, settings
from torch import Tensor, nn

import fusedact
from fusedact.registry import Activation

REPLACED = [row for row in ROWS if row.torch_module]
rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
replaced = pytest.mark.parametrize("row", REPLACED, ids=row_id)

# Constructor arguments of torch.nn's classes that differ from the row's parameters.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "PReLU": [{}, {"num_parameters": 6, "init": 0.1}],
    "RReLU": [{}, {"lower": 0.1, "upper": 0.4}],
    "Threshold": [{"threshold": 0.1, "value": -2.0}],
}


def fused(row: Activation) -> type[nn.Module]:
    return getattr(fusedact.nn, row.module)


def constructions(row: Activation) -> list[dict[str, Any]]:
    """Arguments that torch.nn's class takes, too; with inplace=True where it has that."""
    takes = inspect.signature(row.torch_module).parameters
    cases = ARGUMENTS.get(row.module) or [s for s in settings(row) if set(s) <= set(takes)]
    return cases + [{**cases[0], "inplace": True}] * ("inplace" in takes)


def same(mine: nn.Module, theirs: nn.Module, *inputs: Tensor, **limits: float) -> None:
    """Equal outputs and gradients, of inputs and parameters, in float64 up to rounding."""
    a, b = ([t.detach().clone().requires_grad_() for t in inputs] for _ in range(2))
    y, wanted = mine(*(t * 1 for t in a)), theirs(*(t * 1 for t in b))
    limits = limits or {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(y, wanted, **limits)
    y.sin().sum().backward()
    wanted.sin().sum().backward()
    torch.testing.assert_close([t.grad for t in a], [t.grad for t in b], **limits)
    theirs_grads = [p.grad for p in theirs.parameters()]
    torch.testing.assert_close([p.grad for p in mine.parameters()], theirs_grads, **limits)


@replaced
def test_drop_in(row: Activation) -> None:
    """isinstance, repr, state_dict, attributes and numbers are those of torch.nn's class."""
    for arguments in constructions(row):
        mine, theirs = fused(row)(**arguments).double().eval(), row.torch_module(**arguments).double().eval()
        assert isinstance(mine, row.torch_module)
        assert repr(mine) == repr(theirs)
        assert type(mine).__name__ == row.module
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        theirs.load_state_dict(mine.state_dict())
        mine.load_state_dict(theirs.state_dict())
        public = {k: v for k, v in vars(theirs).items() if not k.startswith("_")}
        assert {k: vars(mine)[k] for k in public} == public
        # hardsigmoid: torch's own float64 slope holds a float32 1/6
        limits = {"rtol": 1e-7, "atol": 1e-9} if row.module == "Hardsigmoid" else {"rtol": 1e-9, "atol": 1e-9}
        same(mine, theirs, torch.randn(5, 6, dtype=torch.float64) * 3, **limits)


@replaced
def test_the_same_arguments_in_the_same_order(row: Activation) -> None:
    """Names, order and defaults; so positional calls mean the same."""
    mine, theirs = (list(inspect.signature(c).parameters.values()) for c in (fused(row), row.torch_module))
    assert [(p.name, p.default) for p in mine] == [(p.name, p.default) for p in theirs]


@rows
def test_pickle_deepcopy_and_torch_save(row: Activation) -> None:
    module = fused(row)(**(ARGUMENTS.get(row.module, [{}])[-1]))
    x = torch.randn(4, 6)
    module.eval()
    wanted = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert type(again) is type(module)
        assert repr(again) == repr(module)
        torch.testing.assert_close(again(x), wanted, rtol=0, atol=0)


@rows
def test_modules_agree_with_functions(row: Activation) -> None:
    for params in settings(row):
        takes = inspect.signature(fused(row)).parameters
        if not set(params) <= set(takes) or row.module in ARGUMENTS:
            continue
        x = torch.randn(3, 6)
        module = fused(row)(**params)
        torch.testing.assert_close(module(x), getattr(fusedact, row.name)(x, **params), rtol=0, atol=0)
        for name, value in params.items():
            assert f"{value}" in repr(module), f"repr {module!r} does not say {name}={value}"


@rows
def test_inplace_modules(row: Activation) -> None:
    if "inplace" not in inspect.signature(fused(row)).parameters:
        pytest.skip("torch's class has no inplace")
    arguments = ARGUMENTS.get(row.module, [{}])[0]
    module, x = fused(row)(**arguments, inplace=True).eval(), torch.randn(3, 6)
    wanted = fused(row)(**arguments).eval()(x)
    assert module(x) is x
    torch.testing.assert_close(x, wanted, rtol=0, atol=0)
    if not row.torch_module:  # torch's own repr does not always say so
        assert "inplace=True" in repr(module)


@rows
def test_wrong_arguments_raise_at_construction(row: Activation) -> None:
    if row.module == "Identity":
        pytest.skip("torch.nn.Identity takes anything")
    with pytest.raises(TypeError):
        fused(row)(no_such_parameter=1)


def test_rrelu_draws_in_training_only() -> None:
    module, x = fusedact.nn.RReLU(0.1, 0.4), -torch.ones(1000)
    slopes = -module(x)
    assert 0.1 <= slopes.min() < 0.12
    assert 0.38 < slopes.max() <= 0.4
    assert torch.equal(module.eval()(x), torch.full((1000,), -0.25))


def test_prelu_and_swish_learn() -> None:
    for module, name in (
        (fusedact.nn.PReLU(3), "weight"),
        (fusedact.nn.Swish(learnable=True, num_parameters=3), "beta"),
    ):
        assert [n for n, _ in module.named_parameters()] == [name]
        before = getattr(module, name).detach().clone()
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        module(torch.randn(8, 3, 4)).square().sum().backward()
        optimiser.step()
        assert (getattr(module, name) != before).all()


# ---- layers ---------------------------------------------------------------------------------------------------------

# Class, constructor arguments, input shapes (batched and, where torch allows it, unbatched).
LAYERS: list[tuple[str, tuple[Any, ...], dict[str, Any], list[list[tuple[int, ...]]]]] = [
    ("Linear", (6, 5), {}, [[(3, 6)], [(2, 3, 6)], [(6,)], [(0, 6)]]),
    ("Linear", (6, 5), {"bias": False}, [[(3, 6)]]),
    ("Bilinear", (4, 3, 5), {}, [[(2, 4), (2, 3)], [(4,), (3,)]]),
    ("Conv1d", (4, 6, 3), {"padding": 1}, [[(2, 4, 9)], [(4, 9)]]),
    ("Conv2d", (4, 6, 3), {"stride": 2, "groups": 2, "bias": False}, [[(2, 4, 9, 8)], [(4, 9, 8)]]),
    ("Conv2d", (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, [[(2, 4, 9, 8)], [(4, 9, 8)]]),
    ("Conv2d", (4, 6, (3, 1)), {"padding": "same", "dilation": 2}, [[(2, 4, 9, 8)]]),
    ("Conv3d", (2, 3, 2), {}, [[(2, 2, 4, 5, 3)], [(2, 4, 5, 3)]]),
    ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "output_padding": 1}, [[(2, 4, 5)], [(4, 5)]]),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "groups": 2}, [[(2, 4, 5, 4)], [(4, 5, 4)]]),
    ("ConvTranspose3d", (2, 3, 2), {"bias": False}, [[(2, 2, 3, 4, 3)], [(2, 3, 4, 3)]]),
]
layers = pytest.mark.parametrize(
    ("name", "arguments", "options", "shapes"), LAYERS, ids=lambda v: v if isinstance(v, str) else ""
)
ACTIVATIONS: list[tuple[str | None, dict[str, Any], nn.Module]] = [
    (None, {}, nn.Identity()),
    ("gelu", {}, nn.GELU()),
    ("gelu", {"approximate": "tanh"}, nn.GELU("tanh")),
    ("leaky_relu", {"negative_slope": 0.2}, nn.LeakyReLU(0.2)),
    ("sigmoid", {}, nn.Sigmoid()),
]


@layers
@pytest.mark.parametrize(("activation", "params", "torch_activation"), ACTIVATIONS, ids=lambda v: str(v)[:20])
def test_layer_is_torch_layer_then_activation(
    name, arguments, options, shapes, activation, params, torch_activation
) -> None:
    base = getattr(nn, name)
    mine = getattr(fusedact.nn, name)(*arguments, **options, activation=activation, **params).double()
    theirs = base(*arguments, **options).double()
    assert isinstance(mine, base)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(mine.state_dict())  # a checkpoint moves there ...
    mine.load_state_dict(base(*arguments, **options).double().state_dict())  # ... and here
    theirs.load_state_dict(mine.state_dict())
    for shape in shapes:
        mine.zero_grad()
        theirs.zero_grad()
        same(mine, Then(theirs, torch_activation), *(torch.randn(s, dtype=torch.float64) for s in shape))


class Then(nn.Module):
    """A layer of one or several inputs, then an activation."""

    def __init__(self, layer: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.activation(self.layer(*inputs))


@layers
def test_layers_initialise_as_torch(name, arguments, options, shapes) -> None:
    """The same seed, the same weights: nothing is initialised unasked."""
    torch.manual_seed(5)
    mine = getattr(fusedact.nn, name)(*arguments, **options, activation="relu")
    torch.manual_seed(5)
    theirs = getattr(nn, name)(*arguments, **options)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@rows
def test_linear_with_every_activation(row: Activation) -> None:
    takes = inspect.signature(fused(row)).parameters.values()
    needs = {p.name: row.defaults()[p.name] for p in takes if p.default is p.empty and p.name in row.defaults()}
    layer = fusedact.nn.Linear(6, 5, activation=row.name, **needs).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    wanted = fusedact.reference.bias_act(nn.functional.linear(x, layer.weight), layer.bias, row.name)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)
    assert row.name in repr(layer) or row.module in repr(layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)
    again = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(again(x), layer(x), rtol=0, atol=0)


def test_conv_with_prelu_learns_one_slope_per_channel() -> None:
    layer = fusedact.nn.Conv2d(3, 4, 3, activation="prelu", num_parameters=4).double()
    assert set(layer.state_dict()) == {"weight", "bias", "activation.weight"}
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    wanted = nn.functional.prelu(nn.functional.conv2d(x, layer.weight, layer.bias), layer.activation.weight)
    torch.testing.assert_close(layer(x), wanted)
    layer(x).sum().backward()
    assert layer.activation.weight.grad.shape == (4,)


def test_conv_keeps_channels_last() -> None:
    layer = fusedact.nn.Conv2d(3, 4, 3, activation="silu").to(memory_format=torch.channels_last)
    y = layer(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_bias_act_module() -> None:
    module = fusedact.nn.BiasAct(4, "leaky_relu", dim=1, negative_slope=0.3).double()
    assert [n for n, _ in module.named_parameters()] == ["bias"]
    assert module.bias.shape == (4,)
    nn.init.normal_(module.bias)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), nn.functional.leaky_relu(x + module.bias[:, None], 0.3))
    assert "leaky_relu" in repr(module).lower() or "LeakyReLU" in repr(module)
    again = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(again(x), module(x), rtol=0, atol=0)


def test_init_for_activation_is_offered_not_forced() -> None:
    layer = fusedact.nn.Linear(64, 64, activation="relu")
    before = layer.weight.detach().clone()
    fusedact.nn.init_for_activation_(layer)
    assert not torch.equal(before, layer.weight)
    gain = nn.init.calculate_gain("relu")
    assert layer.weight.std().item() == pytest.approx(gain / 64**0.5, rel=0.1)


def test_an_unknown_activation_raises_at_construction() -> None:
    with pytest.raises(ValueError, match="gelu"):
        fusedact.nn.Linear(3, 4, activation="gellu")
    with pytest.raises(TypeError, match="approx"):
        fusedact.nn.Linear(3, 4, activation="gelu", approx="tanh")
    assert legal(fusedact.registry.get("gelu"), {"approximate": "tanh"})


def test_modules_compile_and_export() -> None:
    net = nn.Sequential(fusedact.nn.Conv1d(3, 4, 3, activation="mish"), fusedact.nn.PReLU(4), fusedact.nn.SELU(True))
    x = torch.randn(2, 3, 8)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))
