"""How a cell is measured: every contender's result is checked, its memory counted, then all are timed in turns.

Contenders take turns, block by block, since on a machine that does other things too a lone timer measures the other
things. A block is one call that is not timed, for the caches, and then as many as take about two milliseconds; what is
kept is the median block, with the quartiles. On a GPU the clock is the device's (CUDA events), and before each call its
second-level cache is flushed. Knows no case and no contender by name; shows nothing.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

import fusedact
from fusedact.bench import providers
from fusedact.bench.case import COLD, FORWARD, INFERENCE, INPLACE, STEP, WARM, Case, Expression, Trial, nbytes
from fusedact.bench.case import Wrong as WrongResult
from fusedact.bench.results import Result, Wrong
from fusedact.bench.space import Cell
from fusedact.demo import quiet

CLOCKS: dict[str, Callable[[], int]] = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
BLOCK = 2e-3  # seconds
MOST_ROUNDS = 300
COMPILING = {FORWARD: 2.5, INFERENCE: 8.0, STEP: 20.0}  # seconds, about; 4 for gradients of one expression
L2_FLUSH = 256 << 20  # bytes: more than any second-level cache of today


@dataclass(frozen=True)
class Settings:
    """How much trouble is taken."""

    rounds: int = 7  # blocks of each contender, at least
    seconds: float = 0.5  # for a cell, at least
    clock: str = "wall"  # cpu: the time that the process ran, for a busy machine; with one thread only
    without: tuple[str, ...] = ()  # contenders that are left out
    device: str = "cpu"


class Bench:
    """Measures cells, one after the other; keeps the inputs of the last case, which the next cell often shares."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.case: Case | None = None
        self.inputs: tuple[Any, ...] = ()
        self.timer: _Timer = _DeviceTimer() if settings.device == "cuda" else _HostTimer(CLOCKS[settings.clock])

    def measure(self, cell: Cell) -> tuple[list[Result], list[Wrong]]:
        """Every contender in `cell`: results, and who was wrong and therefore not timed."""
        torch.set_num_threads(cell.threads)
        if self.case is not cell.case:
            self.case, self.inputs = None, ()  # the old ones go before the new ones come
            self.inputs = cell.case.inputs(self.settings.device)
            self.case = cell.case
        # Autograd allocates what it returns: then buffers are reused by a heap that keeps what it is given back.
        keeps = cell.output == WARM and cell.mode != FORWARD and self.settings.device == "cpu"
        with providers.heap_keeps_everything() if keeps else nullcontext():
            contenders, wrong = self._contenders(cell)
            for contender in contenders:
                contender.warm_up()
            compete(contenders, self.settings.seconds, self.settings.rounds * cell.case.rounds)
        if any(contender.compiled for contender in contenders):
            torch.compiler.reset()  # compiled code is for these shapes and this number of threads
        return self._results(cell, contenders), wrong

    def _contenders(self, cell: Cell) -> tuple[list[Contender], list[Wrong]]:
        case, found, wrong = cell.case, [], []
        cold = copies(self.inputs) if cell.output == COLD else 1
        truth = case.exact(cell.mode, self.inputs) if case.checked else ()
        for provider in taking_part(cell, self.settings.without, self.settings.device):
            if provider.least > self.inputs[0].nbytes:
                continue
            who = f"{cell}: {provider.name}"
            try:
                with provider.around():
                    trial = case.trial(provider.source, cell.mode, cell.output, self.inputs, provider.through, cold)
                    if trial is None:
                        continue
                    seen = trial.once()
                    if case.checked and provider.checked:
                        slack = case.slack if not provider.ours or not case.bound_by_memory else OURS_SLACK
                        case.check(who, seen, truth, self.inputs, slack)
                    del seen
                    peak, kept = peak_bytes(trial.call, self.settings.device), kept_bytes(trial)
            except WrongResult as error:
                wrong.append(Wrong(str(cell), provider.name, str(error), True))
                continue
            except Exception as error:
                # A peer may lack what this cell needs. This library may not.
                reason = f"{who}: {type(error).__name__}: {error}"
                wrong.append(Wrong(str(cell), provider.name, reason, provider.ours))
                continue
            compiled = provider.through is not None
            found.append(Contender(provider.name, trial, self.timer, provider.around, peak, kept, compiled))
        for ceiling, call in providers.ceilings(case, cell.output, self.inputs, cold):
            found.append(Contender(ceiling.name, Trial(call, tuple), self.timer))
        return found, wrong

    def _results(self, cell: Cell, contenders: list[Contender]) -> list[Result]:
        roofs = {ceiling.name for ceiling in providers.CEILINGS}
        x = self.inputs[0]
        times = {c.name: statistics.median(c.blocks) for c in contenders}
        roof = max((2e-3 * x.nbytes / times[name] for name in roofs & times.keys()), default=None)  # GB/s
        moved = cell.case.traffic(cell.mode, self.inputs)
        if cell.output == INPLACE and moved is not None:
            moved = cell.case.traffic(FORWARD, self.inputs)
        results = []
        for contender in contenders:
            low, median, high = statistics.quantiles(contender.blocks, n=4)
            faults = contender.faults / (len(contender.blocks) * contender.calls)
            own = 2 * x.nbytes if contender.name in roofs else moved
            speed = own / median / 1e3 if own else None
            results.append(
                Result(
                    family=cell.case.family,
                    case=cell.case.name,
                    shape=cell.case.shape,
                    dtype=str(cell.case.dtype).removeprefix("torch."),
                    mode=cell.mode,
                    output=cell.output,
                    threads=cell.threads,
                    device=self.settings.device,
                    provider=contender.name,
                    median_us=round(median, 3),
                    low_us=round(low, 3),
                    high_us=round(high, 3),
                    rounds=len(contender.blocks),
                    calls=contender.calls,
                    page_faults=round(faults, 1),
                    moved_bytes=own,
                    gb_per_s=round(speed, 3) if speed else None,
                    of_ceiling=round(speed / roof, 4) if speed and roof else None,
                    peak_bytes=contender.peak,
                    kept_bytes=contender.kept,
                )
            )
        return results


