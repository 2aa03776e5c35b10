#!/usr/bin/env python3
"""The benchmark: times fusedact beside eager PyTorch and torch.compile, and holds the figures against the goals.

    python benchmarks/run.py --quick              a short table, under a minute, without torch.compile
    python benchmarks/run.py                      everything, with one thread and with two
    python benchmarks/run.py --readme             ... and write the table into README.md
    python benchmarks/run.py --suites call        one suite; --help lists them

Contenders take turns, block by block, since on a machine that does other things too a lone timer measures the other
things. A block is one call that is not timed, for the caches, and then as many as take about two milliseconds; what is
reported is the median block, with the quartiles. Every result is compared with float64 truth before it is timed.
What the contenders do is in providers.py, how the figures are judged and shown in report.py.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# A cache of earlier runs could serve what an earlier version of an operator compiled to. Read at torch's import.
_cache = tempfile.mkdtemp(prefix="fusedact-benchmark-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache
atexit.register(shutil.rmtree, _cache, ignore_errors=True)

import torch  # noqa: E402
from providers import (  # noqa: E402
    COMPILE,
    COPY,
    EAGER,
    FUSEDACT,
    FUSEDACT_NO_LIST,
    Fresh,
    Provider,
    heap_keeps_everything,
)
from report import (  # noqa: E402
    BACKWARD,
    FORWARD,
    GRAD,
    SIMPLE,
    SMOOTH,
    Result,
    print_report,
    wide_console,
    write_markdown,
    write_readme,
)
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from torch import Tensor  # noqa: E402

import fusedact  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Suite:
    """A setting that is measured, for every activation that takes part."""

    name: str
    about: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    modes: tuple[str, ...]
    providers: tuple[Provider, ...]
    seconds: float  # per activation and mode, shared by the providers
    activations: tuple[str, ...] = SIMPLE + SMOOTH
    reuse: bool = False  # nobody pays for fresh memory: forward writes into a tensor that is there, backward see below


SUITES = (
    Suite(
        "cached",
        "a batch that fits the last-level cache, float32",
        (512, 3072),
        torch.float32,
        (FORWARD, BACKWARD),
        (EAGER, COMPILE, FUSEDACT, COPY),
        0.6,
    ),
    Suite(
        "large",
        "128 MiB in, 128 MiB out, as a user calls it: with fusedact's free list, and without",
        (8192, 4096),
        torch.float32,
        (FORWARD, BACKWARD),
        (EAGER, COMPILE, FUSEDACT, FUSEDACT_NO_LIST, COPY),
        0.0,
    ),
    Suite(
        "reused",
        "the same, but every contender reuses its buffers",
        (8192, 4096),
        torch.float32,
        (FORWARD, BACKWARD),
        (EAGER, COMPILE, FUSEDACT, COPY),
        0.0,
        reuse=True,
    ),
    Suite(
        "bfloat16",
        "the cached batch in bfloat16",
        (512, 3072),
        torch.bfloat16,
        (FORWARD,),
        (EAGER, COMPILE, FUSEDACT, COPY),
        0.4,
    ),
    Suite(
        "call",
        "8 elements: what a call costs",
        (8,),
        torch.float32,
        (FORWARD, GRAD, BACKWARD),
        (EAGER, COMPILE, FUSEDACT),
        1.0,
        activations=("gelu",),
    ),
)


CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}


@dataclass(frozen=True)
class Call:
    """Something to time: function(*arguments)."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.function(*self.arguments)


class Data:
    """The tensors of one suite."""

    def __init__(self, suite: Suite) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(suite.dtype)

        self.x, self.bias, self.grad = normal(*suite.shape), normal(suite.shape[-1]), normal(*suite.shape)
        self.x_leaf, self.bias_leaf = (t.clone().requires_grad_() for t in (self.x, self.bias))
        self.out = torch.zeros_like(self.x)

    def call(self, provider: Provider, activation: str, mode: str, reuse: bool) -> Call | None:
        """How `provider` is timed in `mode`; None if it takes no part in it."""
        if provider is COPY or (reuse and mode == FORWARD):
            if provider.into is None or mode != FORWARD:
                return None
            return Call(provider.into(activation), (self.x, self.bias, self.out))
        assert provider.fresh is not None
        function = provider.fresh(activation)
        if mode == FORWARD:
            return Call(function, (self.x, self.bias))
        if mode == GRAD:
            return Call(function, (self.x_leaf, self.bias_leaf))
        return Call(_there_and_back(function), (self.x_leaf, self.bias_leaf, self.grad))


