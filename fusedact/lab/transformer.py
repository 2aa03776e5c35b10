"""Does the feed-forward block's activation matter? ReLU, GELU and SwiGLU in a small transformer, equal in parameters.

A digit is a sequence of eight rows of pixels. SwiGLU is `fusedact.nn.GatedMLP`, W3 (silu(W1 x) * W2 x); it has a third
matrix, so its hidden width is two thirds of the others' (Shazeer 2020, arXiv:2002.05202).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedact
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEADS, BLOCKS, HIDDEN = 32, 4, 2, 96
STEPS, BATCH, SEEDS = 150, 64, 2
KINDS = ("relu", "gelu", "swiglu")


def feed_forward(kind: str) -> nn.Module:
    """The block of one kind, [*, WIDTH] to [*, WIDTH]."""
    if kind == "swiglu":
        return fusedact.nn.GatedMLP(WIDTH, HIDDEN * 2 // 3, "silu", bias=True)
    return nn.Sequential(fusedact.nn.Linear(WIDTH, HIDDEN, activation=kind), nn.Linear(HIDDEN, WIDTH))


class Block(nn.Module):
    """Attention, then the feed-forward block, each behind a LayerNorm and beside a skip connection."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out, self.forth = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), feed_forward(kind)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, WIDTH)
        x = x + self.out(mixed)
        result: Tensor = x + self.forth(self.norm2(x))
        return result


class Reader(nn.Module):
    """64 pixels [N, 64] as 8 rows to 10 digits [N, 10]."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, WIDTH), nn.Parameter(torch.randn(8, WIDTH) * 0.1)
        self.blocks = nn.Sequential(*(Block(kind) for _ in range(BLOCKS)))
        self.digit = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.embed(x.view(-1, 8, 8)) + self.place)
        result: Tensor = self.digit(h.mean(1))
        return result


def run() -> frame.Report:
    """Train each kind from the same seeds; accuracy and loss averaged over them."""
    data = frame.digits()
    numbers: dict[str, dict[str, float]] = {}
    curves: dict[str, list[float]] = {}
    for kind in frame.track(KINDS, "transformer"):
        accuracies, losses = [], []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            net = Reader(kind)
            losses.append(frame.fit(net, data.x, data.y, steps=STEPS, batch=BATCH, lr=4e-3))
            accuracies.append(frame.accuracy(net, data.test_x, data.test_y))
        curves[kind] = torch.tensor(losses).mean(0).tolist()
        numbers[kind] = {
            "accuracy": sum(accuracies) / SEEDS,
            "spread": max(accuracies) - min(accuracies),
            "loss": sum(curves[kind][-20:]) / 20,
            "parameters": sum(p.numel() for p in net.parameters()),
        }
    rows = [
        (kind, f"{n['parameters']:,.0f}", f"{n['accuracy']:.1%}", f"{n['spread']:.1%}", f"{n['loss']:.4f}")
        for kind, n in numbers.items()
    ]
    order = sorted(KINDS, key=lambda kind: numbers[kind]["loss"])
    between = max(n["accuracy"] for n in numbers.values()) - min(n["accuracy"] for n in numbers.values())
    within = max(n["spread"] for n in numbers.values())
    sizes = [n["parameters"] for n in numbers.values()]
    apart = max(sizes) / min(sizes) - 1
    verdict = (
        "no more than two seeds of the same kind differ by" if between <= within
        else "more than two seeds of the same kind differ by"
    )  # fmt: skip
    conclusion = (
        f"All three read between {min(n['accuracy'] for n in numbers.values()):.1%} and "
        f"{max(n['accuracy'] for n in numbers.values()):.1%} of the unseen digits; the kinds differ by "
        f"{100 * between:.1f} points, {verdict} ({100 * within:.1f}). The training loss is lowest with {order[0]} "
        f"({numbers[order[0]]['loss']:.4f}), then {order[1]} ({numbers[order[1]]['loss']:.4f}) and {order[2]} "
        f"({numbers[order[2]]['loss']:.4f}), with equally many parameters to {apart:.1%}."
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for kind, curve in curves.items():
            axes.plot(torch.tensor(curve).unfold(0, 10, 1).mean(1), label=kind)
        axes.set(yscale="log", xlabel="step", ylabel="training loss, mean of 10 steps")
        axes.legend()

    return frame.Report(
        "Feed-forward blocks of a small transformer",
        ("kind", "parameters", "test accuracy", "between seeds", "training loss"),
        rows,
        conclusion,
        {**numbers, "parameters differ by": apart},
        draw,
    )