OURS_SLACK = 1.0  # this library rounds once, so it gets none of the slack of those who do not


def taking_part(cell: Cell, without: tuple[str, ...], device: str) -> Iterator[providers.Provider]:
    """The contenders that a cell may have; whether a case has their source is found out later."""
    for provider in providers.PROVIDERS:
        if provider.name in (*without, *cell.without) or device not in provider.devices:
            continue
        if cell.mode in provider.modes and cell.output in provider.outputs:
            yield provider


def copies(inputs: tuple[Any, ...]) -> int:
    """How many copies of the inputs are twice what the last cache holds."""
    return max(2, min(4096, -(-2 * last_cache() // max(1, nbytes(inputs)))))


def last_cache() -> int:
    """Bytes of the largest cache, as Linux tells; 64 MiB where it does not."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(sizes, default=64 << 20)


# ---- time ----


class _HostTimer:
    """Microseconds per call of a block, by a clock of this machine."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock

    def __call__(self, trial: Trial, calls: int) -> float:
        clock, call = self.clock, trial.call
        call()
        if trial.before is None:
            begin = clock()
            for _ in range(calls):
                call()
            return (clock() - begin) / 1e3 / calls
        total = 0
        for _ in range(calls):
            trial.before()
            begin = clock()
            call()
            total += clock() - begin
        return total / 1e3 / calls


class _DeviceTimer:
    """Microseconds per call of a block, by CUDA events; no call finds its tensors in the second-level cache."""

    def __init__(self) -> None:
        self.flush = torch.empty(L2_FLUSH, dtype=torch.uint8, device="cuda")

    def __call__(self, trial: Trial, calls: int) -> float:
        trial.call()
        pairs = []
        for _ in range(calls):
            if trial.before is not None:
                trial.before()
            self.flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            trial.call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in pairs)) * 1e3 / calls


_Timer = _HostTimer | _DeviceTimer


@dataclass
class Contender:
    """Somebody in the turns of a cell."""

    name: str
    trial: Trial
    timer: _Timer
    around: Callable[[], Any] = nullcontext
    peak: int | None = None
    kept: int | None = None
    compiled: bool = False
    calls: int = 1  # per block
    blocks: list[float] = field(default_factory=list)  # microseconds per call
    faults: int = 0

    def block(self) -> None:
        """Time one block."""
        with self.around():
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            self.blocks.append(self.timer(self.trial, self.calls))
            self.faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults

    def warm_up(self) -> None:
        """Compile what is compiled at the first call, and find out how many calls make a block."""
        with self.around():
            tries = [self.timer(self.trial, 1)]
            while len(tries) < 5 and sum(tries) < 0.02e6:
                tries.append(self.timer(self.trial, 1))
        # The least of them: a pause of the machine is not a long call.
        most = 50 if isinstance(self.timer, _DeviceTimer) else 2000
        self.calls = max(1, min(most, round(BLOCK * 1e6 / max(min(tries), 1e-3))))


def compete(contenders: list[Contender], seconds: float, least: int) -> None:
    """Time them in turns, each round in another order, for `seconds` or for `least` rounds, whatever is longer."""
    end = time.monotonic() + seconds
    number = 0
    gc.disable()
    try:
        while contenders and (number < least or (time.monotonic() < end and number < MOST_ROUNDS)):
            first = number % len(contenders)
            order = contenders[first:] + contenders[:first]
            for contender in order if number % 2 else reversed(order):
                contender.block()
            number += 1
    finally:
        gc.enable()


# ---- memory ----


def peak_bytes(call: Callable[[], Any], device: str) -> int | None:
    """The most that the tensors of one call hold, beyond what was there; PyTorch's profiler counts to the byte."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes), default=0)


def kept_bytes(trial: Trial) -> int | None:
    """What is alive between forward and backward because backward will read it, each storage once."""
    if trial.kept is None:
        return None
    owned = {p.untyped_storage().data_ptr() for p in trial.owned}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        trial.kept()
    return sum(seen.values())


# ---- what the figures depend on, and how long they will take ----


def environment(settings: Settings, threads: list[int]) -> dict[str, Any]:
    """Versions, processor, instruction sets, settings."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    on_gpu = settings.device == "cuda"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": model,
        "cores": os.cpu_count(),
        "last_cache_bytes": last_cache(),
        "isa": fusedact._C.capability(),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "fusedact": fusedact.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": platform.system(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": threads,
        "clock": "CUDA events" if on_gpu else settings.clock,
        "huge_pages": huge.read_text().strip() if huge.exists() else "unknown",
        "free_list_bytes": fusedact.memory.stats().limit_bytes,
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def estimate(cells: list[Cell], settings: Settings) -> float:
    """Seconds, roughly: compiling, blocks, and a second per 2 GB for whoever maps its results anew."""
    total = 0.0
    for cell in cells:
        names = list(taking_part(cell, settings.without, settings.device))
        names = [p for p in names if cell.case.expression(p.source, cell.mode, cell.output) or p.through]
        total += sum(COMPILING.get(cell.mode, 4.0) for p in names if p.through is not None)
        size = _elements(cell.case) * cell.case.dtype.itemsize * (2 if cell.mode in (FORWARD, INFERENCE) else 6)
        large = settings.rounds * cell.case.rounds * 2 * len(names) * size / 2e9
        total += max(settings.seconds, large) + 0.04 * len(names)
    return total


def _elements(case: Case) -> int:
    """As far as the shape's name tells."""
    return math.prod(int(size) for size in case.shape.split("-")[0].split("x") if size.isdigit())


@contextmanager
def fresh_compiler_cache() -> Iterator[None]:
    """An own one: a cache of earlier runs could serve what an earlier version of an operator compiled to."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    folder = tempfile.mkdtemp(prefix="fusedact-bench-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        else:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["Bench", "Contender", "Expression", "Settings", "compete", "environment", "estimate", "fresh_compiler_cache"]
