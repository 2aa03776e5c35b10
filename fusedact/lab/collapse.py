"""Why not stay linear? A deep linear network is one affine map, and learns no more than one.

The product of the weights and the outputs of map and network are compared; then four networks that differ in the
activation alone learn which of scikit-learn's digits are odd, where a straight cut through the pixels does not do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (64, 48, 48, 2)
NAMES = ("identity", "relu", "sigmoid", "tanh")
SEEDS, STEPS, LR = 2, 300, 1e-2


def affine(net: nn.Sequential) -> tuple[Tensor, Tensor]:
    """The product of all weights, and the bias that goes with it: W x + b is the net without its activations."""
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    weight, bias = torch.eye(layers[0].in_features), torch.zeros(layers[0].in_features)
    for layer in layers:
        weight, bias = layer.weight @ weight, layer.weight @ bias + layer.bias
    return weight.detach(), bias.detach()


@torch.no_grad()
def bend(net: nn.Module, x: Tensor) -> float:
    """How far from affine: the output half-way between two inputs, against the middle of their outputs, relatively."""
    a, b = x[:-1:2], x[1::2]
    half, middle = net((a + b) / 2), (net(a) + net(b)) / 2
    return frame.rms(half - middle) / frame.rms(middle)


def run() -> frame.Report:
    """Train each, measure accuracy and loss over a few seeds, the bend, and the distance from the product's map."""
    data = frame.digits()
    numbers: dict[str, dict[str, float]] = {}
    curves: dict[str, list[float]] = {}
    product = torch.zeros(1, 1)
    for name in frame.track(NAMES, "network"):
        results, losses = [], []
        for _ in range(SEEDS):
            net = frame.mlp(SIZES, name)
            for layer in frame.hidden(net):
                layer.init_for_activation_()
            losses.append(frame.fit(net, data.x, data.y % 2, steps=STEPS, lr=LR))
            results.append(frame.accuracy(net, data.test_x, data.test_y % 2))
        weight, bias = affine(net)
        if name == "identity":
            product = weight
        with torch.no_grad():
            y = net(data.test_x)
            gap = frame.rms(y - (data.test_x @ weight.T + bias)) / frame.rms(y)
        curves[name] = torch.tensor(losses).mean(0).tolist()
        numbers[name] = {
            "accuracy": sum(results) / SEEDS,
            "loss": sum(curves[name][-20:]) / 20,
            "bend": bend(net, data.test_x),
            "distance from W x + b": gap,
        }
    rows = [
        (name, f"{n['accuracy']:.1%}", f"{n['loss']:.1e}", f"{n['bend']:.0e}", f"{n['distance from W x + b']:.0e}")
        for name, n in numbers.items()
    ]
    linear = numbers["identity"]
    better = [n for n in NAMES[1:] if numbers[n]["accuracy"] > linear["accuracy"]]
    conclusion = (
        f"The {len(SIZES) - 1} linear layers equal their product, one {product.size(0)} × {product.size(1)} matrix, "
        f"to {linear['distance from W x + b']:.0e} of the output, and half-way between two digits the network says "
        f"exactly the middle of what it says of each (bend {linear['bend']:.0e}): trained, it is still linear. "
        f"It tells odd from even in {linear['accuracy']:.1%} of the unseen digits; the same network with "
        f"{frame.listed(better)} does better, up to {max(numbers[n]['accuracy'] for n in NAMES):.1%}."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        for name, curve in curves.items():
            left.plot(curve, label=name)
        left.set(yscale="log", xlabel="step", ylabel="training loss", title="the linear network stops early")
        left.legend()
        limit = float(product.abs().max())
        right.imshow(product, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        right.set(title="all its layers: one matrix", xlabel="pixel", yticks=[0, 1], yticklabels=["even", "odd"])

    return frame.Report(
        "Odd or even digits, four networks that differ in the activation",
        ("activation", "test accuracy", "training loss", "bend", "distance from W x + b"),
        rows,
        conclusion,
        numbers,
        draw,
    )
