"""fusedact.fuse: what is found, what must be left alone, and that nothing else about a model changes."""

from __future__ import annotations

import collections
import copy
import functools
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fusedact
from fusedact.fusing import recognise

ACTIVATIONS = {
    "relu", "relu_", "gelu", "silu", "silu_", "sigmoid", "tanh", "hardswish", "hardswish_", "hardsigmoid", "hardtanh",
    "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "mish", "softplus", "erf", "_prelu_kernel",
}  # fmt: skip


class Count(TorchDispatchMode):
    """What ran: "bias" for a fused call with a bias, "alone" without, "unfused" for torch's own activations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet._qualified_op_name in ("fusedact::bias_act", "fusedact::bias_act_"):
            self.seen["bias" if args[1] is not None else "alone"] += 1
        elif packet._qualified_op_name in ("fusedact::linear_act", "fusedact::linear_act_saving"):
            self.seen["bias" if args[2] is not None else "alone"] += 1
        elif packet._qualified_op_name == "fusedact::gated_act":
            self.seen["gate"] += 1
        elif packet._qualified_op_name == "fusedact::batch_norm_act":
            self.seen["norm"] += 1
        elif packet._qualified_op_name == "fusedact::bias_act_epilogue":
            self.seen["scale"] += 1
        elif packet.__name__ in ACTIVATIONS:
            self.seen["unfused"] += 1
        return func(*args, **(kwargs or {}))


def ran(model: nn.Module, *inputs: Any) -> dict[str, int]:
    """What a call of the model runs."""
    with torch.no_grad(), Count() as count:
        model(*inputs)
    return dict(count.seen)


def same(fused: nn.Module, model: nn.Module, *inputs: Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Outputs, input and parameter gradients of both, in training and in evaluation mode, and the state_dicts' keys."""
    assert fused.state_dict().keys() == model.state_dict().keys()
    modes = model.training
    for training in (True, False):
        results = []
        for m in (fused, model):
            m.train(training)
            m.zero_grad()
            given = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
            y = m(*given)
            y.sin().sum().backward()
            results.append([y.detach(), *(t.grad for t in given), *(p.grad for p in m.parameters())])
        for a, b in zip(*results, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    for m in (fused, model):
        m.train(modes)


# Forms. Each class is one way to write an activation; `runs` is what a call must run once fused.


class Block(nn.Module):
    """Layers for the forms below."""

    runs: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.up, self.out = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.0)
        self.bias = nn.Parameter(torch.randn(8))
        self.slope, self.steep = 0.3, 1.702
        self.gate: nn.Module | None = None
        self.fn = F.silu


FORMS: list[type[Block]] = []


def form(**runs: int) -> Callable[[type[Block]], type[Block]]:
    """Adds a class to FORMS, with what a call must run."""

    def add(cls: type[Block]) -> type[Block]:
        cls.runs = runs
        FORMS.append(cls)
        return cls

    return add


@form(bias=1)
class NestedModules(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.act(self.fc(x))))


@form(bias=1)
class ModulesInTurn(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        x = self.act(x)
        x = self.drop(x)
        return self.out(x)


@form(bias=1)
class OtherNames(Block):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x)
        residual = x * 2
        activated = self.act(hidden)
        return self.out(activated) + residual


@form(bias=1)
class LocalAlias(Block):
    def forward(self, x: Tensor) -> Tensor:
        act, layer = self.act, self.fc
        return act(self.fc(x)) + 0 * layer(x)


@form(bias=1)
class FunctionWithSettings(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.fc(x), approximate="tanh"))


@form(bias=1)
class FunctionInplace(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(x), inplace=True))


