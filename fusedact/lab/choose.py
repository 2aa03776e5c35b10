"""Which activation should I take? A fair race of all of them: one task, one network, each with its own initialisation.

The networks take their steps in turn, so that whatever else the machine does strikes all alike. Small differences of
accuracy are luck: with 360 test digits one digit is 0.3 points.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedact import registry
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (64, 128, 128, 2)  # is the digit odd? No straight cut through the pixels says
STEPS, BATCH, LR = 150, 128, 5e-3


def kept(net: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for backward, beside the parameters and the input."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()} | {x.untyped_storage().data_ptr()}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x)
    return sum(found.values())


def run() -> frame.Report:
    """Train a network with every activation of the registry."""
    data = frame.digits()
    nets: dict[str, nn.Module] = {}
    for row in registry.ROWS:
        torch.manual_seed(0)
        nets[row.name] = frame.mlp(SIZES, row.name)
        for layer in frame.hidden(nets[row.name]):
            layer.init_for_activation_()
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=LR) for name, net in nets.items()}
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    losses: dict[str, list[float]] = {name: [] for name in nets}
    for _ in frame.track(range(STEPS), f"{len(nets)} networks"):
        chosen = torch.randint(len(data.x), (BATCH,))
        x, y = data.x[chosen], data.y[chosen] % 2
        for name, net in nets.items():
            begin = time.perf_counter()
            optimizers[name].zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - begin)
            losses[name].append(float(loss.detach()))
    numbers: dict[str, dict[str, Any]] = {
        name: {
            "accuracy": frame.accuracy(net, data.test_x, data.test_y % 2),
            "loss": sum(losses[name][-10:]) / 10,
            "seconds": statistics.median(seconds[name]),
            "bytes": kept(net, data.x[:BATCH]),
        }
        for name, net in nets.items()
    }
    order = sorted(numbers, key=lambda name: (-numbers[name]["accuracy"], numbers[name]["loss"]))
    rows = [
        (
            name,
            f"{numbers[name]['accuracy']:.1%}",
            f"{numbers[name]['loss']:.3f}",
            f"{1e3 * numbers[name]['seconds']:.2f} ms",
            f"{numbers[name]['bytes'] / 2**10:.0f} KiB",
        )
        for name in order
    ]
    best = numbers[order[0]]["accuracy"]
    luck = 2 * (best * (1 - best) / len(data.test_y)) ** 0.5
    close = [name for name in order if numbers[name]["accuracy"] >= best - luck]
    linear = numbers["identity"]["accuracy"]
    behind = [name for name in order if numbers[name]["accuracy"] <= linear and name != "identity"]
    times = sorted(n["seconds"] for n in numbers.values())
    conclusion = (
        f"{order[0]} tells odd from even best, in {best:.1%} of the unseen digits, but {len(close) - 1} others are "
        f"within luck of it ({100 * luck:.1f} points), among them {frame.listed(close[1:6])}. Without an activation it "
        f"is {linear:.1%}; no better than that: {frame.listed(behind)}. Times per step lie within a factor of "
        f"{times[-1] / times[0]:.1f}: the products around an activation cost more than the activation does."
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ordered = order[::-1]
        colours = ["tab:green" if n in close else "tab:red" if n in behind else "tab:blue" for n in ordered]
        axes.barh(ordered, [numbers[n]["accuracy"] for n in ordered], color=colours)
        axes.axvline(linear, color="black", linestyle="--", linewidth=0.8)
        axes.tick_params(axis="y", labelsize=5)
        axes.set(xlabel=f"test accuracy after {STEPS} steps; dashed: no activation", xlim=(0.5, 1))

    return frame.Report(
        f"All {len(nets)} activations on odd and even digits",
        ("activation", "test accuracy", "loss", "time per step", "kept for backward"),
        rows,
        conclusion,
        numbers,
        draw,
    )
