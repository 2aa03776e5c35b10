"""What the experiments of the lab share: a report with its table and picture, seeds, progress, and short trainings.

Knows no experiment. torch alone is needed to compute; rich draws tables, matplotlib pictures, both when asked to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedact
from fusedact.nn.layers import Activated

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress
    from rich.table import Table

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What an experiment found. The conclusion is made of `numbers`, not written before them."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    conclusion: str
    numbers: dict[str, Any]  # what the table and the conclusion say, unrounded
    draw: Callable[[Figure], None]

    def table(self) -> Table:
        """The table, for rich to print."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=self.title)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def save(self, path: Path) -> Path:
        """Draw the picture into a PNG file; its folder is made if there is none."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")  # not pyplot's: nothing stays behind, no window opens
        FigureCanvasAgg(figure)
        self.draw(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        return path

    def markdown(self, picture: str) -> str:
        """Table, picture and conclusion as a section of a page."""
        lines = ["| " + " | ".join(self.columns) + " |", "|---" + "|---:" * (len(self.columns) - 1) + "|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        return "\n".join([*lines, "", f"![{self.title}]({picture})", "", self.conclusion, ""])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from `seed`, and one thread: networks this small gain nothing from a second one.

    Afterwards the caller's random numbers go on as if nothing had been drawn, and the threads are what they were.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def shown_on(progress: Progress) -> Iterator[None]:
    """Let `track` report to a bar of rich's."""
    token = _progress.set(progress)
    try:
        yield
    finally:
        _progress.reset(token)


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, one after another; whoever watches sees how far they are."""
    progress = _progress.get()
    if progress is None:
        yield from items
        return
    task = progress.add_task(what, total=len(items))
    for item in items:
        yield item
        progress.advance(task)
    progress.remove_task(task)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits, 8 × 8 pixels from 0 to 1: what an experiment learns, and is tested on."""

    x: Tensor  # [1437, 64]
    y: Tensor  # [1437]
    test_x: Tensor  # [360, 64]
    test_y: Tensor  # [360]


def digits() -> Digits:
    """The demo's digits, as vectors; they come with scikit-learn, nothing is downloaded."""
    from fusedact.demo import load_digits

    data = load_digits()
    return Digits(
        data.train_images.flatten(1), data.train_digits, data.test_images.flatten(1), data.test_digits
    )  # fmt: skip


def mlp(sizes: Sequence[int], activation: str | None, **params: Any) -> nn.Sequential:
    """Linear layers of these sizes; every one but the last ends in the activation, fused."""
    pairs = list(itertools.pairwise(sizes))
    layers = [fusedact.nn.Linear(a, b, activation=activation, **params) for a, b in pairs[:-1]]
    return nn.Sequential(*layers, nn.Linear(*pairs[-1]))


def hidden(net: nn.Module) -> list[Any]:
    """The layers of `net` that end in an activation, first to last."""
    return [m for m in net.modules() if isinstance(m, Activated) and m.activation is not None]


def fit(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    lr: float = 2e-3,
    batch: int = 128,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> list[float]:
    """Train for some steps on random batches (all of x where it has no more than `batch` rows); the losses."""
    optim: Any = optimizer(net.parameters(), lr=lr)  # type: ignore[call-arg]
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,)) if len(x) > batch else slice(None)
        optim.zero_grad()
        value = loss(net(x[chosen]), y[chosen])
        value.backward()  # type: ignore[no-untyped-call]
        optim.step()
        losses.append(float(value.detach()))
    return losses


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of x whose largest output is at y."""
    return float((net(x).argmax(-1) == y).float().mean())


def rms(t: Tensor) -> float:
    """The root of the mean square."""
    return float(t.double().square().mean().sqrt())


def listed(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'; 'none' for nothing."""
    if len(names) < 2:
        return "".join(names) or "none"
    return ", ".join(names[:-1]) + " and " + names[-1]
