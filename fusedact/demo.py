"""`python -m fusedact demo`: one network, trained twice from one seed, with torch.nn and with fusedact, side by side.

Uses the library as a user would, and knows nothing of its inside. The data are scikit-learn's handwritten digits,
which come with that package; nothing is downloaded. Opens no window: the curves go to a PNG file.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import fusedact


def with_torch() -> nn.Sequential:
    """The network as torch.nn has it: every activation is a module, and a pass over memory, of its own."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3, padding=1),
            act1=nn.GELU(),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            act2=nn.Mish(),
            pool=nn.AvgPool2d(2),
            flat=nn.Flatten(),
            hidden=nn.Linear(64 * 4 * 4, 256),
            act3=nn.SiLU(),
            digit=nn.Linear(256, 10),
        )
    )


def with_fusedact() -> nn.Sequential:
    """The same network: the activation is an argument of the layer before it. The state_dict has the same keys."""
    return nn.Sequential(
        OrderedDict(
            conv1=fusedact.nn.Conv2d(1, 32, 3, padding=1, activation="gelu"),
            conv2=fusedact.nn.Conv2d(32, 64, 3, padding=1, activation="mish"),
            pool=nn.AvgPool2d(2),
            flat=nn.Flatten(),
            hidden=fusedact.nn.Linear(64 * 4 * 4, 256, activation="silu"),
            digit=nn.Linear(256, 10),
        )
    )


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {"torch.nn": with_torch, "fusedact": with_fusedact}


class Digits(NamedTuple):
    """8 × 8 images with values from 0 to 1, and what digit each shows."""

    train_images: Tensor  # [1437, 1, 8, 8]
    train_digits: Tensor  # [1437]
    test_images: Tensor  # [360, 1, 8, 8]
    test_digits: Tensor  # [360]


def load_digits() -> Digits:
    from sklearn.datasets import load_digits as load  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    images, digits = load(return_X_y=True)
    split = train_test_split(images, digits, test_size=0.2, random_state=0, stratify=digits)
    train_images, test_images = (torch.tensor(part / 16, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
    train_digits, test_digits = (torch.tensor(part) for part in split[2:])
    return Digits(train_images, train_digits, test_images, test_digits)


@dataclass
class Trainee:
    """A network on its way: what it is trained with, and what was seen while it was."""

    network: nn.Sequential
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)  # one per step
    seconds: list[float] = field(default_factory=list)  # one per step

    def step(self, images: Tensor, digits: Tensor) -> None:
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(images), digits)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - begin)
        self.losses.append(loss.item())

    def accuracy(self, images: Tensor, digits: Tensor) -> float:
        with torch.no_grad():
            return float((self.network(images).argmax(1) == digits).float().mean())


def make_trainee(name: str, seed: int) -> Trainee:
    """The network called `name`, from the weights that `seed` gives to torch.nn's."""
    torch.manual_seed(seed)
    weights = with_torch().state_dict()
    network = NETWORKS[name]()
    network.load_state_dict(weights)
    return Trainee(network, torch.optim.Adam(network.parameters(), lr=2e-3))


def batches(digits: Digits, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches only, in an order that follows from the seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(digits.train_images), generator=generator)
        for chosen in torch.split(order, batch_size):
            if len(chosen) == batch_size:
                yield digits.train_images[chosen], digits.train_digits[chosen]


