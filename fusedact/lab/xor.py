"""What can one hidden layer do that none can? Exclusive or: four points that no straight line separates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = torch.tensor([0.0, 1.0, 1.0, 0.0])
TRIES, STEPS, HIDDEN = 6, 250, 8
NETS = {"no hidden layer": (None, ()), "hidden, linear": ("identity", (HIDDEN,)), "hidden, relu": ("relu", (HIDDEN,))}


def run() -> frame.Report:
    """Train each network from several starts; the best and the worst of them, and the regions of the best."""
    numbers: dict[str, dict[str, float]] = {}
    regions = {}
    axis = torch.linspace(-0.5, 1.5, 121)
    plane = torch.cartesian_prod(axis, axis)
    for name, (activation, hidden) in frame.track(list(NETS.items()), "network"):
        right, losses, best = [], [], (-1.0, nn.Module())
        for _ in range(TRIES):
            net = nn.Sequential(frame.mlp((2, *hidden, 1), activation), nn.Flatten(0))
            losses.append(
                frame.fit(net, X, Y, steps=STEPS, lr=0.05, loss=F.binary_cross_entropy_with_logits)[-1]
            )  # fmt: skip
            with torch.no_grad():
                right.append(int(((net(X) > 0) == (Y > 0.5)).sum()))
            best = max(best, (right[-1] - losses[-1], net), key=lambda pair: pair[0])
        with torch.no_grad():
            regions[name] = torch.sigmoid(best[1](plane)).view(121, 121).T
        numbers[name] = {"most right": max(right), "solved": sum(r == 4 for r in right), "least loss": min(losses)}
    rows = [
        (name, f"{n['most right']:.0f} of 4", f"{n['solved']:.0f} of {TRIES}", f"{n['least loss']:.4f}")
        for name, n in numbers.items()
    ]
    linear = max(numbers[name]["most right"] for name in list(NETS)[:2])
    relu = numbers["hidden, relu"]
    conclusion = (
        f"Without an activation no start got more than {linear:.0f} of the four points right, with a hidden layer or "
        f"without: its loss stays at {numbers['hidden, linear']['least loss']:.3f}, which is log 2 = 0.693, a coin's. "
        f"With ReLU behind the hidden layer {relu['solved']:.0f} of {TRIES} starts got all four, "
        f"down to a loss of {relu['least loss']:.4f}."
    )

    def draw(figure: Figure) -> None:
        for axes, (name, region) in zip(figure.subplots(1, len(NETS), sharey=True), regions.items(), strict=True):
            axes.imshow(region, origin="lower", extent=(-0.5, 1.5, -0.5, 1.5), cmap="RdBu", vmin=0, vmax=1)
            axes.contour(axis, axis, region, levels=[0.5], colors="black", linewidths=1)
            axes.scatter(X[:, 0], X[:, 1], c=Y, cmap="RdBu", vmin=0, vmax=1, edgecolors="black", s=90)
            axes.set(title=f"{name}: {numbers[name]['most right']:.0f} of 4")

    return frame.Report(
        "Exclusive or", ("network", "most points right", "starts that solve it", "least loss"), rows, conclusion,
        numbers, draw,
    )  # fmt: skip