@form(bias=1)
class TensorMethod(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()


@form(bias=1)
class FunctionHeld(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.fc(x))


@form(bias=1)
class HandWrittenSilu(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return h * torch.sigmoid(h)


@form(bias=1)
class HandWrittenSteps(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        s = torch.sigmoid(self.steep * h)
        h = h * s
        return self.out(h)


@form(bias=1)
class HandWrittenGelu(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


@form(bias=1)
class HandWrittenErf(Block):
    def forward(self, x: Tensor) -> Tensor:
        cdf = 0.5 * (1.0 + torch.erf((x := self.fc(x)) / math.sqrt(2.0))) if False else None
        del cdf
        h = self.fc(x)
        cdf = 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0)))
        return h * cdf


@form(bias=1)
class SquaredRelu(Block):
    def forward(self, x: Tensor) -> Tensor:
        relu = F.relu(self.fc(x))
        squared = torch.square(relu)
        return self.out(squared)


@form(bias=1)
class Where(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return torch.where(h > 0, h, self.slope * h)


@form(bias=1)
class Scaled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.fc(x)) * 1.7881293296813965


@form(bias=1)
class Clamped(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).clamp(min=0)


@form(bias=1)
class AddedParameter(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.up.weight + self.bias)


@form(bias=1)
class FunctionalLayer(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(F.linear(x, self.fc.weight, self.bias))


@form(bias=1)
class FunctionalLayerKeyword(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(F.linear(x, self.fc.weight, bias=self.bias))


@form(gate=1)
class GateOfModules(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.fc(x)) * self.up(x))


@form(gate=1)
class GateInSteps(Block):
    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.fc(x))
        value = self.up(x)
        x = value * gate
        return self.out(x)


@form(gate=1)
class GateOfChunks(Block):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc(x).chunk(2, dim=-1)
        return value * F.gelu(gate, approximate="tanh")


@form(gate=1)
class GateClamped(Block):
    def forward(self, x: Tensor) -> Tensor:
        both = self.fc(x)
        gate, up = both[..., ::2], both[..., 1::2]
        gate = gate.clamp(min=None, max=self.slope)
        up = up.clamp(min=-self.slope, max=self.slope)
        glu = gate * torch.sigmoid(gate * self.steep)
        return (up + 1) * glu


@form(gate=2, bias=1)
class TorchsGlu(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.GLU(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.gate is not None
        both = torch.cat([self.fc(x), self.up(x)], -1)
        return torch.relu(self.out(self.gate(both))) + F.glu(input=both, dim=1)


@form(alone=1)
class Alone(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.up(x))


@form(alone=1, bias=1)
class ActivationOfActivation(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.fc(x))
        return 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))


@form(bias=3)
class Branches(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        if self.gate is not None:
            x = self.gate(x).sigmoid()
        for i in range(2):
            x = self.fc(x)
            x = self.act(x)
            if i > 5:
                break
        else:
            with torch.no_grad():
                y = F.relu(self.out(x))
            x = x + y
        return x


@form(bias=2)
class LayersInALoop(Block):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < len(self.layers) - 1 else layer(x)
        return x


@form(bias=1)
class OtherMethod(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.__hidden(x))

    def __hidden(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


def doubled(method: Any) -> Any:
    """A decorator with a closure."""

    @functools.wraps(method)
    def twice(self: Any, *args: Any, **kwargs: Any) -> Any:
        return 2 * method(self, *args, **kwargs)

    return twice


@form(bias=1)
class Decorated(Block):
    @doubled
    @torch.enable_grad()
    def forward(self, x: Tensor, *, power: float = 2.0) -> Tensor:
        return self.act(self.fc(x)) * power


@form(bias=1)
class Super(NestedModules):
    def forward(self, x: Tensor) -> Tensor:
        assert super().__init__ is not None
        return self.act(self.fc(x)) + __class__.runs["bias"]  # type: ignore[name-defined]


@form(bias=2)
class Comprehension(Block):
    def forward(self, x: Tensor) -> Tensor:
        return sum(torch.tanh(layer(x)) for layer in (self.fc, self.out))  # type: ignore[return-value]


@form(bias=1)
class Keywords(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(input=x)) if x is None else self.act(self.fc(x))


class OwnActivation(nn.Module):
    """Anyone's activation."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        if self.beta == 1.0:
            return x * x.sigmoid()
        return x * torch.sigmoid(self.beta * x)


def own_function(x: Tensor, scale: float = 1.0) -> Tensor:
    """Anyone's function."""
    return scale * x * torch.tanh(F.softplus(x))


@form(bias=2)
class OwnActivations(Block):
    def __init__(self) -> None:
        super().__init__()
        self.act = OwnActivation(1.5)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return own_function(self.out(self.act(self.fc(x))))


@form(bias=1)
class Slopes(Block):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU(8)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


@form(bias=2, alone=1)
class Sequence(Block):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 8), nn.Softplus(beta=2.0), nn.Linear(8, 8, bias=False), nn.LayerNorm(8), nn.Hardswish(),
            nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2, inplace=True)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("cls", FORMS, ids=lambda c: c.__name__)
def test_forms(cls: type[Block]) -> None:
    """Every form is found, runs fused, and computes the same; unfuse brings the author's code back."""
    model = cls().double()
    fused, report = fusedact.fuse(model, report=True)
    x = torch.randn(5, 8, dtype=torch.float64)
    assert report.entries
    assert report.share == 1.0, str(report)
    assert not report.unread, str(report)
    assert ran(fused, x) == cls.runs
    assert "bias" not in ran(model, x)
    assert "alone" not in ran(model, x)
    same(fused, model, x)
    fusedact.unfuse(fused)
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]
    torch.testing.assert_close(fused(x), model(x), rtol=0, atol=0)
    assert set(ran(fused, x)) <= {"unfused"}


