"""Do skip connections keep gradients alive? The same deep network with and without x + f(x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedact
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("sigmoid", "tanh", "relu")
DEPTH, WIDTH, STEPS = 24, 32, 150


class Deep(nn.Module):
    """64 pixels in, DEPTH layers of WIDTH, 10 digits out; `skip` adds each layer's input to its output."""

    def __init__(self, activation: str, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.first, self.last = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.layers = nn.ModuleList(fusedact.nn.Linear(WIDTH, WIDTH, activation=activation) for _ in range(DEPTH))
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x) / DEPTH**0.5 if self.skip else layer(x)  # the sum of all stays of order 1
        result: Tensor = self.last(x)
        return result


def run() -> frame.Report:
    """Gradient norms by layer before training, then a short training."""
    data = frame.digits()
    numbers: dict[str, dict[str, float]] = {}
    curves = {}
    cases = [(name, skip) for name in NAMES for skip in (False, True)]
    for name, skip in frame.track(cases, "training"):
        torch.manual_seed(0)
        net, key = Deep(name, skip), f"{name}, {'skips' if skip else 'plain'}"
        F.cross_entropy(net(data.x), data.y).backward()  # type: ignore[no-untyped-call]
        norms = [float(layer.weight.grad.norm()) for layer in net.layers]  # type: ignore[union-attr, operator]
        curves[key] = norms
        losses = frame.fit(net, data.x, data.y, steps=STEPS)
        numbers[key] = {
            "gradient": norms[0] / norms[-1],
            "loss": sum(losses[-10:]) / 10,
            "accuracy": frame.accuracy(net, data.test_x, data.test_y),
        }
    rows = [(k, f"{n['gradient']:.1e}", f"{n['loss']:.3f}", f"{n['accuracy']:.1%}") for k, n in numbers.items()]
    conclusion = f"Through {DEPTH} layers, " + "; ".join(
        f"with {name} the first layer's gradient is {numbers[f'{name}, plain']['gradient']:.0e} of the last one's "
        f"({numbers[f'{name}, plain']['accuracy']:.0%} of the digits learnt in {STEPS} steps), with skip connections "
        f"{numbers[f'{name}, skips']['gradient']:.1f} ({numbers[f'{name}, skips']['accuracy']:.0%})"
        for name in NAMES
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (key, norms) in enumerate(curves.items()):
            axes.plot(norms, color=f"C{number // 2}", linestyle="-" if "skips" in key else "--", label=key)
        axes.set(yscale="log", xlabel="layer", ylabel="gradient norm of its weights, before training")
        axes.legend()

    return frame.Report(
        f"{DEPTH} layers, plain and with skip connections",
        ("network", "gradient, first / last layer", "loss", "test accuracy"),
        rows,
        conclusion + ".",
        numbers,
        draw,
    )
