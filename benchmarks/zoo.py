"""How fast the zoo is: a training step and inference, eager, fused, compiled, fused and compiled; a Markdown table.

    python benchmarks/zoo.py [--only NAME ...] [--compile] [--rounds 15] [--threads 1]

Contenders take turns in every round, in an order that is drawn anew, so that what else the machine does hits all of
them; a cell is the median of the rounds' ratios to eager, and its spread. With one thread, time is the process's own
CPU time, which other processes disturb less. Needs the extra `zoo`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fusedact

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from zoo import ZOO


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [t for value in values for t in tensors(value)]


def step(model: nn.Module, inputs: dict[str, Any]) -> None:
    outputs = [t for t in tensors(model(**inputs)) if t.requires_grad]
    torch.autograd.backward([t.float().mean() for t in outputs])
    model.zero_grad()


def inference(model: nn.Module, inputs: dict[str, Any]) -> None:
    with torch.inference_mode():
        model(**inputs)


def raced(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for run in contenders.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in random.sample(list(contenders), len(contenders)):
            start = clock()
            contenders[name]()
            times[name].append(clock() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the models' names")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes a model")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    names = ["fused", *(["compiled", "fused, compiled"] if given.compile else [])]
    columns = [f"{what}: {name}" for what in ("step", "inference") for name in names]
    print("Time relative to eager, median ± half the distance of the quartiles; ✗: slower by more than 2 %.\n")
    print("| model | step, eager | inference, eager | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 3) + "|")
    for animal in ZOO:
        if given.only and not any(part in animal.name for part in given.only):
            continue
        torch.manual_seed(0)
        model, inputs = animal.make(), animal.inputs()
        models = {"eager": model, "fused": fusedact.fuse(model)}
        if given.compile:
            models |= {"compiled": torch.compile(copy.deepcopy(model))}
            models |= {"fused, compiled": torch.compile(fusedact.fuse(model))}
        first, cells = [], []
        for training, run in ((True, step), (False, inference)):
            for m in models.values():
                m.train(training)
            torch._dynamo.reset()
            times = raced({n: functools.partial(run, m, inputs) for n, m in models.items()}, given.rounds)
            first.append(f"{statistics.median(times['eager']) * 1e3:.1f} ms")
            for name in names:
                ratios = [t / e for t, e in zip(times[name], times["eager"], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                cells.append(f"{middle:.2f}× ±{(high - low) / 2:.2f}" + " ✗" * (middle > 1.02))
        print(f"| {animal.name} | " + " | ".join([*first, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