CONVOLUTIONS = [
    (nn.Conv1d, (2, 3, 7)), (nn.Conv2d, (2, 3, 7, 6)), (nn.Conv3d, (2, 3, 5, 4, 3)), (nn.ConvTranspose1d, (2, 3, 5)),
    (nn.ConvTranspose2d, (2, 3, 5, 4)), (nn.ConvTranspose3d, (2, 3, 3, 4, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shape"), CONVOLUTIONS, ids=lambda v: getattr(v, "__name__", ""))
def test_convolutions(kind: Any, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(kind(3, 4, 3), nn.SiLU()).double()
    x = torch.randn(shape, dtype=torch.float64)
    assert ran(fusedact.fuse(model), x) == {"bias": 1}
    same(fusedact.fuse(model), model, x)


NORMS: dict[str, dict[str, Any]] = {
    "plain": {}, "no affine": {"affine": False}, "average": {"momentum": None},
    "batch only": {"track_running_stats": False},
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm(name: str) -> None:
    """Large inputs are normalised and activated in one operator, with the same running statistics; small in two."""
    model = nn.Sequential(nn.BatchNorm2d(8, **NORMS[name]), nn.SiLU()).double()
    fused = fusedact.fuse(model)
    large, small = (torch.randn(2, 8, n, n, dtype=torch.float64) for n in (192, 4))
    for x in (large, small):
        same(fused, model, x, rtol=1e-8, atol=1e-10)
        for a, b in zip(fused.buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert ran(fused.train(), large) == {"norm": 1}
    assert ran(fused.eval(), large) == ({"norm": 1} if name == "batch only" else {"scale": 1})
    assert ran(fused, small) == {"alone": 1}


# What must be left alone. `runs` is what the fused model may run.


@form()
class _Last(Block):
    """Ends the forms above; those below are tested on their own."""

    def forward(self, x: Tensor) -> Tensor:
        return x


FORMS.pop()
LEFT: list[type[Block]] = []


def left(**runs: int) -> Callable[[type[Block]], type[Block]]:
    """Adds a class to LEFT, with what a call may run."""

    def add(cls: type[Block]) -> type[Block]:
        cls.runs = runs
        LEFT.append(cls)
        return cls

    return add


@left(alone=1)
class SecondReader(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return self.act(h) + h


@left(alone=1)
class ReadInABranch(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        y = self.act(h)
        if x.sum() < 1e9:
            y = y + h
        return y


@left(alone=2)
class ReadInTheNextTurn(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        y = x
        for _ in range(2):
            y = y + h
            h = self.fc(y)
            y = self.act(h)
        return y


@left(alone=1)
class ReadInAnotherScope(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        later = lambda: h  # noqa: E731
        y = self.act(h)
        return y + later()


@left(alone=1)
class Stored(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = h = self.fc(x)
        return self.act(h) + self.seen


@left(alone=1)
class PerhapsReplaced(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if x.sum() > 1e9:
            h = x
        y = self.act(h)
        return y  # noqa: RET504  the form is the point


@left(unfused=1)
class SigmoidReadTwice(Block):
    def forward(self, x: Tensor) -> Tensor:
        s = torch.erf(x)
        y = x * s
        if x.sum() > 1e9:
            s = x
        return y + s


@left(alone=1)
class WrittenInBetween(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        s = torch.sigmoid(x)
        x += 1
        return x * s


@left(alone=2)
class WrittenByAModule(Block):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.Hardtanh(-0.5, 0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        s = torch.sigmoid(x)
        y = self.relu(x)
        return x * s + y


@left(unfused=1)
class NotThatConstant(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0)))) if False else torch.erf(x)


@left()
class NoActivation(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x.pow(2).mean(-1, keepdim=True) * x.cos() + torch.sin(x) + x.clamp(-1, 1)


@left(unfused=1)
class KinkWithAnotherSlope(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(torch.maximum(self.fc(x), torch.zeros_like(x)))


@pytest.mark.parametrize("cls", LEFT, ids=lambda c: c.__name__)
def test_left_alone(cls: type[Block]) -> None:
    """No bias is taken from a layer whose result somebody else reads, and no formula is taken for another."""
    model = cls().double()
    fused = fusedact.fuse(model)
    x = torch.randn(5, 8, dtype=torch.float64)
    got = ran(fused, x)
    got.pop("unfused", None) if "unfused" not in cls.runs else None
    assert got == cls.runs
    same(fused, model, x)


def test_maximum_has_another_slope_at_its_kink() -> None:
    """Its values are relu's, and half of its gradient at 0 is not."""
    assert recognise.identify(lambda x: torch.maximum(x, torch.zeros_like(x))) is None
    assert recognise.identify(lambda x: torch.log(1 + torch.exp(x))) is None, "overflows where softplus does not"
    found = recognise.identify(lambda x: x * (x > 0))
    assert found is not None
    assert found.row.name == "relu"


# Layers that must keep their bias


def pair(layer: nn.Module) -> nn.Module:
    """A model that calls an activation after a layer, and a Sequential of both."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.act = layer, nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.layer(x))

    return Pair()


class Adapted(nn.Module):
    """A layer wrapped by an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.weight, self.bias = self.base.weight, self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class AdaptedInside(nn.Linear):
    """An adapter that is a Linear."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.b(self.a(x))


def hooked() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


def replaced_forward() -> nn.Module:
    layer = nn.Linear(8, 8)
    old = layer.forward
    layer.forward = lambda x: old(x) * 3  # type: ignore[method-assign]
    return layer


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "parametrised": (
        lambda: torch.nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), "parametrised"),
    "weight_norm": (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "parametrised"),
    "old weight_norm": (lambda: torch.nn.utils.weight_norm(nn.Linear(8, 8)), "hooks"),
    "spectral_norm": (lambda: torch.nn.utils.spectral_norm(nn.Linear(8, 8)), "hooks"),
    "hook": (hooked, "hooks"),
    "adapter": (Adapted, "whose bias cannot be taken out"),
    "adapter that is a Linear": (AdaptedInside, "whose bias cannot be taken out"),
    "replaced forward": (replaced_forward, "forward was replaced"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KEPT)
def test_layers_that_keep_their_bias(name: str) -> None:
    """They are left alone, with the reason, in methods and in a Sequential; the activation alone is fused."""
    make, why = KEPT[name]
    x = torch.randn(5, 8)
    for model in (pair(make()), nn.Sequential(make(), nn.SiLU())):
        report = fusedact.explain(model)
        fused = fusedact.fuse(model.eval(), inplace=True)
        assert fused is model
        assert any(why in e.reason for e in report.entries), str(report)
        assert "bias" not in ran(fused, x)
        found = fused(x)
        torch.testing.assert_close(found, fusedact.unfuse(fused)(x), rtol=1e-5, atol=1e-6)


def test_quantised_layers() -> None:
    model = pair(nn.Linear(8, 8))
    quantised = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    try:
        model = quantised(model, {nn.Linear}, dtype=torch.qint8)
    except RuntimeError as error:
        pytest.skip(f"no quantised kernels here: {error}")
    x = torch.randn(5, 8)
    fused = fusedact.fuse(model)
    assert "bias" not in ran(fused, x)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-6)


def test_lazy_layers() -> None:
    """A lazy layer is left and reported; once it is there it is a Linear, and the same code fuses it."""
    model = pair(nn.LazyLinear(8))
    fused = fusedact.fuse(model)
    assert any("lazily" in e.reason for e in fusedact.explain(model).entries)
    x = torch.randn(5, 3)
    assert fused(x).shape == (5, 8)
    assert ran(fusedact.fuse(fused), x) == {"bias": 1}


# What changes after fusing is seen at the next call


def test_hooks_that_come_later() -> None:
    """A hook on the layer reads what stands before the activation, on the activation what it was given."""
    model = pair(nn.Linear(8, 8))
    fused = fusedact.fuse(model)
    x = torch.randn(5, 8)
    seen: list[Tensor] = []
    handles = [fused.layer.register_forward_hook(lambda m, args, output: seen.append(output))]
    handles += [fused.act.register_forward_pre_hook(lambda m, args: seen.append(args[0]))]
    fused(x)
    torch.testing.assert_close(seen, [model.layer(x)] * 2, rtol=1e-6, atol=1e-6)
    for handle in handles:
        handle.remove()
    assert ran(fused, x) == {"bias": 1}
    with torch.nn.modules.module.register_module_forward_hook(lambda m, args, output: seen.append(m)):
        fused(x)
    assert fused.layer in seen
    assert fused.act in seen


@pytest.mark.parametrize("change", ["layer", "act", "forward", "parametrise"])
def test_modules_that_are_replaced_later(change: str) -> None:
    model = pair(nn.Linear(8, 8))
    fused = fusedact.fuse(model)
    for m in (fused, model):
        torch.manual_seed(1)
        if change == "layer":
            m.layer = Adapted()
        elif change == "act":
            m.act = nn.LayerNorm(8)
        elif change == "forward":
            m.layer.forward = lambda x: x + 1
        else:
            torch.nn.utils.parametrizations.weight_norm(m.layer)
    x = torch.randn(5, 8)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-6)


def test_attributes_that_change_later() -> None:
    """A constant that the formula reads off the instance, and a torch.nn activation's parameters."""
    for model, name in ((HandWrittenSteps(), "steep"), (Where(), "slope")):
        fused = fusedact.fuse(model)
        x = torch.randn(5, 8)
        for m in (fused, model):
            setattr(m, name, 0.77)
        torch.testing.assert_close(fused(x), model(x))
    leaky = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.1))
    fused = fusedact.fuse(leaky)
    fused[1].negative_slope = leaky[1].negative_slope = 0.6
    torch.testing.assert_close(fused(x), leaky(x))
    assert ran(fused, x) == {"bias": 1}


STEEPNESS = 1.702


class ReadsAGlobal(Block):
    """A constant of the module that it is written in."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return h * torch.sigmoid(STEEPNESS * h)


def test_globals_that_change_later(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = ReadsAGlobal(), torch.randn(5, 8)
    fused = fusedact.fuse(model)
    assert ran(fused, x) == {"bias": 1}
    monkeypatch.setitem(globals(), "STEEPNESS", 0.9)
    torch.testing.assert_close(fused(x), model(x))


EVERYBODYS = nn.GELU()


class CallsEverybodys(Block):
    """An activation module that no model contains, as Transformers' `gelu`."""

    def forward(self, x: Tensor) -> Tensor:
        return EVERYBODYS(self.fc(x))


def test_modules_outside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = CallsEverybodys(), torch.randn(5, 8)
    fused = fusedact.fuse(model)
    assert ran(fused, x) == {"bias": 1}
    assert type(EVERYBODYS) is nn.GELU
    seen: list[Tensor] = []
    with EVERYBODYS.register_forward_pre_hook(lambda m, args: seen.append(args[0])):
        fused(x)
    torch.testing.assert_close(seen, [model.fc(x)], rtol=1e-6, atol=1e-6)
    assert ran(fused, x) == {"bias": 1}
    monkeypatch.setattr(EVERYBODYS, "approximate", "tanh")
    torch.testing.assert_close(fused(x), model(x))


def test_a_function_that_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: the same name and the same text of the caller, another function."""

    class Caller(Block):
        def forward(self, x: Tensor) -> Tensor:
            return own_function(self.fc(x)) * 2

    x = torch.randn(5, 8)
    assert fusedact.explain(Caller()).entries[0].what == "linear + mish × 2.0"
    monkeypatch.setitem(globals(), "own_function", lambda x: x * x.sigmoid())
    assert fusedact.explain(Caller()).entries[0].what == "linear + silu × 2.0"
    model = Caller()
    torch.testing.assert_close(fusedact.fuse(model)(x), model(x))


class Sealed(NestedModules):
    """A class that wants no subclass."""

    def __init_subclass__(cls) -> None:
        raise TypeError("Sealed has no subclasses")


def test_classes_that_cannot_change() -> None:
    model = nn.Sequential(Sealed())
    fused, report = fusedact.fuse(model, report=True)
    assert "Sealed has no subclasses" in report.left[0].reason
    assert type(fused[0]) is Sealed
    assert ran(fused, torch.randn(5, 8)) == {"alone": 1}


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_dtypes_that_the_operators_do_not_take(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU() if dtype is torch.int64 else nn.SiLU())
    x = torch.randn(5, 8).mul(9).to(dtype)
    torch.testing.assert_close(fusedact.fuse(model)(x), model(x))


def test_three_dimensions_and_slopes_along_another() -> None:
    """PReLU's slopes lie along dim 1, a Linear's bias along the last: both cannot be one call."""
    model = nn.Sequential(nn.Linear(8, 8), nn.PReLU(6)).double()
    same(fusedact.fuse(model), model, torch.randn(4, 6, 8, dtype=torch.float64))


# Nothing else about the model changes


def test_identity() -> None:
    """Modules, parameters, buffers, hooks, mode, dtype and names stay; shared modules stay shared."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(inplace=True))
    model.append(model[0])
    model.append(model[1])
    model.eval().to(torch.bfloat16)
    model.register_buffer("extra", torch.ones(3))
    modules = list(model.modules())
    kept = [model.state_dict(keep_vars=True)[k] for k in model.state_dict()]
    text = repr(model)
    fused = fusedact.fuse(model, inplace=True)
    assert fused is model
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.state_dict(keep_vars=True).values(), kept, strict=True))
    assert repr(model) == text
    assert isinstance(model[1], nn.ReLU)
    assert isinstance(model, nn.Sequential)
    assert model[5] is model[0]
    assert not any(m.training for m in model.modules())
    assert ran(model, torch.randn(5, 8).bfloat16()) == {"bias": 3}
    assert isinstance(model[:2], nn.Sequential)
    fusedact.fuse(model, inplace=True)
    fusedact.unfuse(model)
    assert type(model) is nn.Sequential
    assert type(model[1]) is nn.ReLU


def test_a_copy_is_fused_and_the_original_is_not() -> None:
    model = NestedModules()
    fused = fusedact.fuse(model)
    assert fused is not model
    assert type(model) is NestedModules
    assert isinstance(fused, NestedModules)
    assert type(fused).__name__ == "NestedModules"


@pytest.mark.parametrize("cls", [HandWrittenSteps, OwnActivations, Sequence, Decorated], ids=lambda c: c.__name__)
def test_copies_and_files(cls: type[Block]) -> None:
    """deepcopy, pickle, torch.save and the state_dict both ways."""
    model = cls()
    fused = fusedact.fuse(model)
    x = torch.randn(5, 8)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    copies = [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False)]
    for other in copies:
        assert ran(other, x) == cls.runs
        torch.testing.assert_close(other(x), fused(x), rtol=0, atol=0)
        fusedact.unfuse(other)
        assert type(other) is cls
    other = cls()
    other.load_state_dict(fused.state_dict())
    torch.testing.assert_close(other(x), fused(x))
    fused.load_state_dict(cls().state_dict())


def test_pickle_in_a_process_that_has_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes are made again from the source."""
    from fusedact.fusing import swap

    for cls in (HandWrittenSteps, OwnActivations, Sequence):
        fused = fusedact.fuse(cls())
        data = pickle.dumps(fused)
        monkeypatch.setattr(swap, "_CLASSES", {})
        other = pickle.loads(data)
        assert ran(other, torch.randn(5, 8)) == cls.runs
        assert fusedact.unfuse(other).__class__ is cls


def test_replicas() -> None:
    """As torch.nn.DataParallel makes them: copies of __dict__ with tensors for parameters."""
    fused = fusedact.fuse(NestedModules())
    x = torch.randn(5, 8)
    replica = fused._replicate_for_data_parallel()
    replica._modules = {k: m._replicate_for_data_parallel() for k, m in fused._modules.items() if m is not None}
    for name, module in replica._modules.items():
        for key, value in getattr(fused, name)._parameters.items():
            setattr(module, key, None if value is None else value.detach().clone())
    assert ran(replica, x) == {"bias": 1}
    torch.testing.assert_close(replica(x), fused(x))


def test_functional_call_and_transforms() -> None:
    fused, model = fusedact.fuse(m := ModulesInTurn()), m
    x = torch.randn(5, 8)
    parameters = {k: v.detach() for k, v in model.named_parameters()}

    def loss(m: nn.Module, p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(m, p, (x,)).sin().sum()

    for transform in (torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f), (None, 0))):
        got, wanted = (transform(functools.partial(loss, m))(parameters, x) for m in (fused, model))
        for key in wanted:
            torch.testing.assert_close(got[key], wanted[key], rtol=1e-4, atol=1e-5)


def test_autocast_and_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    model = ModulesInTurn()
    fused = fusedact.fuse(model)
    x = torch.randn(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused(x).dtype == torch.bfloat16
        assert ran(fused, x) == {"bias": 1}
        torch.testing.assert_close(fused(x), model(x), rtol=2e-2, atol=2e-2)
    results = []
    for m in (fused, model):
        given = x.clone().requires_grad_()
        checkpoint(m, given, use_reentrant=False).sin().sum().backward()
        results.append([given.grad, m.fc.weight.grad, m.fc.bias.grad])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_transformer_layers_of_torch() -> None:
    """torch's own TransformerEncoderLayer is written like anyone's, and holds its activation as a function."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True).double()
    fused, report = fusedact.fuse(model, report=True)
    assert report.fused
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert ran(fused.train(), x) == {"bias": 1}
    same(fused, model, x)


# The interface


def test_report() -> None:
    model = nn.Sequential(collections.OrderedDict(mlp=NestedModules(), tail=SecondReader(), noise=nn.RReLU()))
    report = fusedact.explain(model)
    assert [(e.name, e.fused) for e in report.entries] == [("mlp", True), ("tail", True), ("noise", False)]
    assert report.entries[0].what == "linear + gelu"
    assert "somebody else reads" in report.entries[1].reason
    assert "random" in report.entries[2].reason
    assert report.entries[0].text == "self.act(self.fc(x))"
    assert report.entries[0].line > 100
    assert report.share == pytest.approx(2 / 3)
    assert report.to_dict()["entries"][0]["fused"] is True
    assert [e.state for e in report.entries] == ["fused", "alone", "left"]
    assert "2 of 3 activations fused (67%), 1 of them alone" in str(report)
    assert type(model[0]) is NestedModules, "explain changes nothing"
    pytest.importorskip("rich")
    assert report.table().row_count == 3
    fused = fusedact.fuse(model, exclude="mlp")
    assert [e.fused for e in fusedact.explain(fused).entries] == [False, True, False]


def test_report_of_many_layers() -> None:
    """Layers of one kind take one line, with their number; the entries stay apart."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(12)), NestedModules())
    report = fusedact.explain(model)
    assert len(report.entries) == 13
    lines = str(report).splitlines()
    assert lines[1] == "  fused *.*: linear + relu  ×12  [0, 1]"
    assert lines[2].startswith("  fused 12: linear + gelu  [")
    assert len(lines) == 3
    pytest.importorskip("rich")
    assert report.table().row_count == 2


def test_exclude() -> None:
    model = nn.Sequential(NestedModules(), nn.Sequential(NestedModules()), nn.GELU())
    x = torch.randn(5, 8)
    assert ran(fusedact.fuse(model), x) == {"bias": 2, "alone": 1}
    assert ran(fusedact.fuse(model, exclude=["1"]), x) == {"bias": 1, "alone": 1, "unfused": 1}
    assert ran(fusedact.fuse(model, exclude=["*.0"]), x) == {"bias": 1, "alone": 1, "unfused": 1}
    assert ran(fusedact.fuse(model, exclude=[NestedModules]), x) == {"alone": 1, "unfused": 2}
    assert ran(fusedact.fuse(model, exclude=[model[0], nn.GELU]), x).get("unfused") == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear,), TypeError, "fuse takes a torch.nn.Module, but got type: give the module, not its class"),
        ((F.relu,), TypeError, "fuse takes a torch.nn.Module, but got function"),
    ],
)
def test_errors(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fusedact.fuse(*arguments)


def test_errors_of_settings() -> None:
    model = NestedModules()
    with pytest.raises(ValueError, match="no module of this model is called 'fc9'"):
        fusedact.fuse(model, exclude=["fc9"])
    with pytest.raises(TypeError, match="exclude takes qualified names, module classes and modules, but got 3"):
        fusedact.fuse(model, exclude=[3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="verify=True needs example_inputs"):
        fusedact.fuse(model, verify=True)
    model.lock = (i for i in ())  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"cannot be copied .* inplace=True"):
        fusedact.fuse(model)


def test_source_that_is_not_there() -> None:
    """Code without a source is reported; its activation modules are fused by themselves."""
    space: dict[str, Any] = {"nn": nn}
    exec(
        "class Hidden(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc, self.act = nn.Linear(8, 8), nn.ReLU()\n"
        "    def forward(self, x):\n"
        "        return self.act(self.fc(x))\n",
        space,
    )
    fused, report = fusedact.fuse(space["Hidden"](), report=True)
    assert report.unread == (("", "its source is not available"),)
    assert ran(fused, torch.randn(5, 8)) == {"alone": 1}


class Lies(nn.Module):
    """Computes something else when it is called than when its forward is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.odd = NestedModules(), Odd()

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.good(x))


class Odd(nn.Module):
    """Reads its own class: fusing changes what it computes, which only running it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x)) * (2.0 if type(self) is Odd else 3.0)


@pytest.mark.parametrize("inputs", [(torch.randn(4, 8),), torch.randn(4, 8), {"x": torch.randn(4, 8)}])
def test_verify(inputs: Any) -> None:
    """What differs is undone, and said; the rest stays; buffers, gradients, mode and random state are put back."""
    model = nn.Sequential(Lies(), nn.BatchNorm1d(8)) if not isinstance(inputs, dict) else Lies()
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    fused, report = fusedact.fuse(model, inputs, verify=True, report=True)
    assert torch.equal(state, torch.random.get_rng_state())
    for key, value in fused.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert all(p.grad is None for p in fused.parameters())
    assert not any(m.training for m in fused.modules())
    [undone] = report.left
    assert undone.name.endswith("odd")
    assert "undone" in undone.reason
    assert "verified" in report.note
    assert len(report.fused) == 1
    given = inputs if not isinstance(inputs, tuple) else inputs[0]
    x = given["x"] if isinstance(given, dict) else given
    torch.testing.assert_close(fused(x), model(x))


def test_verify_when_the_model_does_not_repeat_itself() -> None:
    class Counter(NestedModules):
        def forward(self, x: Tensor) -> Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return self.act(self.fc(x)) * self.calls

    _, report = fusedact.fuse(Counter(), torch.randn(3, 8), verify=True, report=True)
    assert not report.fused
    assert "nothing verified" in report.note


# torch.compile and torch.export


class Graphs(Block):
    """Forms for the graph pass: modules, functions, formulas, control flow."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc(x))
        h = self.out(x)
        x = h * torch.sigmoid(1.702 * h)
        x = F.leaky_relu(torch.matmul(x, self.up.weight) + self.bias, 0.3)
        if x.sum() > 1e9:
            return x
        k = self.fc(x)
        return F.relu(k) + k


def compiled(model: nn.Module, **settings: Any) -> tuple[Any, list[Any]]:
    """What compiled code computes, with gradients."""
    torch._dynamo.reset()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model.zero_grad()
    y = (torch.compile(model, **settings) if settings else model)(x)
    y.sin().sum().backward()
    return y.detach(), [x.grad, *(p.grad for p in model.parameters())]


def test_backend() -> None:
    """The pass finds the forms in Dynamo's graphs; outputs and gradients agree; graph breaks are the author's."""
    model = Graphs()
    wanted = compiled(model)
    graphs = []

    def watched(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        made = fusedact.fusing.backend(module, inputs)
        graphs.append(module.graph)
        return made

    torch.testing.assert_close(compiled(model, backend=watched), wanted, rtol=1e-4, atol=1e-5)
    calls = [n for g in graphs for n in g.nodes if n.target is torch.ops.fusedact.bias_act.default]
    assert len(graphs) == 2
    assert [n.args[3] for n in calls] == ["gelu", "quick_gelu", "leaky_relu", "relu"]
    assert [n.args[1] is not None for n in calls] == [True, True, True, False]
    assert not any(getattr(n.target, "__name__", "") in ACTIVATIONS for g in graphs for n in g.nodes)


class GatesInGraphs(Block):
    """Gates of two tensors, of the halves of one in either order, and torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.glu = nn.Linear(8, 16), nn.GLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.fc(x)) * self.up(x)
        value, gate = self.both(x).chunk(2, -1)
        x = value * F.gelu(gate)
        gate, value = torch.split(self.both(x), 8, dim=-1)
        x = torch.relu(gate) * value
        parts = self.both(x).chunk(4, -1)
        x = torch.cat([x[:, :4] * 0 + torch.sigmoid(parts[0]) * parts[2], parts[1]], -1)  # not two halves
        return F.glu(self.both(x), 1) + self.glu(self.both(x))


def test_gates_in_graphs() -> None:
    """Halves stay one tensor, whose gradient is then written at once."""
    model = GatesInGraphs()
    wanted = compiled(model)
    graphs = []

    def watched(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        made = fusedact.fusing.backend(module, inputs)
        graphs.append(module.graph)
        return made

    torch.testing.assert_close(compiled(model, backend=watched), wanted, rtol=1e-4, atol=1e-5)
    [graph] = graphs
    calls = [n.args for n in graph.nodes if n.target is torch.ops.fusedact.gated_act.default]
    assert [(a[4], a[1] is not None, a[7]) for a in calls] == [
        ("silu", True, "first"), ("gelu", False, "second"), ("relu", False, "first"), ("sigmoid", True, "first"),
        ("sigmoid", False, "second"), ("sigmoid", False, "second"),
    ]  # fmt: skip


def test_backend_by_its_name() -> None:
    from torch._dynamo.backends.registry import list_backends

    if "fusedact" not in list_backends():
        pytest.skip("this installation of fusedact is older than its entry point")
    model = Graphs()
    torch.testing.assert_close(compiled(model, backend="fusedact"), compiled(model), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("operators_stay")
def test_in_front_of_inductor() -> None:
    model = Graphs()
    settings = {"options": {"pre_grad_custom_pass": fusedact.compile_pass}}
    torch.testing.assert_close(compiled(model, **settings), compiled(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "fused"), [(1, 0), (2000, 1), (6000, 2)])
def test_inductor_keeps_what_its_loops_do_faster(rows: int, fused: int) -> None:
    """A few thousand elements, and ReLU without gradients, are left as they are; GELU and a gate of many are fused.

    Inductor computes a SiLU as fast: its gate must be larger.
    """
    seen = []

    def look(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Tensor]:
        fusedact.compile_pass(module.graph)
        seen.extend(n for n in module.graph.nodes if "fusedact" in str(n.target))
        return module.forward

    def model(x: Tensor) -> Tensor:
        a, b = F.gelu(x).relu().chunk(2, -1)
        return F.silu(a) * b

    torch._dynamo.reset()
    x = torch.randn(rows, 100)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=look)(x), model(x), rtol=1e-5, atol=1e-6)
    assert len(seen) == fused


def test_a_fused_model_compiles_whole_and_exports() -> None:
    model = OwnActivations()
    fused = fusedact.fuse(model)
    wanted = compiled(model)
    torch.testing.assert_close(compiled(fused, backend="eager", fullgraph=True), wanted, rtol=1e-4, atol=1e-5)
    x = torch.randn(5, 8)
    for strict in (True, False):
        program = torch.export.export(fused, (x,), strict=strict)
        calls = [n for n in program.graph.nodes if n.target is torch.ops.fusedact.bias_act.default]
        assert [n.args[3] for n in calls] == ["swish", "mish"]
        assert all(n.args[1] is not None for n in calls)
        torch.testing.assert_close(program.module()(x), model(x))


def test_traced_modules() -> None:
    """A GraphModule's generated code is source like any other."""
    model = torch.fx.symbolic_trace(NestedModules())
    fused = fusedact.fuse(model, inplace=True)
    x = torch.randn(5, 8)
    assert ran(fused, x) == {"bias": 1}
    assert torch.fx.symbolic_trace(fusedact.fuse(NestedModules()))(x).shape == (5, 8)


def test_no_name_of_a_third_party() -> None:
    """The rule of the house: no model and no class of anyone's stands in the package."""
    import pathlib
    import re

    names = re.compile(r"(?i)\b(llama|bert|mistral|whisper|timm|torchvision|transformers|huggingface|resnet\w*|peft)\b")
    for path in pathlib.Path(fusedact.__file__).parent.joinpath("fusing").glob("*.py"):
        assert not names.search(path.read_text()), path


# Dropout and residual, on request


class Dropped(Block):
    """A residual and a dropout, as they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.fc(x))
        h = self.out(x)
        h = self.drop(h)
        h = torch.cos(h + x)
        y = F.dropout(self.up(h), 0.25, training=self.training) + h
        return y + self.drop(self.act(self.fc(y)))


def ran_epilogues(model: nn.Module, x: Tensor) -> list[bool]:
    """For each fused residual: whether it had a bias."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.fusedact.bias_act_epilogue.default:
                seen.append(args[1] is not None)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        model(x)
    return seen


def test_dropout_and_residual() -> None:
    """One operator with the layer's bias; only if asked, only in training; in evaluation the author's code runs."""
    model = Dropped()
    x = torch.randn(5, 8)
    assert ran_epilogues(fusedact.fuse(model), x) == []
    fused, report = fusedact.fuse(model, dropout=True, report=True)
    whats = collections.Counter(e.what for e in report.fused)
    assert whats == {"linear + dropout + residual": 2, "dropout + residual": 2, "linear + gelu": 1}
    assert ran_epilogues(fused, x) == [True, True, False, False]
    assert "4 of" not in str(report.left)
    assert fusedact.explain(fused).share == 1.0
    for m in (model, fused):
        m.eval()
    assert ran_epilogues(fused, x) == []
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-6)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert ran_epilogues(other.train(), x) == [True, True, False, False]
    fusedact.unfuse(fused)
    assert type(fused) is Dropped


def test_dropout_and_residual_in_a_process_that_has_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedact.fusing import swap

    data = pickle.dumps(fusedact.fuse(Dropped(), dropout=True))
    monkeypatch.setattr(swap, "_CLASSES", {})
    assert ran_epilogues(pickle.loads(data), torch.randn(5, 8)) == [True, True, False, False]


def test_dropout_has_the_same_distribution() -> None:
    """Each element is x + 0 or x + y / (1 - p), as often as p says, and its gradient is 0 or 1 / (1 - p) with it."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.drop = nn.Linear(8, 4096), nn.Dropout(0.25)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return y + self.drop(self.fc(x))

    model = One()
    fused = fusedact.fuse(model, dropout=True)
    x, y = torch.randn(16, 8), torch.randn(16, 4096)
    full = model.fc(x) / 0.75
    got = fused(x, y)
    kept = ((got - y).abs() > (full - (got - y)).abs()).float().detach()
    torch.testing.assert_close(got, y + kept * full, rtol=1e-4, atol=1e-5)
    n = kept.numel()
    assert abs(float(kept.sum()) - 0.75 * n) < 5 * (n * 0.75 * 0.25) ** 0.5
    got.sum().backward()
    torch.testing.assert_close(fused.fc.bias.grad, kept.sum(0) / 0.75, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fused(x, y), got), "another mask at the next call"
    torch.manual_seed(3)
    first = fused(x, y)
    torch.manual_seed(3)
    assert torch.equal(fused(x, y), first)


class DropoutReadTwice(Dropped):
    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.fc(x))
        return x + h + h.sin()


class DropoutOfSomethingWrittenOver(Dropped):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        y = self.drop(h)
        h.mul_(0)
        return x + y


class OtherShape(Dropped):
    def forward(self, x: Tensor) -> Tensor:
        return x[0] + self.drop(self.fc(x))


@pytest.mark.parametrize("cls", [DropoutReadTwice, DropoutOfSomethingWrittenOver, OtherShape], ids=lambda c: c.__name__)
def test_dropout_that_is_left(cls: type[Block]) -> None:
    """The author's code runs, with the author's mask."""
    model = cls()
    fused = fusedact.fuse(model, dropout=True)
    x = torch.randn(5, 8)
    assert ran_epilogues(fused, x) == []
    torch.manual_seed(3)
    wanted = model(x)
    torch.manual_seed(3)
    torch.testing.assert_close(fused(x), wanted, rtol=1e-5, atol=1e-6)


def test_dropout_compiles_whole() -> None:
    fused = fusedact.fuse(Dropped(), dropout=True)
    y = torch.compile(fused, backend="eager", fullgraph=True)(torch.randn(5, 8))
    y.sum().backward()
    assert fused.fc.bias.grad is not None


class Steps(nn.Module):
    """What is called before the activation is a function, not a layer; known only when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        for step in (torch.neg, torch.sin):
            x = F.gelu(step(x))
        return x


def test_a_local_function_before_an_activation() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(fusedact.fuse(Steps())(x), Steps()(x))