def _there_and_back(function: Fresh) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    return lambda x, bias, grad: torch.autograd.grad(function(x, bias), (x, bias), grad)


# How far eager PyTorch itself is from the truth, and no more: relative, absolute. It rounds x + bias to x's dtype.
TOLERANCE = {torch.float32: (1e-5, 2e-6), torch.bfloat16: (2**-6, 2**-6)}


def check(activation: str, provider: Provider, mode: str, data: Data, result: Any) -> None:
    """Compare `result` with float64 truth on the first and the last rows; raise if it is something else."""
    if provider is COPY:
        return
    row = fusedact.registry.get(activation)
    scalars = row.resolve()[1]
    rows = slice(None) if data.x.dim() == 1 else torch.tensor([0, 1, 2, 3, -4, -3, -2, -1])
    x = data.x[rows].double().requires_grad_()
    truth = row.reference(x + data.bias.double(), *scalars)
    relative, absolute = TOLERANCE[data.x.dtype]
    where = f"{provider.name}, {activation}, {mode}: "

    def compare(got: Tensor, expected: Tensor, what: str, absolute: float = absolute) -> None:
        torch.testing.assert_close(
            got.detach().double(),
            expected.detach(),
            rtol=relative,
            atol=absolute,
            msg=lambda message: f"{where}{what} is wrong\n{message}",
        )

    if mode != BACKWARD:
        compare(result[rows], truth, "the result")
        return
    grad_x, grad_bias = result
    compare(grad_x[rows], torch.autograd.grad(truth, x, data.grad[rows].double())[0], "the gradient of x")
    total = grad_x.reshape(-1, data.bias.numel()).sum(0, dtype=torch.float64)
    terms = data.x.numel() // data.bias.numel()
    compare(
        grad_bias, total, "the gradient of the bias", max(absolute, terms * 2**-24)
    )  # as a plain float32 sum has it


@dataclass
class Contender:
    provider: Provider
    call: Call
    calls: int = 1  # per block
    blocks: list[float] = field(default_factory=list)  # microseconds per call
    faults: int = 0

    def block(self, clock: Callable[[], int]) -> None:
        """Time one block."""
        function, arguments, count = self.call.function, self.call.arguments, range(self.calls)
        with self.provider.around():
            function(*arguments)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            begin = clock()
            for _ in count:
                function(*arguments)
            end = clock()
            self.faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        self.blocks.append((end - begin) / 1e3 / self.calls)

    def _once(self) -> float:
        begin = time.perf_counter()
        self.call()
        return time.perf_counter() - begin

    def warm_up(self) -> None:
        """Compile what is compiled at the first call, and find out how many calls make a block of two milliseconds."""
        with self.provider.around():
            self.call()
            tries = [self._once()]
            while len(tries) < 5 and sum(tries) < 0.02:
                tries.append(self._once())
        # The least of them: a pause of the machine is not a long call.
        self.calls = max(1, min(2000, round(2e-3 / min(tries))))


def compete(contenders: list[Contender], seconds: float, least: int, clock: Callable[[], int]) -> None:
    """Time them in turns, each round in another order, for `seconds` or for `least` rounds, whatever is longer."""
    end = time.monotonic() + seconds
    number = 0
    gc.collect()
    gc.disable()
    try:
        while number < least or (time.monotonic() < end and number < 300):
            first = number % len(contenders)
            order = contenders[first:] + contenders[:first]
            for contender in order if number % 2 else reversed(order):
                contender.block(clock)
            number += 1
    finally:
        gc.enable()


