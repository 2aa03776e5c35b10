"""Does SELU normalise itself? Mean and variance through a deep network, with its own initialisation and without.

LeCun's weights, variance 1/n, are part of the design (Klambauer et al. 2017). He's are not, and neither is batch
norm: that keeps mean and variance in its own way, but lets gradients grow with depth, and makes the answer for one
sample depend on which others came along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import fusedact
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, BATCH = 32, 128, 16


@dataclass
class Setting:
    """An activation, the variance of its weights times the width, and whether batch norm precedes it."""

    activation: str
    variance: float
    batch_norm: bool = False


SETTINGS = {
    "SELU, LeCun": Setting("selu", 1.0),
    "SELU, He": Setting("selu", 2.0),
    "SELU, LeCun, batch norm": Setting("selu", 1.0, True),
    "ReLU, LeCun": Setting("relu", 1.0),
    "tanh, LeCun": Setting("tanh", 1.0),
}


def layers(setting: Setting) -> nn.ModuleList:
    """DEPTH blocks, each a module of its own."""
    blocks = nn.ModuleList()
    for _ in range(DEPTH):
        if setting.batch_norm:
            linear: nn.Linear = nn.Linear(WIDTH, WIDTH, bias=False)
            blocks.append(nn.Sequential(linear, fusedact.nn.BiasAct(WIDTH, setting.activation)))
            blocks[-1].insert(1, nn.BatchNorm1d(WIDTH))  # type: ignore[operator]
        else:
            linear = fusedact.nn.Linear(WIDTH, WIDTH, activation=setting.activation)
            nn.init.zeros_(linear.bias)
            blocks.append(linear)
        nn.init.normal_(linear.weight, std=math.sqrt(setting.variance / WIDTH))
    return blocks


def measure(setting: Setting) -> dict[str, list[float] | float]:
    """Per layer: mean, variance and gradient; and how much one sample's output changes with its neighbours."""
    torch.manual_seed(0)
    blocks, x = layers(setting), torch.randn(BATCH, WIDTH)
    seen: list[Tensor] = []
    h = x
    for block in blocks:
        h = block(h)
        h.retain_grad()
        seen.append(h)
    (h * torch.randn_like(h)).sum().backward()  # type: ignore[no-untyped-call]
    norms = [float(s.grad.norm()) for s in seen if s.grad is not None]
    with torch.no_grad():
        alone, other = x.clone(), x.clone()
        other[1:] = torch.randn(BATCH - 1, WIDTH)  # the first sample stays
        for block in blocks:
            alone, other = block(alone), block(other)
    return {
        "mean": [float(s.detach().mean()) for s in seen],
        "variance": [float(s.detach().var()) for s in seen],
        "gradient": [norm / norms[-1] for norm in norms],
        "neighbours": frame.rms(alone[0] - other[0]) / frame.rms(alone[0]),
    }


def run() -> frame.Report:
    """Measure each setting at its start, without training."""
    numbers = {name: measure(setting) for name, setting in frame.track(list(SETTINGS.items()), "setting")}
    ends = {"mean": -1, "variance": -1, "gradient": 0}  # the layer that the table shows
    last = {
        name: {key: value[ends[key]] if isinstance(value, list) else value for key, value in n.items()}
        for name, n in numbers.items()
    }
    rows = [
        (name, f"{n['mean']:+.2f}", f"{n['variance']:.2g}", f"{n['gradient']:.2g}", f"{n['neighbours']:.0%}")
        for name, n in last.items()
    ]
    own, he, norm, relu = (last[name] for name in list(SETTINGS)[:4])
    conclusion = (
        f"After {DEPTH} layers SELU with LeCun's weights has mean {own['mean']:+.2f} and variance "
        f"{own['variance']:.2f}, and the gradient of the first layer is {own['gradient']:.1f} times the last one's. "
        f"With He's weights the variance is {he['variance']:.2g} (ReLU with LeCun's: {relu['variance']:.1g}). With "
        f"batch norm it is {norm['variance']:.2f}, but the gradient grows {norm['gradient']:.2g}-fold towards the "
        f"first layer, and other samples in its batch change the output of one by {norm['neighbours']:.0%} (without "
        f"batch norm by {own['neighbours']:.0%})."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for name, n in numbers.items():
            left.plot(n["variance"], label=name)
            right.plot(n["gradient"], label=name)
        left.axhline(1, color="black", linewidth=0.5)
        left.set(yscale="log", xlabel="layer", ylabel="variance")
        right.set(yscale="log", xlabel="layer", ylabel="gradient norm, last layer's = 1")
        left.legend(fontsize="small")

    return frame.Report(
        f"{DEPTH} layers before training",
        ("network", "last mean", "last variance", "gradient, first / last", "changed by its batch"),
        rows,
        conclusion,
        last,
        draw,
    )