@contextmanager
def quiet() -> Iterator[None]:
    """The profiler's C++ side writes its own log to stderr, past Python and past every setting."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def peak_memory(name: str, digits: Digits, batch_size: int, seed: int) -> int:
    """Bytes of tensors that one training step holds at its peak, beyond the weights: activations, what backward keeps,
    gradients. PyTorch's profiler counts them, to the byte and the same every time; the size of the process would count
    what the allocator keeps for later as well, and what the first network left behind would serve the second."""
    trainee = make_trainee(name, seed)
    images, labels = digits.train_images[:batch_size], digits.train_digits[:batch_size]
    trainee.step(images, labels)  # makes the optimizer's state
    trainee.network.zero_grad()
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainee.step(images, labels)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return int(max(itertools.accumulate(change for _, change in changes)))


def train(epochs: int, batch_size: int, seed: int, digits: Digits, console: Console) -> dict[str, Trainee]:
    """Both networks, step by step in turn, so that whatever else the machine does strikes both alike."""
    trainees = {name: make_trainee(name, seed) for name in NETWORKS}
    steps = epochs * (len(digits.train_images) // batch_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training both", total=steps)
        for number, (images, labels) in enumerate(batches(digits, epochs, batch_size, seed)):
            pair = list(trainees.values())
            for trainee in pair if number % 2 else reversed(pair):
                trainee.step(images, labels)
            progress.update(task, advance=1, description=f"training both, loss {pair[0].losses[-1]:.4f}")
    return trainees


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def summary(trainees: dict[str, Trainee], peaks: dict[str, int], digits: Digits) -> Table:
    ours, theirs = trainees["fusedact"], trainees["torch.nn"]
    table = Table(title="The same network, trained twice from one seed")
    table.add_column("")
    for heading in ("torch.nn", "fusedact", "comparison"):
        table.add_column(heading, justify="right")

    accuracy = [t.accuracy(digits.test_images, digits.test_digits) for t in (theirs, ours)]
    table.add_row("final accuracy", *(f"{a:.2%}" for a in accuracy), f"{100 * (accuracy[1] - accuracy[0]):+.2f} points")
    losses = [t.losses[-1] for t in (theirs, ours)]
    table.add_row("final loss", *(f"{loss:.6f}" for loss in losses), f"{losses[1] - losses[0]:+.1e}")
    table.add_row("largest difference of any weight", "", "", f"{largest_difference(theirs.network, ours.network):.1e}")
    times = [statistics.median(t.seconds) for t in (theirs, ours)]
    table.add_row("time per step (median)", *(f"{1e3 * t:.2f} ms" for t in times), f"{times[1] / times[0]:.2f}×")
    memory = [peaks["torch.nn"], peaks["fusedact"]]
    cells = [f"{m / 2**20:.1f} MiB" for m in memory]
    table.add_row("peak memory of a step", *cells, f"{memory[1] / memory[0]:.2f}×")
    return table


def draw(trainees: dict[str, Trainee], output: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # draws into a file; needs no screen
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(8, 6), height_ratios=[2, 1], sharex=True, layout="constrained"
    )
    theirs, ours = trainees["torch.nn"].losses, trainees["fusedact"].losses
    top.plot(theirs, color="tab:blue", linewidth=3, alpha=0.5, label="torch.nn")
    top.plot(ours, color="tab:red", linewidth=1, linestyle="--", label="fusedact")
    top.set(ylabel="training loss", yscale="log", title="scikit-learn's digits: one network, one seed, two libraries")
    top.legend()
    bottom.plot([abs(a - b) for a, b in zip(theirs, ours, strict=True)], color="black", linewidth=1)
    bottom.set(ylabel="difference", xlabel="step")
    bottom.set_yscale("symlog", linthresh=1e-8)  # they are equal now and then, which a logarithm cannot show
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def main(
    output: Annotated[Path, typer.Option(help="Where the plot of both loss curves goes.")] = Path("fusedact-demo.png"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, max=1437, help="Images per step.")] = 128,
    seed: Annotated[int, typer.Option(help="Decides the first weights and the order of the images.")] = 0,
) -> None:
    """Train a small network on handwritten digits, once with torch.nn and once with fusedact, and compare the two."""
    console = Console()
    try:
        digits = load_digits()
        import matplotlib  # noqa: F401 (asked for now: a missing package should not surface after the training)
    except ImportError as error:
        sys.exit(f"The demo needs scikit-learn and matplotlib ({error}). Install them: pip install 'fusedact[demo]'")
    console.print(
        f"{len(digits.train_images)} images to learn from, {len(digits.test_images)} to test on;"
        f" torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    trainees = train(epochs, batch_size, seed, digits, console)
    peaks = {name: peak_memory(name, digits, batch_size, seed) for name in NETWORKS}
    console.print(summary(trainees, peaks, digits))
    draw(trainees, output)
    console.print(f"Loss curves: {output}")


if __name__ == "__main__":
    typer.run(main)
