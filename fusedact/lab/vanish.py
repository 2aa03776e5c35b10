"""Do gradients vanish with depth? Their norm in front of each layer of a deep network, before any training.

The weights are orthogonal: they change no norm, so what is lost is lost in the activations. sigmoid' <= 1/4, so n
sigmoids leave at most 0.25^n of a gradient; the line is drawn, and the measured norms lie below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

import fusedact
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("sigmoid", "tanh", "softsign", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish")
DEPTH, WIDTH, BATCH = 20, 64, 256


def norms(name: str) -> list[float]:
    """|gradient| behind each activation, from the last to the first, relative to the last one's."""
    x, layers = torch.randn(BATCH, WIDTH), []
    for _ in range(DEPTH):
        layer = fusedact.nn.Linear(WIDTH, WIDTH, activation=name)
        nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layer.bias)
        x = layer(x)
        x.retain_grad()
        layers.append(x)
    (x * torch.randn_like(x)).sum().backward()  # type: ignore[no-untyped-call]
    seen = [float(layer.grad.double().norm()) for layer in reversed(layers) if layer.grad is not None]
    return [norm / seen[0] for norm in seen]


def run() -> frame.Report:
    """Measure every activation of NAMES, and hold sigmoid against its bound."""
    curves = {name: norms(name) for name in frame.track(NAMES, "activation")}
    bound = [0.25**n for n in range(DEPTH)]
    left = {name: curve[-1] for name, curve in curves.items()}
    factor = {name: value ** (1 / (DEPTH - 1)) for name, value in left.items()}
    below = all(norm <= limit * (1 + 1e-5) for norm, limit in zip(curves["sigmoid"], bound, strict=True))
    rows = [(n, f"{factor[n]:.3f}", f"{left[n]:.1e}") for n in sorted(NAMES, key=lambda n: -left[n])]
    kept = [n for n in NAMES if left[n] > 0.01]
    conclusion = (
        f"Through {DEPTH - 1} layers sigmoid leaves {left['sigmoid']:.0e} of the gradient, "
        f"{'below' if below else 'NOT below'} its bound 0.25^{DEPTH - 1} = {bound[-1]:.0e} at every depth; tanh leaves "
        f"{left['tanh']:.2f}, ReLU {left['relu']:.0e} (half of it is cut in every layer, which He's factor 2 in the "
        f"variance of the weights makes up for). More than a hundredth is left by {frame.listed(kept)}."
    )

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        for name, curve in curves.items():
            axes.plot(curve, label=name, marker=".")
        axes.plot(bound, color="black", linestyle="--", label="0.25^n")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(yscale="log", xlabel="layers below the last", ylabel="gradient norm", title="orthogonal weights")
        axes.legend(ncols=2)

    return frame.Report(
        f"Gradients through {DEPTH} layers, relative to the last layer's",
        ("activation", "factor per layer", f"left after {DEPTH - 1} layers"),
        rows,
        conclusion,
        {"left": left, "factor": factor, "curves": curves, "below the bound": below},
        draw,
    )