def measure(
    suite: Suite, data: Data, activation: str, mode: str, threads: int, options: argparse.Namespace
) -> list[Result]:
    """One activation in one mode of one suite: every provider, checked, then timed in turns."""
    contenders = []
    # Autograd allocates what it returns: then buffers are reused by a heap that keeps what it is given back.
    with heap_keeps_everything() if suite.reuse and mode != FORWARD else nullcontext():
        for provider in suite.providers:
            if provider is COMPILE and options.no_compile:
                continue
            call = data.call(provider, activation, mode, suite.reuse)
            if call is not None:
                with provider.around():
                    check(activation, provider, mode, data, call())
                contenders.append(Contender(provider, call))
        for contender in contenders:
            contender.warm_up()
        compete(contenders, suite.seconds * options.patience, options.rounds, CLOCKS[options.clock])
    torch.compiler.reset()  # compiled code is for these shapes and this number of threads
    results = []
    for contender in contenders:
        low, median, high = statistics.quantiles(contender.blocks, n=4)
        faults = contender.faults / (len(contender.blocks) * contender.calls)
        results.append(
            Result(
                suite=suite.name,
                shape=list(suite.shape),
                dtype=str(suite.dtype).removeprefix("torch."),
                activation=activation,
                mode=mode,
                provider=contender.provider.name,
                threads=threads,
                median_us=round(median, 3),
                low_us=round(low, 3),
                high_us=round(high, 3),
                rounds=len(contender.blocks),
                calls=contender.calls,
                page_faults=round(faults, 1),
            )
        )
    return results


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": model,
        "cores": os.cpu_count(),
        "isa": fusedact._C.capability(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "fusedact": fusedact.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "huge_pages": huge.read_text().strip() if huge.exists() else "unknown",
        "free_list_bytes": fusedact.memory.stats().limit_bytes,
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def arguments() -> argparse.Namespace:
    suites = "\n".join(f"  {suite.name:10}{suite.about}" for suite in SUITES)
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"suites:\n{suites}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="relu, gelu, silu and tanh, few rounds, no torch.compile")
    add(
        "--threads",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of threads to measure with (default: 1, and 2 where there are two cores)",
    )
    add("--suites", nargs="+", choices=[suite.name for suite in SUITES], metavar="NAME", help="default: all")
    add("--activations", nargs="+", metavar="NAME", help="default: those that the goals name")
    add("--rounds", type=int, help="at least so many blocks of each contender (default: 7; quick: 3)")
    add("--patience", type=float, help="factor on the seconds that a cell may take (default: 1; quick: 0.2)")
    add(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: the time that the process ran, for a busy machine; with one thread only",
    )
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add(
        "--output",
        type=Path,
        default=ROOT / "benchmark-results" / "results.jsonl",
        help="where the figures go, as JSON lines",
    )
    add("--markdown", type=Path, help="write the report, as Markdown, to this file")
    add("--readme", action="store_true", help="put the report into README.md, between its marks")
    options = parser.parse_args()
    if options.quick:
        options.no_compile = True
        options.activations = options.activations or ["relu", "gelu", "silu", "tanh"]
    options.rounds = options.rounds or (3 if options.quick else 7)
    options.patience = options.patience or (0.2 if options.quick else 1.0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options.threads = options.threads or ([min(2, cores)] if options.quick else [1, 2][:cores])
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: quartiles need two blocks")
    if options.readme and (options.quick or options.clock != "wall"):
        parser.error("--readme wants the whole benchmark and the wall clock: leave --quick and --clock out")
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu adds up what all threads do: give --threads 1")
    return options


def main() -> None:
    options = arguments()
    console = wide_console()
    chosen = [suite for suite in SUITES if options.suites is None or suite.name in options.suites]
    cells = [
        (threads, suite, activation, mode)
        for threads in options.threads
        for suite in chosen
        for activation in (suite.activations if suite.name == "call" else options.activations or suite.activations)
        for mode in suite.modes
    ]
    about = environment()
    results: list[Result] = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with options.output.open("w") as file, Progress(*columns, console=console, transient=True) as progress:
        file.write(json.dumps({"kind": "environment", **about}) + "\n")
        task = progress.add_task("", total=len(cells))
        data, owner = None, None
        for threads, suite, activation, mode in cells:
            progress.update(task, description=f"{suite.name}, {activation}, {mode}, threads: {threads}")
            torch.set_num_threads(threads)
            if data is None or owner is not suite:
                data, owner = None, suite  # the old ones go before the new ones come
                data = Data(suite)
            for result in measure(suite, data, activation, mode, threads, options):
                file.write(json.dumps({"kind": "result", **asdict(result)}) + "\n")
                results.append(result)
            file.flush()
            progress.advance(task)
    print_report(console, about, results)
    console.print(f"Figures: {options.output}")
    if options.markdown:
        write_markdown(options.markdown, about, results)
    if options.readme:
        write_readme(ROOT / "README.md", about, results)
        console.print("README.md has the new table.")


if __name__ == "__main__":
    sys.exit(main())
