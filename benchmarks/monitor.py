"""What `fusedact.monitor` costs a training step: `python benchmarks/monitor.py`. Knows the library as a user does.

One model and one optimiser; the settings take turns, step by step, so that whatever else the machine does strikes all
alike, and each is compared with the plain step beside it. every=100 is what its hundred steps cost: one that is
watched, and 99 that are not. "off again" is a second plain step: what it seems to add is the noise.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fusedact

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
GOALS = {"every=1": 10.0, "every=100": 0.5}  # percent; "~0" taken as half a percent


def mlp() -> tuple[nn.Module, Tensor]:
    """Transformer-like: 512 tokens, 768 to 3072 and back."""
    layers = [fusedact.nn.Linear(768, 3072, activation="gelu"), nn.Linear(3072, 768)]
    layers += [fusedact.nn.Linear(768, 3072, activation="relu"), nn.Linear(3072, 768)]
    return nn.Sequential(*layers), torch.randn(512, 768)


def plain() -> tuple[nn.Module, Tensor]:
    """The same of torch.nn's modules."""
    layers = [nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768)]
    layers += [nn.Linear(768, 3072), nn.ReLU(), nn.Linear(3072, 768)]
    return nn.Sequential(*layers), torch.randn(512, 768)


def convolutions() -> tuple[nn.Module, Tensor]:
    """Four convolutions on 32 images of 32 × 32."""
    layers: list[nn.Module] = [fusedact.nn.Conv2d(3, 32, 3, padding=1, activation="relu")]
    layers += [fusedact.nn.Conv2d(32, 32, 3, padding=1, activation="silu"), nn.AvgPool2d(2)]
    layers += [fusedact.nn.Conv2d(32, 64, 3, padding=1, activation="relu") for _ in range(1)]
    layers += [fusedact.nn.Conv2d(64, 64, 3, padding=1, activation="relu")]
    return nn.Sequential(*layers), torch.randn(32, 3, 32, 32)


def digits() -> tuple[nn.Module, Tensor]:
    """Small enough that the hooks themselves count: 128 × 64 to 128 to 10."""
    layers = [fusedact.nn.Linear(64, 128, activation="relu"), fusedact.nn.Linear(128, 128, activation="relu")]
    return nn.Sequential(*layers, nn.Linear(128, 10)), torch.randn(128, 64)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "MLP 512×768×3072, fusedact.nn": mlp,
    "MLP 512×768×3072, torch.nn": plain,
    "convolutions 32×3×32×32": convolutions,
    "digits 128×64×128×10": digits,
}


def measure(
    make: Callable[[], tuple[nn.Module, Tensor]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each step under each setting; "between" is a step that every=100 does not watch."""
    torch.manual_seed(0)
    model, x = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> float:
        begin = clock()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        return clock() - begin

    monitors = {
        "every=1": fusedact.monitor(model),
        "every=1, a sample": fusedact.monitor(model, elements=16_000),
        "between": fusedact.monitor(model, every=1_000_000_000),
    }
    with monitors["between"]:
        step()  # the one that it watches
    settings: list[tuple[str, contextlib.AbstractContextManager[object]]]
    settings = [("off", contextlib.nullcontext()), *monitors.items(), ("off again", contextlib.nullcontext())]
    seconds: dict[str, list[float]] = {name: [] for name, _ in settings}
    for number in range(rounds + 3):
        for name, monitor in settings[number % len(settings) :] + settings[: number % len(settings)]:
            with monitor:
                took = step()
            if number >= 3:
                seconds[name].append(took)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60, help="steps of each setting")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, on a busy machine: with --threads 1")
    options = parser.parse_args()
    rounds, threads = options.rounds, options.threads
    torch.set_num_threads(threads)
    console = Console(width=None if Console().is_terminal else 140)
    table = Table(title=f"A training step with the monitor, threads: {threads}, {rounds} rounds, {options.clock} clock")
    for heading in ("model", "off", "every=1", "goal", "a sample", "every=100", "goal", "off again"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, make in track(list(MODELS.items()), console=Console(stderr=True), transient=True):
        seconds = measure(make, rounds, CLOCKS[options.clock])
        off = statistics.median(seconds["off"])
        # Of each round the ratio to the plain step beside it, and of those the median.
        added = {
            key: statistics.median(s / o - 1 for s, o in zip(values, seconds["off"], strict=True))
            for key, values in seconds.items()
        }
        hundred = (added["every=1"] + 99 * added["between"]) / 100
        percents = {"every=1": 100 * added["every=1"], "every=100": 100 * hundred}
        kept = {key: "kept" if percents[key] <= goal else "[red]lost[/]" for key, goal in GOALS.items()}
        table.add_row(
            name,
            f"{1e3 * off:.2f} ms",
            f"{percents['every=1']:+.1f} %",
            f"≤ {GOALS['every=1']:g} %, {kept['every=1']}",
            f"{100 * added['every=1, a sample']:+.1f} %",
            f"{percents['every=100']:+.2f} %",
            f"~0 %, {kept['every=100']}",
            f"{100 * added['off again']:+.2f} %",
        )
    console.print(table)


if __name__ == "__main__":
    main()
