"""fusedact.fuse on the zoo (the extra `zoo`): outputs, gradients, state_dict keys, and how much of it is fused."""

from __future__ import annotations

import collections
import copy
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import STRANGERS, ZOO, Animal

import fusedact

MISSING = [n for n in ("torchvision", "timm", "transformers") if importlib.util.find_spec(n) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; the extra `zoo` has them"),
    pytest.mark.filterwarnings("ignore"),
]
animals = pytest.mark.parametrize(
    "animal",
    [
        pytest.param(a, marks=() if a.quick else pytest.mark.slow(reason="a large model, seconds to a minute"))
        for a in (*ZOO, *STRANGERS)
    ],
    ids=lambda a: a.name.replace(" ", "-"),
)

# The operators that activations of any spelling end in. Fused, none of them may run.
ACTIVATIONS = {
    "relu", "relu_", "gelu", "silu", "silu_", "sigmoid", "tanh", "hardswish", "hardswish_", "hardsigmoid",
    "hardsigmoid_", "hardtanh", "hardtanh_", "leaky_relu", "elu", "mish", "softplus", "erf",
}  # fmt: skip


class Activations(TorchDispatchMode):
    """Counts torch's activation operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ACTIVATIONS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def counted(model: nn.Module, inputs: dict[str, Any]) -> int:
    with torch.no_grad(), Activations() as count:
        model(**inputs)
    return count.seen.total()


def tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)


def results(model: nn.Module, inputs: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    """Floating-point outputs, then the gradient of every parameter."""
    torch.manual_seed(1)  # the same dropout and stochastic depth
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    outputs = [t for t in tensors(model(**inputs)) if t.is_floating_point()]
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = sum(t.sin().sum() for t in outputs if t.requires_grad)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [*(t.detach() for t in outputs), *gradients]


def beyond(got: list[Tensor | None], wanted: list[Tensor | None]) -> float:
    """The largest difference in units of the bar, rtol 1e-4 and atol 1e-5."""
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None and a.numel():
            off = (a.double() - b.double()).abs() / (1e-5 + 1e-4 * b.double().abs())
            worst = max(worst, float(off.nan_to_num(nan=torch.inf).max()))  # no number is beyond every bar
    return worst


Results = list[Tensor | None]


def farther(got: Results, originals: list[Results], exact: Results) -> list[str]:
    """Tensors beyond the bar whose error, in norm, exceeds twice the originals' largest by more than 8 roundings."""
    found = []
    for i, (a, truth, *others) in enumerate(zip(got, exact, *originals, strict=True)):
        if a is None or truth is None:
            continue
        mine, *theirs = (float((t.double() - truth).norm()) for t in (a, *others) if t is not None)
        allowed = 2 * max(theirs) + 8 * torch.finfo(torch.float32).eps * float(truth.norm())
        if beyond([a], [truth]) > 1 and not mine <= allowed:
            found.append(f"tensor {i}: {mine:.3g} from float64, the originals {theirs}, norm {truth.norm():.3g}")
    return found


def neighbour(model: nn.Module, seed: int) -> nn.Module:
    """The model with every parameter at most one unit in its last place off: what rounding makes of it, once more."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1 + torch.randint(-1, 2, p.shape, generator=generator) * torch.finfo(p.dtype).eps)
    return other


@animals
def test_zoo(animal: Animal) -> None:
    """>= 95 % fused, by the report and by what runs; outputs and gradients within the bar, in both modes.

    An element that cancels, and batch norm over a few elements, miss the bar by rounding alone. Then float64 decides:
    both models are float32 computations of one function in different orders, so every tensor of the fused one must be
    as near to float64 as the original's, in norm, where single elements average out (`farther`). What rounding does to
    the original is a draw of one; batch norm over eight elements amplifies an early rounding at random, so three more
    draws are taken with the parameters a unit in the last place off.
    """
    torch.manual_seed(0)
    model = animal.make()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    inputs = animal.inputs()
    fused, report = fusedact.fuse(model, report=True)
    assert report.share >= 0.95, str(report)
    assert not report.unread, str(report)
    assert fused.state_dict().keys() == model.state_dict().keys()
    for training in (True, False):
        fused.load_state_dict(model.state_dict())  # the same running statistics
        exactly = animal_in_double(animal, model)
        got, wanted = results(fused.train(training), inputs), results(model.train(training), inputs)
        if beyond(got, wanted) > 1:
            exact = results(exactly.train(training), inputs, torch.float64)
            originals = [wanted, *(results(neighbour(model, seed), inputs) for seed in range(3))]
            assert not farther(got, originals, exact), f"training={training}"
    before, after = counted(model.eval(), inputs), counted(fused.eval(), inputs)
    assert before
    assert after <= 0.05 * before
    fusedact.unfuse(fused)
    assert counted(fused, inputs) == before


def animal_in_double(animal: Animal, model: nn.Module) -> nn.Module:
    """The same weights in float64."""
    torch.manual_seed(0)
    other = animal.make().double()
    other.load_state_dict(model.state_dict())
    for a, b in zip(other.modules(), model.modules(), strict=True):
        if isinstance(a, nn.Dropout) and isinstance(b, nn.Dropout):
            a.p = b.p
    return other
