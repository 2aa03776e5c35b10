"""What does it cost to saturate? Sigmoid and tanh with ever larger weights: flat units, lost gradients, no learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from fusedact import registry
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (64, 64, 64, 64, 10)
NAMES = ("sigmoid", "tanh")
SCALES = (1.0, 5.0, 25.0, 100.0)  # times Xavier's weights
STEPS = 150


def saturated(name: str, before: torch.Tensor) -> float:
    """The share of the pre-activations that lie in a flat zone of the activation."""
    inside = torch.zeros_like(before, dtype=torch.bool)
    for low, high in registry.get(name).saturation():
        inside |= (before >= low) & (before <= high)
    return float(inside.float().mean())


def run() -> frame.Report:
    """Scale Xavier's weights, look at the untrained network, then train it."""
    data = frame.digits()
    numbers: dict[str, dict[str, float]] = {}
    cases = [(name, scale) for name in NAMES for scale in SCALES]
    for name, scale in frame.track(cases, "training"):
        torch.manual_seed(0)
        net = frame.mlp(SIZES, name)
        layers = [layer for layer in net if isinstance(layer, nn.Linear)]
        for layer in layers[:-1]:
            nn.init.xavier_normal_(layer.weight)
            layer.weight.data *= scale
        x, shares = data.x, []
        with torch.no_grad():
            for layer in layers[:-1]:
                shares.append(saturated(name, x @ layer.weight.T + layer.bias))
                x = layer(x)
        F.cross_entropy(net(data.x), data.y).backward()  # type: ignore[no-untyped-call]
        first, last = layers[0].weight.grad, layers[-1].weight.grad
        assert first is not None
        assert last is not None
        losses = frame.fit(net, data.x, data.y, steps=STEPS)
        numbers[f"{name} × {scale:g}"] = {
            "saturated": sum(shares) / len(shares),
            "gradient": float(first.norm() / last.norm()) / scale,  # per relative change of a weight
            "loss": sum(losses[-10:]) / 10,
            "accuracy": frame.accuracy(net, data.test_x, data.test_y),
        }
    rows = [
        (key, f"{n['saturated']:.0%}", f"{n['gradient']:.1e}", f"{n['loss']:.3f}", f"{n['accuracy']:.1%}")
        for key, n in numbers.items()
    ]
    mild, harsh = ({name: numbers[f"{name} × {scale:g}"] for name in NAMES} for scale in (SCALES[0], SCALES[-1]))
    conclusion = " ".join(
        f"{name}: with Xavier's weights {mild[name]['saturated']:.0%} of the units are saturated and "
        f"{mild[name]['accuracy']:.0%} of the digits are learnt; with {SCALES[-1]:g} times the weights "
        f"{harsh[name]['saturated']:.0%} are, and it is {harsh[name]['accuracy']:.0%}."
        for name in NAMES
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for name in NAMES:
            of_name = [numbers[f"{name} × {scale:g}"] for scale in SCALES]
            left.plot(SCALES, [n["saturated"] for n in of_name], marker="o", label=name)
            right.plot(SCALES, [n["accuracy"] for n in of_name], marker="o", label=name)
        left.set(xscale="log", xlabel="weights, times Xavier's", ylabel="saturated units")
        right.set(xscale="log", xlabel="weights, times Xavier's", ylabel=f"test accuracy after {STEPS} steps")
        right.legend()

    return frame.Report(
        "Saturated networks",
        ("activation × weights", "saturated", "gradient, first / last layer", "loss", "test accuracy"),
        rows,
        conclusion,
        numbers,
        draw,
    )
