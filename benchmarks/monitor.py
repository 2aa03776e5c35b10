"""What `fusedact.monitor` costs a training step: `python benchmarks/monitor.py`. Knows the library as a user does.

One model and one optimiser. The settings take turns in short rounds: in each round every setting runs a burst of a few
steps (some tens of milliseconds, so that neither a monitor that has just been attached nor the caches that another
setting left behind decide), in an order that changes, and its median step is compared with that of the plain burst in
the same round. What is shown is the median of these ratios and how far it can be trusted: the interval that holds the
true median in 95 of 100 such runs. Rounds go on until that interval is narrow, or the time is up.

every=100 is what its hundred steps cost: one that is watched, and 99 that are not. "off again" is a second plain burst:
what it seems to add is the noise. On a quiet machine: `python benchmarks/monitor.py --threads 1 --seconds 120`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
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
BURST = 0.04  # seconds of steps of one setting in one round
FEWEST = 8  # rounds; with fewer the interval is all of them
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


Ratios = dict[str, list[float]]


def measure(
    make: Callable[[], tuple[nn.Module, Tensor]], seconds: float, precision: float, clock: Callable[[], float]
) -> tuple[float, Ratios]:
    """Seconds of a plain step, and of each round what the settings add to it; "between" is a step not watched."""
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
    nothing = contextlib.nullcontext()
    settings: dict[str, contextlib.AbstractContextManager[object]] = {"off": nothing, **monitors, "off again": nothing}
    ratios: Ratios = {name: [] for name in settings if name != "off"}
    plain: list[float] = []
    steps = max(3, min(50, round(BURST / min(step() for _ in range(5)))))
    shuffle, until = random.Random(0), time.perf_counter() + seconds
    while True:
        took = {}
        for name in shuffle.sample(list(settings), len(settings)):
            with settings[name]:
                step()  # the first after another setting is not counted
                took[name] = statistics.median(step() for _ in range(steps))
        plain.append(took["off"])
        for name, values in ratios.items():
            values.append(took[name] / took["off"] - 1)
        widths = [high - low for low, high in map(interval, ratios.values())]
        if len(plain) >= FEWEST and (max(widths) <= 2 * precision or time.perf_counter() > until):
            return statistics.median(plain), ratios


def interval(values: list[float]) -> tuple[float, float]:
    """Order statistics between which the median lies with 95 % (the sign test's; no shape of the noise is assumed)."""
    ordered, count = sorted(values), len(values)
    out = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return ordered[out], ordered[count - 1 - out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60, help="for each model, at most")
    parser.add_argument("--precision", type=float, default=0.5, help="percent, at which a model is done")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, on a busy machine: with --threads 1")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=None if Console().is_terminal else 150)
    table = Table(title=f"A training step with the monitor, threads: {options.threads}, {options.clock} clock")
    for heading in ("model", "off", "rounds", "every=1", "goal", "a sample", "every=100", "goal", "off again"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, make in track(list(MODELS.items()), console=Console(stderr=True), transient=True):
        off, ratios = measure(make, options.seconds, options.precision / 100, CLOCKS[options.clock])
        ratios["every=100"] = [
            (one + 99 * rest) / 100 for one, rest in zip(ratios["every=1"], ratios["between"], strict=True)
        ]
        shown = {key: said(values) for key, values in ratios.items()}
        goals = {key: judged(ratios[key], goal / 100) for key, goal in GOALS.items()}
        table.add_row(
            name,
            f"{1e3 * off:.2f} ms",
            str(len(ratios["between"])),
            shown["every=1"],
            f"≤ {GOALS['every=1']:g} %, {goals['every=1']}",
            shown["every=1, a sample"],
            shown["every=100"],
            f"~0 %, {goals['every=100']}",
            shown["off again"],
        )
    console.print(table)


def said(values: list[float]) -> str:
    low, high = interval(values)
    return f"{100 * statistics.median(values):+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) %"


def judged(values: list[float], goal: float) -> str:
    """Kept or lost only where the whole interval says so."""
    low, high = interval(values)
    return "kept" if high <= goal else "[red]lost[/]" if low > goal else "not settled"


if __name__ == "__main__":
    main()
