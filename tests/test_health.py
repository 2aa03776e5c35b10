"""The monitor: it counts right, names planted faults and only those, and leaves the model as it was."""

from __future__ import annotations

import copy
import gc
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ROWS, row_id
from torch import Tensor, nn

import fusedact
from fusedact import health, registry
from fusedact.health import statistics
from fusedact.health.watch import row_of
from fusedact.registry import Activation


def train(model: nn.Module, x: Tensor, steps: int = 3) -> None:
    for _ in range(steps):
        model(x).square().mean().backward()


def stack(kind: type[nn.Module] | str, depth: int, width: int = 32, scale: float = 1.0) -> nn.Sequential:
    """Layers with the initialisation that suits the activation, times `scale`; fused by name, plain by class."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        if isinstance(kind, str):
            layer = fusedact.nn.Linear(width, width, activation=kind)
            row, modules = registry.get(kind), [layer]
        else:
            layer = nn.Linear(width, width)
            row, modules = registry.get(kind.__name__), [layer, kind()]
        nn.init.normal_(layer.weight, std=scale * nn.init.calculate_gain(row.init) / width**0.5)
        nn.init.zeros_(layer.bias)
        layers += modules
    return nn.Sequential(*layers)


def footprint(model: nn.Module) -> dict[str, Any]:
    """Everything that a module holds: a copy of each dictionary, hooks and all."""
    return {
        f"{name}.{key}": copy.copy(value) if isinstance(value, dict) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }


def kinds(m: health.Monitor) -> dict[str, list[str]]:
    return {name: [v.kind for v in verdicts] for name, verdicts in m.verdicts().items() if verdicts}


# ---- planted faults -------------------------------------------------------------------------------------------------

both = pytest.mark.parametrize("fused", [False, True], ids=["torch.nn", "fusedact.nn"])


@both
@pytest.mark.parametrize("every", [1, 2])
def test_a_healthy_network_is_fine(fused: bool, every: int) -> None:
    for kind, plain in (("relu", nn.ReLU), ("gelu", nn.GELU), ("tanh", nn.Tanh)):
        torch.manual_seed(0)
        model = stack(kind if fused else plain, 4)
        with fusedact.monitor(model, every) as m:
            train(model, torch.randn(256, 32), 4)
        assert kinds(m) == {}
        assert len(m.verdicts()) == 4


@both
@pytest.mark.parametrize("kind", ["relu", "gelu", "silu"])
def test_a_dead_unit_is_named(fused: bool, kind: str) -> None:
    plain = getattr(nn, registry.get(kind).module)
    model = stack(kind if fused else plain, 3)
    linear = [layer for layer in model if isinstance(layer, nn.Linear)][1]
    with torch.no_grad():
        linear.bias[[5, 9]] = -100.0
    with fusedact.monitor(model) as m:
        train(model, torch.randn(256, 32))
    (name,) = kinds(m)
    assert name == ("1" if fused else "3")
    (verdict,) = m.verdicts()[name]
    assert verdict.kind == "dead"
    assert verdict.channels == [5, 9]
    assert "2 of 32 channels are dead: 5, 9" in verdict.words
    assert any("He's" in advice for advice in verdict.advice)
    assert any("leaky_relu" in advice for advice in verdict.advice)


@both
def test_a_saturated_stack_is_named_and_its_vanished_gradients_are_not(fused: bool) -> None:
    model = stack("sigmoid" if fused else nn.Sigmoid, 6)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, 12.0)
    with fusedact.monitor(model) as m:
        train(model, torch.randn(256, 32))
    found = kinds(m)
    assert set(map(tuple, found.values())) == {("saturated",)}
    assert len(found) == 6
    gradients = [one["gradient"]["norm"] for one in m.to_dict()["activations"].values()]
    assert gradients[0] < 1e-3 * gradients[-1], "they do vanish; that is a consequence, not a fault of its own"
    assert any("Xavier's" in advice for advice in m.verdicts()["0" if fused else "1"][0].advice)


@both
def test_vanishing_gradients_are_named(fused: bool) -> None:
    model = stack("sigmoid" if fused else nn.Sigmoid, 10)
    with fusedact.monitor(model) as m:
        train(model, torch.randn(256, 32))
    found = kinds(m)
    assert set(map(tuple, found.values())) == {("vanishing",)}
    names = list(m.verdicts())
    assert list(found) == names[: len(found)], "the first layers, in a row"
    assert 4 <= len(found) <= 8
    assert any("skip connections" in advice for advice in m.verdicts()[names[0]][0].advice)


@both
def test_an_exploding_stack_is_named(fused: bool) -> None:
    model = stack("leaky_relu" if fused else nn.LeakyReLU, 8, scale=6.0)
    with fusedact.monitor(model) as m:
        train(model, torch.randn(256, 32))
    found = kinds(m)
    assert set(map(tuple, found.values())) == {("exploding",)}
    assert list(m.verdicts())[-1] in found


@both
def test_nan_and_inf_are_counted_and_named(fused: bool) -> None:
    model = stack("relu" if fused else nn.ReLU, 2, width=8)
    x = torch.randn(64, 8)
    linear = [layer for layer in model if isinstance(layer, nn.Linear)][1]
    with torch.no_grad():
        linear.bias[3] = math.nan
        linear.bias[4] = math.inf
    with fusedact.monitor(model) as m:
        train(model, x, 2)
    (name,) = kinds(m)
    one = m.to_dict()["activations"][name]
    assert one["nan"] == 2 * 64
    assert one["inf"] == 2 * 64
    (verdict,) = m.verdicts()[name]
    assert (verdict.kind, verdict.channels) == ("not finite", [3, 4])
    json.loads(m.to_json(), parse_constant=lambda name: pytest.fail(f"JSON has no {name}"))
    assert json.loads(m.to_json())["activations"][name]["mean"] is None


def test_a_nan_outside_of_what_is_read_is_seen() -> None:
    model = nn.Sequential(nn.ReLU())
    x = torch.randn(400, 10)
    x[2] = math.nan  # row 1 is the first to be read
    with fusedact.monitor(model, elements=100) as m:
        model(x)
    one = m.to_dict()["activations"]["0"]
    assert one["nan"] == 0
    assert one["not finite steps"] == 1
    assert kinds(m) == {"0": ["not finite"]}


def test_a_quiet_start_is_not_called_dead() -> None:
    """Fewer values than anybody could judge by."""
    model = stack("relu", 2)
    with fusedact.monitor(model) as m:
        train(model, -torch.ones(1, 32), 3)
    assert "dead" not in {kind for found in kinds(m).values() for kind in found}


# ---- counting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != "identity"], ids=row_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_counts_are_those_of_the_tensors(row: Activation, dtype: torch.dtype) -> None:
    """Every row, as a layer and as a module, against plain torch on the same tensors."""
    layer = fusedact.nn.BiasAct(6, row.name, dtype=dtype).eval()
    nn.init.normal_(layer.bias)
    x = torch.randn(40, 6, 5, dtype=dtype) * 4
    module = getattr(fusedact.nn, row.module)
    needed = {"threshold": 0.1, "value": 0.0} if row.module == "Threshold" else {}
    for watched, v in ((layer, (x.double() + layer.bias.detach().double()[:, None])), (module(**needed).eval(), x)):
        weights = [p.to(dtype) for p in watched.parameters()]
        watched.to(dtype)
        given = (x if watched is layer else v.detach()).clone().requires_grad_()
        with fusedact.monitor(watched, dims={watched_name(watched): 1}) as m:
            y = watched(given)
            y.square().sum().backward()
        one = m.to_dict()["activations"][watched_name(watched)]
        flat = y.detach().double().movedim(1, -1).reshape(-1, 6)
        assert one["activation"] == row.name
        assert one["zeros"] == pytest.approx(float((flat == 0).double().mean()))
        assert one["mean"] == pytest.approx(float(flat.mean()), rel=1e-6, abs=1e-7)
        assert one["std"] == pytest.approx(float(flat.std(correction=0)), rel=1e-6)
        assert (one["min"], one["max"]) == (float(flat.min()), float(flat.max()))
        per = one["per channel"]
        torch.testing.assert_close(torch.tensor(per["mean"]).double(), flat.mean(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.tensor(per["max"]).double(), flat.amax(0))
        before = v.detach().double()
        inside = torch.zeros_like(before, dtype=torch.bool)
        params = {"threshold": 0.1} if needed and watched is not layer else {}
        for low, high in row.saturation(*row.resolve(**params)[1]):
            inside |= (before >= low) & (before <= high)
        assert one["saturated"] == pytest.approx(float(inside.double().mean()), abs=5e-3)
        counts = one["pre-activations"]["counts"]
        edges = torch.linspace(statistics.LOW, statistics.HIGH, statistics.BINS + 1).double()
        clipped = before.clamp(statistics.LOW + 0.1, statistics.HIGH - 0.1).flatten()
        assert sum(counts) == before.numel()
        expected = torch.histogram(clipped, edges).hist
        assert (torch.tensor(counts).double() - expected).abs().sum() <= 4, "a value on an edge may fall either way"
        gradient = given.grad.double()
        assert one["gradient"]["norm"] == pytest.approx(float(gradient.norm()), rel=1e-5, nan_ok=True)
        assert one["gradient"]["zeros"] == pytest.approx(float((gradient == 0).double().mean()))
        assert len(weights) == len(list(watched.parameters()))


@pytest.mark.parametrize("kind", ["relu", "gelu", "tanh", "prelu", "swish"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_linear_layer_counts_the_pre_activation_that_it_never_writes(kind: str, dtype: torch.dtype) -> None:
    """The product is computed anew where it is read, and the gradient follows from the one of the output."""
    layer = fusedact.nn.Linear(5, 5, activation=kind, dtype=dtype)  # square: the input's gradient has the same shape
    x = torch.randn(30, 7, 5, dtype=dtype)
    with fusedact.monitor(layer) as m:
        layer(x).square().sum().backward()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    v = nn.functional.linear(x.to(wide), layer.weight.to(wide), layer.bias.to(wide)).detach().requires_grad_()
    row = layer.activation.row
    weights = [p.detach().to(wide) for p in layer.activation.parameters()]
    y = row.reference(v, *(weights or row.resolve()[1]))
    y.square().sum().backward()
    one = m.to_dict()["activations"]["Linear"]
    limit = 3e-2 if dtype == torch.bfloat16 else 1e-4
    assert one["mean"] == pytest.approx(float(y.detach().mean()), rel=limit, abs=limit)
    assert one["gradient"]["norm"] == pytest.approx(float(v.grad.norm()), rel=limit)
    inside = torch.zeros_like(v, dtype=torch.bool)
    for low, high in row.saturation():
        inside |= (v >= low) & (v <= high)
    assert one["saturated"] == pytest.approx(float(inside.float().mean()), abs=5e-3)
    assert sum(one["pre-activations"]["counts"]) == v.numel()


def hidden_activations() -> list[Any]:
    """Modules whose operator hides the activation: module, input, and the pre-activation and output in plain torch."""
    torch.manual_seed(5)
    norm, evaluated = (fusedact.nn.BatchNormAct2d(6, activation="silu") for _ in range(2))
    for layer in (norm, evaluated):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    evaluated.running_mean.normal_()
    images, rows = torch.randn(4, 6, 5, 7), torch.randn(9, 12)
    plain = nn.functional.batch_norm
    first, second = rows[:, :6], rows[:, 6:]
    oss = fusedact.nn.SwiGLU(limit=1.5, alpha=1.7, offset=1.0, layout="interleaved")
    drop = fusedact.nn.BiasAct(12, "gelu", dim=-1, dropout_p=0.3)
    nn.init.normal_(drop.bias)
    return [
        ("norm", norm, images, plain(images, None, None, norm.weight, norm.bias, True), nn.functional.silu),
        (
            "norm, eval", evaluated.eval(), images,
            plain(images, evaluated.running_mean, evaluated.running_var, evaluated.weight, evaluated.bias),
            nn.functional.silu,
        ),
        ("SwiGLU", fusedact.nn.SwiGLU(), rows, first, nn.functional.silu),
        ("GLU", fusedact.nn.GLU(), rows, second, torch.sigmoid),
        ("gpt-oss", oss, rows, rows[:, 0::2].clamp(max=1.5) * 1.7, lambda v: nn.functional.silu(v) / 1.7),
        ("dropout", drop, rows, rows + drop.bias, nn.functional.gelu),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(6), ids=["norm", "norm, eval", "SwiGLU", "GLU", "gpt-oss", "dropout"])
def test_hidden_activations_are_counted(case: int) -> None:
    """Behind a normalisation, in a gate, before a dropout: what is in no tensor is computed again."""
    _, module, x, v, act = hidden_activations()[case]
    given = x.clone().requires_grad_()
    plain = module(given.clone()) if case < 2 else None
    before = {name: b.clone() for name, b in module.named_buffers()}
    with fusedact.monitor(module, dims={}) as m:
        torch.manual_seed(1)
        y = module(given)
        y.square().sum().backward()
    (one,) = m.to_dict()["activations"].values()
    v = v.detach()
    found = act(v)
    assert one["mean"] == pytest.approx(float(found.mean()), rel=1e-4, abs=1e-6)
    assert one["std"] == pytest.approx(float(found.std(correction=0)), rel=1e-4)
    assert sum(one["pre-activations"]["counts"]) == v.numel()
    middle = ((v - statistics.LOW) * 4).long().clamp(0, statistics.BINS - 1)
    wanted = torch.bincount(middle.flatten(), minlength=statistics.BINS)
    assert (torch.tensor(one["pre-activations"]["counts"]) - wanted).abs().sum() <= 2, "a value may lie on an edge"
    assert one["gradient"] is not None
    if case < 2:  # g f'(v), of the gradient that came in
        assert plain is not None
        w = v.clone().requires_grad_()
        (expected,) = torch.autograd.grad(act(w).square().sum(), w)
        assert one["gradient"]["norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
        steps = int(module.num_batches_tracked) - int(before["num_batches_tracked"])
        assert steps == (1 if module.training else 0), "counting again is not another step"
    elif case == 5:
        assert one["gradient"]["norm"] == pytest.approx(float(given.grad.norm()), rel=1e-4)
    else:
        layout = getattr(module, "layout", "concat")
        half = given.grad[:, 0::2] if layout == "interleaved" else given.grad.chunk(2, -1)[case == 3]
        assert one["gradient"]["norm"] == pytest.approx(float(half.norm()), rel=1e-5)
    assert not module._forward_hooks


def test_a_gated_mlp_in_a_model_is_named() -> None:
    model = nn.Sequential(fusedact.nn.GatedMLP(8, 16, bias=True), fusedact.nn.BatchNormAct1d(8))
    x = torch.randn(40, 8)
    wanted = model(x).detach()
    model[1].reset_running_stats()
    with fusedact.monitor(model) as m:
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=0)
    assert {name: one["activation"] for name, one in m.to_dict()["activations"].items()} == {
        "0.act": "silu",
        "1": "relu",
    }
    assert m.to_dict()["not seen"] == []


@pytest.mark.parametrize("make", ["plain", "inplace", "sampled", "linear", "module"])
def test_it_counts_in_one_pass(make: str) -> None:
    """A fused layer's backward is the operator's that counts; what is not plain gets a hook instead."""
    layer: nn.Module = fusedact.nn.BiasAct(4, "gelu", dim=-1)
    if make == "linear":
        layer = fusedact.nn.Linear(4, 4, activation="gelu")
    elif make == "module":
        layer = fusedact.nn.SiLU()
    elif make == "inplace":
        layer = nn.Sequential(nn.Linear(4, 4), fusedact.nn.ReLU(inplace=True))
    with fusedact.monitor(layer, elements=3 if make == "sampled" else None) as m:
        y = layer(torch.randn(5, 4, requires_grad=True))
        name = {"linear": "LinearActStatisticsBackward0", "plain": "BiasActStatisticsBackward0",
                "module": "BiasActStatisticsBackward0"}.get(make, "BiasActBackward0")  # fmt: skip
        assert y.grad_fn.name() == name
        y.sum().backward()
    assert next(iter(m.to_dict()["activations"].values()))["gradient"]["steps"] == 1


def test_what_never_ran_is_said() -> None:
    model = nn.ModuleDict({"used": nn.Sequential(nn.ReLU()), "unused": nn.Sequential(nn.GELU())})
    with fusedact.monitor(model, by_hand=True) as m:
        m.begin_step()
        model["used"](torch.randn(3, 4))
        m.end_step()
    assert m.to_dict()["not seen"] == ["unused.0"]


def watched_name(module: nn.Module) -> str:
    return "BiasAct" if isinstance(module, fusedact.nn.BiasAct) else type(module).__name__


@both
def test_inplace_modules_are_counted_before_they_overwrite(fused: bool) -> None:
    act = (fusedact.nn if fused else nn).ReLU(inplace=True)
    model = nn.Sequential(nn.Linear(4, 4), act)
    x = torch.randn(50, 4)
    with torch.no_grad():
        below = float((model[0](x) <= 0).float().mean())
    with fusedact.monitor(model) as m:
        train(model, x, 1)
    one = m.to_dict()["activations"]["1"]
    assert one["saturated"] == pytest.approx(below)
    half = statistics.BINS // 2
    assert sum(one["pre-activations"]["counts"][: half + 1]) > 0.2 * 200, "values below 0 were seen before they went"


def test_running_over_steps() -> None:
    model = nn.Sequential(nn.ReLU())
    first, second = torch.randn(30, 4), torch.randn(50, 4) + 2
    with fusedact.monitor(model) as m:
        model(first)
        model(second)
    y = torch.cat([first, second]).relu()
    one = m.to_dict()["activations"]["0"]
    assert m.steps == 2
    assert one["mean"] == pytest.approx(float(y.mean()), rel=1e-6)
    assert one["per channel"]["std"] == pytest.approx(y.std(0, correction=0).tolist(), rel=1e-5)
    assert one["gradient"] is None
    m.reset()
    assert m.steps == 0
    with pytest.raises(RuntimeError, match="has seen nothing yet"):
        m.report()


def test_every_nth_step() -> None:
    model = stack("relu", 1)
    with fusedact.monitor(model, every=3) as m:
        train(model, torch.randn(8, 32), 7)
    found = m.to_dict()
    assert (found["steps"], found["calls"], found["activations"]["0"]["gradient"]["steps"]) == (3, 7, 3)


@pytest.mark.parametrize("shape", [(4000, 7), (3, 7, 50, 60), (1, 7, 300, 4), (7,), (2, 50, 7)], ids=str)
def test_few_elements_stand_for_all(shape: tuple[int, ...]) -> None:
    """About so many as asked for are read, of every channel, and others the next time."""
    dim = shape.index(7)
    x = torch.randn(shape)
    first, second = (x[statistics.slices(shape, dim, 400, turn)] for turn in (0, 1))
    assert first.size(dim) == 7
    assert first.numel() <= max(420, 7)
    assert first.numel() >= min(x.numel(), 100)
    assert first.numel() == x.numel() or not torch.equal(first, second)
    model = nn.ReLU()
    with fusedact.monitor(model, elements=400, dims={"ReLU": dim}) as m:
        for _ in range(3):
            model(x)
    one = m.to_dict()["activations"]["ReLU"]
    assert one["channels"] == 7
    assert one["mean"] == pytest.approx(float(x.relu().mean()), abs=0.15 if x.numel() > 7 else 1e-6)
    assert one["read"] <= 1


def test_the_gradient_norm_is_scaled_to_all_elements() -> None:
    model = nn.Sequential(nn.Tanh())
    x = torch.randn(4000, 5, requires_grad=True)
    with fusedact.monitor(model, elements=1000) as m:
        model(x).sum().backward()
    assert m.to_dict()["activations"]["0"]["gradient"]["norm"] == pytest.approx(float(x.grad.norm()), rel=0.1)


@pytest.mark.parametrize(
    ("layers", "shape", "channels"),
    [
        ([nn.Linear(4, 6), nn.ReLU()], (2, 9, 4), 6),
        ([nn.Conv1d(4, 6, 1), nn.ReLU()], (2, 4, 9), 6),
        ([nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU()], (2, 4, 3, 5), 6),
        ([nn.ReLU()], (2, 3, 6), 6),
        ([nn.ReLU()], (2, 6, 3, 4), 6),
        ([nn.ReLU()], (2, 6), 6),
        ([fusedact.nn.Conv2d(4, 6, 1, activation="gelu")], (2, 4, 3, 5), 6),
        ([fusedact.nn.Linear(4, 6, activation="gelu")], (2, 3, 3, 4), 6),
    ],
    ids=["Linear 3-D", "Conv1d", "BatchNorm2d", "3-D", "4-D", "2-D", "fused Conv2d", "fused Linear 4-D"],
)
def test_channels_lie_where_the_layer_before_puts_them(
    layers: list[nn.Module], shape: tuple[int, ...], channels: int
) -> None:
    model = nn.Sequential(*layers)
    with fusedact.monitor(model) as m:
        model(torch.randn(shape))
    (one,) = m.to_dict()["activations"].values()
    assert one["channels"] == channels


def test_a_changing_number_of_channels_is_pooled() -> None:
    model = nn.Sequential(nn.ReLU())
    a, b = (torch.randn(3, n, requires_grad=True) for n in (5, 8))
    with fusedact.monitor(model) as m:
        model(a).sum().backward()
        model(b).sum().backward()
    one = m.to_dict()["activations"]["0"]
    assert one["channels"] == 1
    assert one["mean"] == pytest.approx(float(torch.cat([a.flatten(), b.flatten()]).detach().relu().mean()), rel=1e-6)
    assert one["gradient"]["steps"] == 2


def test_one_module_used_twice_is_told_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.one, self.two = nn.ReLU(), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.two(self.act(self.one(x))))

    model = Twice()
    with fusedact.monitor(model) as m:
        train(model, torch.randn(5, 4))
    assert {name: one["channels"] for name, one in m.to_dict()["activations"].items()} == {"act": 8, "act (2)": 3}


@both
def test_names_are_those_of_the_layers(fused: bool) -> None:
    lib: Any = fusedact.nn if fused else nn
    block = nn.Sequential(lib.Linear(4, 4), lib.PReLU(4), lib.ELU())
    model = nn.ModuleDict({"block": block, "head": fusedact.nn.Linear(4, 2, activation="swish", learnable=True)})
    m = fusedact.monitor(model, by_hand=True)
    m.attach()
    m.begin_step()
    model["head"](model["block"](torch.randn(3, 4))).sum().backward()
    m.end_step()
    model["block"](torch.randn(3, 4))  # outside of a step
    m.detach()
    assert [(name, one["steps"]) for name, one in m.to_dict()["activations"].items()] == [
        ("block.1", 1), ("block.2", 1), ("head", 1)
    ]  # fmt: skip


@pytest.mark.parametrize("row", [row for row in ROWS if row.torch_module], ids=row_id)
def test_every_activation_of_torch_is_known(row: Activation) -> None:
    arguments = (0.1, 0.0) if row.module == "Threshold" else ()
    assert row_of(row.torch_module(*arguments)) is (None if row.module == "Identity" else row)
    assert row_of(nn.Linear(1, 1)) is None


def test_zones_follow_the_modules_parameters() -> None:
    model = nn.Sequential(nn.Hardtanh(-3, 3), nn.GELU(approximate="tanh"), nn.LeakyReLU(0.0))
    with fusedact.monitor(model) as m:
        model(torch.full((4, 4), 2.0))
        model(torch.full((4, 4), -2.0))
    found = m.to_dict()["activations"]
    assert found["0"]["saturated"] == 0
    assert found["2"]["saturated"] == 0.5, "a slope of 0 is flat"


def test_no_grad_and_eval_are_watched_without_gradients() -> None:
    model = stack("gelu", 2).eval()
    with fusedact.monitor(model) as m, torch.no_grad():
        model(torch.randn(9, 32))
    assert all(one["gradient"] is None for one in m.to_dict()["activations"].values())


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_results_are_the_same_with_the_monitor(fused: bool, dtype: torch.dtype) -> None:
    """To the bit: outputs, gradients, and the random numbers of the caller."""
    model = nn.Sequential(stack("gelu" if fused else nn.GELU, 2), nn.Dropout(), (fusedact.nn if fused else nn).RReLU())
    model, x = model.to(dtype), torch.randn(16, 32, dtype=dtype)

    def once() -> list[Tensor]:
        torch.manual_seed(3)
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in model.parameters())]

    plain = once()
    with fusedact.monitor(model):
        watched = once()
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)


# ---- the model is left as it was ------------------------------------------------------------------------------------


def mixed() -> nn.Sequential:
    return nn.Sequential(
        fusedact.nn.Linear(4, 4, activation="relu"), nn.GELU(), fusedact.nn.PReLU(4), fusedact.nn.SiLU(),
        fusedact.nn.BiasAct(4, "tanh"), nn.Sigmoid(),
    )  # fmt: skip


@pytest.fixture
def untouched() -> Iterator[nn.Sequential]:
    model = mixed()
    model.zero_grad()
    before = footprint(model)
    yield model
    assert footprint(model) == before


def test_nothing_is_left_behind(untouched: nn.Sequential) -> None:
    with fusedact.monitor(untouched) as m:
        assert m.attached
        untouched(torch.randn(3, 4))
    assert not m.attached
    m.detach()
    assert m.to_dict()["activations"].keys() == {"0", "1", "2", "3", "4", "5"}


def test_nothing_is_left_behind_by_an_exception(untouched: nn.Sequential) -> None:
    m = fusedact.monitor(untouched)
    with pytest.raises(ValueError, match="x has 5 features"), m:
        untouched(torch.randn(3, 5))
    assert not m._state.active


def test_attach_and_detach_by_hand(untouched: nn.Sequential) -> None:
    m = fusedact.monitor(untouched)
    untouched(torch.randn(3, 4))
    assert not m.seen
    assert m.attach() is m
    with pytest.raises(RuntimeError, match="attached already"):
        m.attach()
    untouched(torch.randn(3, 4))
    m.detach()
    untouched(torch.randn(3, 4))
    assert m.steps == 1
    m.attach()
    untouched(torch.randn(3, 4))
    m.detach()
    assert m.steps == 2
    assert m.to_dict()["activations"]["0"]["steps"] == 2


def test_monitors_cannot_be_nested(untouched: nn.Sequential) -> None:
    with fusedact.monitor(untouched[:2]) as outer:
        with pytest.raises(RuntimeError, match=r"0 is watched by another monitor \(as 0\): monitors cannot be nested"):
            fusedact.monitor(untouched).attach()
        untouched(torch.randn(3, 4))  # what outer watches is a part, so it counts no step
        untouched[:2](torch.randn(3, 4))
    assert outer.steps == 0
    with fusedact.monitor(untouched):
        pass


def test_a_monitor_left_open_is_detached_with_a_warning(untouched: nn.Sequential) -> None:
    m = fusedact.monitor(untouched).attach()
    untouched(torch.randn(3, 4))
    with pytest.warns(ResourceWarning, match="left open and is detached now"):
        del m


def test_a_closed_monitor_does_not_warn(untouched: nn.Sequential) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fusedact.monitor(untouched) as m:
            untouched(torch.randn(3, 4))
        del m
        gc.collect()


def test_copies_of_a_watched_model_are_not_watched(untouched: nn.Sequential) -> None:
    x = torch.randn(3, 4)
    with fusedact.monitor(untouched) as m:
        copies = [copy.deepcopy(untouched), pickle.loads(pickle.dumps(untouched))]
        for one in copies:
            torch.testing.assert_close(one(x), untouched(x), rtol=0, atol=0)
    assert m.steps == 2


def test_watched_layers_are_freed() -> None:
    """Neither the monitor nor its registry keeps a model alive."""
    import weakref

    model = mixed()
    with fusedact.monitor(model) as m:
        model(torch.randn(3, 4))
    gone = weakref.ref(model[1])
    del model, m
    gc.collect()
    assert gone() is None


def test_functorch_and_checkpointing_pass_by(untouched: nn.Sequential) -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(3, 4)
    with fusedact.monitor(untouched) as m:
        torch.func.vmap(untouched[:4])(x)
        assert not m.seen
        checkpoint(untouched, x.requires_grad_(), use_reentrant=False).sum().backward()
    untouched.zero_grad()
    assert m.to_dict()["activations"]["0"]["gradient"] is not None


def test_compiled_models_are_passed_by() -> None:
    """One graph, whatever the step: nothing that changes with it is guarded. What was compiled is not watched."""
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    untouched, counter = mixed(), CompileCounter()
    compiled = torch.compile(untouched, backend=counter, fullgraph=True)
    x = torch.randn(3, 4)
    wanted = untouched(x)
    with fusedact.monitor(untouched) as m:
        for _ in range(4):
            torch.testing.assert_close(compiled(x), wanted)
        assert not m.seen
        with pytest.raises(RuntimeError, match="has seen nothing yet"):
            m.to_dict()
    assert counter.frame_count == 1
    torch.testing.assert_close(compiled(x), wanted)
    torch._dynamo.reset()


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fusedact.monitor(torch.relu), TypeError, "watches an nn.Module, but got builtin_function_or_method"),
        (lambda: fusedact.monitor(nn.Linear(1, 1)), ValueError, "Linear has no activation module to watch"),
        (lambda: fusedact.monitor(nn.Sequential(nn.Identity())), ValueError, r"Functions called in forward \(F.relu\)"),
        (lambda: fusedact.monitor(nn.ReLU(), every=0), ValueError, "every must be a whole number of steps, 1 or more"),
        (lambda: fusedact.monitor(nn.ReLU(), every=2.5), ValueError, "but got 2.5"),
        (lambda: fusedact.monitor(nn.ReLU(), every=True), ValueError, "but got True"),
        (lambda: fusedact.monitor(nn.ReLU(), elements=0), ValueError, "elements must be None or a whole number"),
        (lambda: fusedact.monitor(nn.ReLU(), skip=["act"]), ValueError, "no activation act; it has ReLU"),
        (lambda: fusedact.monitor(nn.ReLU(), dims={"x": 1}), ValueError, "no activation x; it has ReLU"),
        (lambda: fusedact.monitor(nn.ReLU(), skip=["ReLU"]), ValueError, "no activation module to watch"),
    ],
    ids=["function", "none", "functions", "every 0", "every 2.5", "every True", "elements", "skip", "dims", "all"],
)
def test_wrong_arguments(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_integers_are_refused_in_words_and_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.ReLU())
    before = footprint(model)
    x = torch.arange(-3, 3)
    wanted = r"0 was given a tensor of torch.int64, but only .* skip=\['0'\]"
    with pytest.raises(TypeError, match=wanted), fusedact.monitor(model):
        model(x)
    assert footprint(model) == before
    model.append(nn.ReLU())
    with fusedact.monitor(model, skip=["0"]) as m:
        model(x.float())
    assert list(m.verdicts()) == ["1"]


def test_empty_and_scalar_tensors_are_passed_over() -> None:
    model = nn.Sequential(nn.ReLU())
    with fusedact.monitor(model) as m:
        model(torch.zeros(0, 4))
        model(torch.tensor(1.0))
    assert not m.seen


# ---- what it shows --------------------------------------------------------------------------------------------------


def watched() -> health.Monitor:
    model = stack("relu", 3)
    with torch.no_grad():
        model[1].bias[5] = -100.0
    with fusedact.monitor(model) as m:
        train(model, torch.randn(64, 32))
    return m


def test_report() -> None:
    from rich.console import Console

    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115 (rich holds it)
    watched().report(console)
    said = console.export_text()
    assert "Health of 3 activations, 3 of 3 steps" in said
    assert "1: dead: 1 of 32 channels are dead: 5." in said
    assert "try: He's initialisation (gain 1.41; layer.init_for_activation_())" in said
    assert said.count("fine") == 2


def test_plot(tmp_path: Path) -> None:
    figure = watched().plot(tmp_path / "new" / "health.png")
    assert (tmp_path / "new" / "health.png").read_bytes().startswith(b"\x89PNG")
    titles = [axes.get_title() for part in figure.subfigs for axes in part.axes]
    assert titles[:3] == ["0, relu", "1, relu, dead", "2, relu"]


def test_json(tmp_path: Path) -> None:
    m = watched()
    text = m.to_json(tmp_path / "health.json")
    found = json.loads(text)
    assert json.loads((tmp_path / "health.json").read_text()) == found
    assert found == json.loads(json.dumps(m.to_dict()))
    assert found["activations"]["1"]["verdicts"][0]["kind"] == "dead"


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    m = watched()
    with SummaryWriter(str(tmp_path)) as writer:
        m.write_tensorboard(writer, step=7)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(m.scalars())
    (event,) = events.Scalars("zeros/1")
    assert event.step == 7
    assert event.value == pytest.approx(m.scalars()["zeros/1"])
    (histogram,) = events.Histograms("pre-activations/0")
    assert histogram.histogram_value.num == sum(m.to_dict()["activations"]["0"]["pre-activations"]["counts"])


def test_lightning(tmp_path: Path) -> None:
    try:
        from lightning import pytorch as lightning
    except Exception as error:  # a torchvision of another build makes it raise more than ImportError
        pytest.skip(f"Lightning cannot be imported here: {error}")
    from fusedact.health.lightning import MonitorCallback

    class Net(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(fusedact.nn.Linear(4, 8, activation="relu"), nn.Linear(8, 1), nn.Sigmoid())

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            result: Tensor = self.net(batch).square().mean()
            return result

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    net = Net()
    before = footprint(net.net)
    callback = MonitorCallback(every=2, report=False)
    trainer = lightning.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(net, torch.utils.data.DataLoader(torch.randn(40, 4), batch_size=8))
    assert callback.monitor is not None
    found = callback.monitor.to_dict()
    assert (found["steps"], found["calls"]) == (3, 5)
    assert found["activations"].keys() == {"net.0", "net.2"}
    assert found["activations"]["net.0"]["gradient"]["steps"] == 3
    assert "zeros/net.0" in trainer.callback_metrics
    after = footprint(net.net)
    assert {k: v for k, v in after.items() if "hooks" in k or "tap" in k} == {
        k: v for k, v in before.items() if "hooks" in k or "tap" in k
    }
