#!/usr/bin/env python3
"""The benchmark of the blocks: times each family's cases beside eager PyTorch and torch.compile.

    python benchmarks/blocks/run.py                      every family, with one thread and with two
    python benchmarks/blocks/run.py gated --only 512     one family, cases whose name or shape has "512"
    python benchmarks/blocks/run.py gated --no-compile --threads 2

Contenders take turns, block by block, as in benchmarks/run.py; the result is the median block. Every result and every
gradient is compared with eager PyTorch in float64 before it is timed. Cases are in the files beside this one.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A cache of earlier runs could serve what an earlier version of an operator compiled to. Read at torch's import.
_cache = tempfile.mkdtemp(prefix="fusedact-benchmark-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache
atexit.register(shutil.rmtree, _cache, ignore_errors=True)

import torch  # noqa: E402
from case import BACKWARD, Case  # noqa: E402
from torch import Tensor  # noqa: E402

HERE = Path(__file__).resolve().parent
FAMILIES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("run", "case"))

# How far eager PyTorch itself is from the truth: relative, and as much of the result's root mean square.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2**-5, torch.float16: 2**-8}


def tuple_of(result: Any) -> tuple[Tensor, ...]:
    """One tensor or several, as several."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def to_double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def call_of(provider: Callable[..., Any], case: Case, mode: str, inputs: tuple[Any, ...]) -> Callable[[], Any]:
    """The call that is timed: provider(*inputs), or that and its gradients, with ones and twos as incoming gradient."""
    if mode != BACKWARD:
        return lambda: provider(*inputs)
    given = list(inputs)
    leaves = case.grad_of(inputs)
    for i in leaves:
        given[i] = given[i].detach().requires_grad_()
    wanted = [given[i] for i in leaves]
    with torch.no_grad():
        shapes = tuple_of(provider(*inputs))
    grads = [(torch.arange(y.numel()) % 2 + 1).view(y.shape).to(y.dtype) for y in shapes]
    return lambda: torch.autograd.grad(tuple_of(provider(*given)), wanted, grads)


@dataclass
class Contender:
    """A provider in its turns."""

    name: str
    call: Callable[[], Any]
    calls: int = 1  # per block
    blocks: list[float] = field(default_factory=list)  # microseconds per call

    def warm_up(self) -> None:
        """Compile what is compiled at the first call, and find out how many calls make a block of two milliseconds."""
        self.call()
        tries = []
        while len(tries) < 5 and sum(tries) < 0.02:
            begin = time.perf_counter()
            self.call()
            tries.append(time.perf_counter() - begin)
        self.calls = max(1, min(2000, round(2e-3 / min(tries))))

    def block(self, clock: Callable[[], int]) -> None:
        """Time one block, after a call that is not timed."""
        self.call()
        begin = clock()
        for _ in range(self.calls):
            self.call()
        self.blocks.append((clock() - begin) / 1e3 / self.calls)


def check(case: Case, name: str, mode: str, result: Any, truth: tuple[Tensor, ...]) -> None:
    """Raise unless `result` is `truth` up to rounding."""
    limit = TOLERANCE[case.dtype]
    for i, (got, expected) in enumerate(zip(tuple_of(result), truth, strict=True)):
        torch.testing.assert_close(
            got.detach().double(),
            expected,
            rtol=limit,
            atol=limit * float(expected.square().mean().sqrt()),
            msg=lambda message, i=i: f"{case.name}, {name}, {mode}: result {i} is wrong\n{message}",
        )


CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}


def compete(contenders: list[Contender], rounds: int, seconds: float, clock: Callable[[], int]) -> None:
    """Time them in turns, each round in another order, for `rounds` and for `seconds`, whatever is longer."""
    end, number = time.monotonic() + seconds, 0
    gc.collect()
    gc.disable()
    try:
        while number < rounds or (time.monotonic() < end and number < 300):
            first = number % len(contenders)
            order = contenders[first:] + contenders[:first]
            for contender in order if number % 2 else reversed(order):
                contender.block(clock)
            number += 1
    finally:
        gc.enable()


