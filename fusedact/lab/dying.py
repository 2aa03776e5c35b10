"""When does a ReLU die? Dead units after training, by learning rate, initialisation and activation.

A unit is dead if none of the training digits brings its pre-activation out of the zone where the activation is flat
(the row's saturation zones): it is constant, gets no gradient, and stays so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (64, 64, 64, 10)
NAMES: dict[str, dict[str, float]] = {"relu": {}, "leaky_relu": {"negative_slope": 0.1}, "elu": {}}
RATES = (0.003, 0.03, 0.1)
STARTS = {"He": 0.0, "biases at -1": -1.0}  # He's normal weights; what the biases are set to
STEPS = 100


def dead(net: nn.Sequential, x: Tensor) -> float:
    """The share of the hidden units whose pre-activation lies in a flat zone for every row of x."""
    flat, units = 0, 0
    with torch.no_grad():
        for layer in frame.hidden(net):
            row = layer.activation.row
            zones = row.saturation(*row.resolve(**layer.activation.arguments())[1])
            before = x @ layer.weight.T + layer.bias
            inside = torch.zeros_like(before, dtype=torch.bool)
            for low, high in zones:
                inside |= (before >= low) & (before <= high)
            flat, units = flat + int(inside.all(0).sum()), units + before.size(1)
            x = layer(x)
    return flat / units


def run() -> frame.Report:
    """Train with Adam from each start at each rate; count the dead at the end."""
    data = frame.digits()
    numbers: dict[str, dict[str, float]] = {}
    cases = [(name, start, rate) for name in NAMES for start in STARTS for rate in RATES]
    for name, start, rate in frame.track(cases, "training"):
        torch.manual_seed(0)
        net = frame.mlp(SIZES, name, **NAMES[name])
        for layer in frame.hidden(net):
            layer.init_for_activation_()
            nn.init.constant_(layer.bias, STARTS[start])
        before = dead(net, data.x)
        frame.fit(net, data.x, data.y, steps=STEPS, lr=rate)
        numbers[f"{name}, {start}, {rate:g}"] = {
            "dead at first": before,
            "dead": dead(net, data.x),
            "accuracy": frame.accuracy(net, data.test_x, data.test_y),
        }
    rows = [
        (name, start, f"{rate:g}", f"{n['dead at first']:.0%}", f"{n['dead']:.0%}", f"{n['accuracy']:.1%}")
        for (name, start, rate), n in zip(cases, numbers.values(), strict=True)
    ]
    fine = numbers[f"relu, He, {RATES[0]:g}"]
    hot = numbers[f"relu, He, {RATES[-1]:g}"]
    low = numbers[f"relu, biases at -1, {RATES[0]:g}"]
    cured = {name: max(n["dead"] for key, n in numbers.items() if key.startswith(name + ",")) for name in NAMES}
    conclusion = (
        f"From He's weights and with a learning rate of {RATES[0]:g}, {fine['dead']:.0%} of the ReLUs are dead at the "
        f"end; at {RATES[-1]:g} it is {hot['dead']:.0%}. From biases at -1 {low['dead at first']:.0%} are dead before "
        f"the first step, {low['dead']:.0%} after the last, and {low['accuracy']:.0%} of the digits are read instead "
        f"of {fine['accuracy']:.0%}. LeakyReLU, whose slope is nowhere 0, loses {cured['leaky_relu']:.0%} at worst; "
        f"ELU, whose slope is small only far below 0, {cured['elu']:.0%}."
    )

    def draw(figure: Figure) -> None:
        for axes, start in zip(figure.subplots(1, len(STARTS), sharey=True), STARTS, strict=True):
            for name in NAMES:
                shares = [numbers[f"{name}, {start}, {rate:g}"]["dead"] for rate in RATES]
                axes.plot([f"{rate:g}" for rate in RATES], shares, marker="o", label=name)
            axes.set(title=start, xlabel="learning rate", ylabel="dead units", ylim=(-0.03, 1.03))
            axes.legend()

    return frame.Report(
        "Dead units of a trained network",
        ("activation", "start", "learning rate", "dead at first", "dead at the end", "test accuracy"),
        rows,
        conclusion,
        numbers,
        draw,
    )