def measure(family: str, case: Case, mode: str, threads: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One case in one mode: every provider, checked, then timed in turns; a record for each."""
    inputs = case.make(case.shape, case.dtype)
    providers = dict(case.providers)
    if not options.no_compile and "torch.compile" not in providers:
        providers["torch.compile"] = torch.compile(providers["eager"], fullgraph=True, dynamic=False)
    if options.no_compile:
        providers.pop("torch.compile", None)
    contenders = [Contender(name, call_of(provider, case, mode, inputs)) for name, provider in providers.items()]
    if case.checked:
        exact = call_of(providers["eager"], case, mode, tuple(to_double(x) for x in inputs))
        truth = tuple(y.detach() for y in tuple_of(exact()))
        for contender in contenders:
            check(case, contender.name, mode, contender.call(), truth)
        del exact, truth
    for contender in contenders:
        contender.warm_up()
    compete(contenders, options.rounds, options.seconds, CLOCKS[options.clock])
    torch.compiler.reset()  # compiled code is for these shapes and this number of threads
    times = {contender.name: statistics.median(contender.blocks) for contender in contenders}
    own = times["fusedact"]
    records = []
    for contender in contenders:
        low, _, high = statistics.quantiles(contender.blocks, n=4)
        goal = case.goals.get((mode, contender.name))
        record = {
            "family": family, "case": case.name, "shape": list(case.shape), "dtype": str(case.dtype)[6:], "mode": mode,
            "threads": threads, "clock": options.clock, "provider": contender.name,
            "median_us": times[contender.name], "low_us": low,
            "high_us": high, "least_us": min(contender.blocks), "rounds": len(contender.blocks),
            "speedup": times[contender.name] / own, "goal": goal,
        }  # fmt: skip
        records.append(record)
    return records


def line(record: dict[str, Any]) -> str:
    """A record as a line of the table."""
    shape = "x".join(map(str, record["shape"]))
    text = (
        f"{record['case']:24} {shape:>14} {record['dtype']:>8}  {record['mode']:18} {record['threads']:>2} thr  "
        f"{record['provider']:14} {record['median_us']:11.1f} us [{record['low_us']:.0f}, {record['high_us']:.0f}]"
    )
    if record["provider"] != "fusedact":
        text += f"  {record['speedup']:6.2f}x"
    if record["goal"] is not None:
        text += f"  goal {record['goal']:g}x: {'met' if record['speedup'] >= record['goal'] else 'MISSED'}"
    return text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("families", nargs="*", choices=[[], *FAMILIES], help=f"of {', '.join(FAMILIES)}; default: all")
    add("--only", default="", help="cases whose name, shape or dtype contains this")
    add("--threads", type=int, nargs="+", default=[1, 2][: os.cpu_count() or 1], metavar="N")
    add("--rounds", type=int, default=7, help="at least so many blocks of each contender (default: 7)")
    add("--seconds", type=float, default=1.0, help="and at least so long for a row of the table (default: 1)")
    add("--clock", choices=CLOCKS, default="wall", help="cpu: for a busy machine; with one thread only")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--output", type=Path, help="append the figures to this file, as JSON lines")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: quartiles need two blocks")
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu adds up what all threads do: give --threads 1")
    return options


def main() -> int:
    options = arguments()
    for threads in options.threads:
        torch.set_num_threads(threads)
        for family in options.families or FAMILIES:
            for case in importlib.import_module(family).CASES:
                if options.only not in f"{case.name} {'x'.join(map(str, case.shape))} {case.dtype}":
                    continue
                for mode in case.modes:
                    for record in measure(family, case, mode, threads, options):
                        print(line(record), flush=True)
                        if options.output:
                            with options.output.open("a") as file:
                                file.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
