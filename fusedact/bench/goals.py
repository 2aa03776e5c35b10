"""What is wished for, as a table, and what of it was reached. Works on records; measures nothing.

A goal is about the cells that its filter means, each on its own or in geometric mean, and holds for every number of
threads that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fusedact.bench.providers import COMPILE, EAGER, MASK, OURS, OURS_COMPILED, PRODUCT
from fusedact.bench.results import Result
from fusedact.bench.space import SIMPLE, SMOOTH, matches


class Figures:
    """The results, to be asked by cell."""

    def __init__(self, results: list[Result]) -> None:
        self.results = results
        self._found = {(r.cell, r.provider): r for r in results}
        self.threads = sorted({r.threads for r in results})

    def of(self, filter: str, provider: str | None = None) -> list[Result]:
        """Results of the cells that `filter` means, in the order of measurement."""
        return [r for r in self.results if provider in (None, r.provider) and matches(filter, r.words)]

    def beside(self, result: Result, provider: str) -> Result | None:
        """What `provider` did in the same cell."""
        return self._found.get((result.cell, provider))

    def ratio(self, result: Result, rival: str) -> float | None:
        """How many times as fast as `rival` the result's contender is; None if the rival was not there."""
        other = self.beside(result, rival)
        return other.median_us / result.median_us if other else None

    def of_ceiling(self, result: Result) -> float | None:
        """Which part of a copy's bytes per second it moves."""
        return result.of_ceiling

    def like_rows(self, result: Result) -> float | None:
        """How many times as fast as the same bytes in two dimensions."""
        where = f"{result.case} 4096x3136 {result.dtype} {result.mode} {result.output}"
        same = [r for r in self.of(where, OURS) if (r.threads, r.device) == (result.threads, result.device)]
        return same[0].median_us / result.median_us if same else None

    def less_kept(self, result: Result) -> float | None:
        """How many times fewer bytes are kept for backward than the input has, where a mask is kept."""
        plain = self.beside(result, EAGER)
        if plain is None or not plain.kept_bytes or not result.kept_bytes:
            return None
        return plain.kept_bytes / result.kept_bytes


@dataclass(frozen=True)
class Goal:
    """`measured` of `who` must be at least `least` in every cell of `filter`, or in their geometric mean."""

    filter: str
    rival: str
    least: float
    mean: bool = False
    who: str = OURS
    why: str = ""  # what was found in the way where it was missed and memory was not (benchmarks/NOTES.md)

    def __str__(self) -> str:
        text = self.filter
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        return text + ("" if self.who == OURS else f" ({self.who})")


# What is asked of the figures that are not times as fast as a rival.
CEILING, ROWS, KEPT = "a copy", "the same bytes as rows", "eager's bytes for backward"
OTHERS: dict[str, Callable[[Figures, Result], float | None]] = {
    CEILING: Figures.of_ceiling,
    ROWS: Figures.like_rows,
    KEPT: Figures.less_kept,
}


def _both(filter: str, eager: float, compiled: float, why: str, mean: bool = False) -> tuple[Goal, Goal]:
    return Goal(filter, EAGER, eager, mean, why=why), Goal(filter, COMPILE, compiled, mean, why=why)


# What is in the way, as found: two ports multiply (with AVX-512 they look coefficients up, too), the accuracy contract
# has its price in instructions, and nothing is faster than a copy.
MATHS = "arithmetic: 2 ulp on every float"
CACHE = "memory: the last-level cache"
MOVED = "memory: a copy of the same bytes takes as long"
SLOPES = "memory: five buffers of 6 MiB; with AVX2, arithmetic: 4 ulp on every float"
MEMORY = "arithmetic; of the cheap ones, memory"
FAULTS = "arithmetic and memory: the page faults that eager pays for are gone"
CALL = "the call itself, about 2 us: Python's binding, checks, the output"
FUSION = "an operator's call, and what Inductor would have fused across it"
SPREAD = "spread: copies of the same bytes vary as much"
GATE = "memory: 12 bytes an element forward, 20 backward, and a copy takes as long; with AVX2, arithmetic"


CACHED = "activations 512x3072 float32"
LARGE = "activations 8192x4096 float32"
OTHER = "leaky_relu,hardswish,sigmoid,elu,softplus"
SMOOTH_BUT_GELU = SMOOTH.removeprefix("gelu,")
# For tables; the longer first.
SHORTER = {
    f"{SIMPLE},{SMOOTH}": "all",
    f"{SIMPLE},{SMOOTH_BUT_GELU}": "all but gelu",
    SMOOTH_BUT_GELU: "smooth, not gelu",
}
SHORTER |= {SMOOTH: "smooth", SIMPLE: "simple", OTHER: "others", "activations ": ""}

GOALS = (
    *_both(f"relu {CACHED} forward fresh", 3.8, 2.0, MOVED),
    *_both(f"gelu {CACHED} forward fresh", 1.8, 2.2, MATHS),
    *_both(f"gelu_tanh {CACHED} forward fresh", 7.0, 6.0, MATHS),
    *_both(f"silu {CACHED} forward fresh", 2.8, 2.3, MATHS),
    *_both(f"tanh {CACHED} forward fresh", 6.0, 5.0, MATHS),
    *_both(f"mish {CACHED} forward fresh", 14.0, 13.0, MATHS),
    *_both(f"{OTHER} {CACHED} forward fresh", 2.0, 1.5, f"{MATHS}; of the cheap ones, {MOVED}"),
    *_both(f"{SIMPLE},{SMOOTH} {CACHED} backward fresh", 2.2, 2.4, SLOPES),
    *_both(f"{SIMPLE},{SMOOTH} {CACHED} backward fresh", 4.5, 4.5, SLOPES, mean=True),
    Goal(f"{SIMPLE} {CACHED} forward fresh", CEILING, 0.85, why=CACHE),
    Goal(f"{SIMPLE} {LARGE} forward warm", CEILING, 0.85, why=MEMORY),
    Goal(f"{SMOOTH_BUT_GELU} {LARGE} forward warm", CEILING, 0.6, why=MEMORY),
    Goal(f"gelu {LARGE} forward warm", CEILING, 0.45, why=MEMORY),
    *_both(f"{SIMPLE},{SMOOTH_BUT_GELU} {LARGE} forward fresh", 11.0, 6.5, FAULTS),
    *_both(f"gelu {LARGE} forward fresh", 6.5, 4.5, FAULTS),
    *_both(f"{SIMPLE},{SMOOTH_BUT_GELU} {LARGE} backward fresh", 8.0, 6.5, FAULTS),
    *_both(f"gelu {LARGE} backward fresh", 5.0, 5.0, FAULTS),
    *_both(f"{SIMPLE},{SMOOTH} {LARGE} forward warm", 2.2, 1.4, MEMORY),
    *_both(f"{SIMPLE},{SMOOTH} {LARGE} backward warm", 1.8, 2.5, MEMORY),
    Goal(f"activations {SMOOTH} 512x3072,8192x4096 bfloat16,float16 forward fresh", EAGER, 2.5, why=MATHS),
    Goal(f"activations {SIMPLE} 512x3072,8192x4096 bfloat16,float16 forward fresh", EAGER, 1.5),
    Goal(f"activations {SIMPLE},{SMOOTH} 8192x4096 bfloat16,float16 forward fresh", EAGER, 8.0),
    Goal("activations gelu 8 float32 forward fresh", EAGER, 1 / 0.12, why=CALL),
    Goal("activations gelu 8 float32 grad fresh", EAGER, 1 / 0.2, why=CALL),
    Goal("activations gelu 8 float32 backward fresh", EAGER, 1 / 0.5, why=CALL),
    Goal("models inference,step", COMPILE, 1.0, who=OURS_COMPILED, why=FUSION),
    Goal("activations double 512x3072,8192x4096 float32", EAGER, 1.5, why=CACHE),
    Goal("activations 16x64x112x112* float32 forward,backward fresh", ROWS, 0.9, why=SPREAD),
    Goal("activations backward,grad 512x3072,8192x4096 fresh", KEPT, 30.0, who=MASK),
    *_both("gated silu*,gelu* 512x8192 forward fresh", 3.0, 2.5, GATE),
    *_both("gated silu*,gelu* 512x8192 backward fresh", 2.0, 1.5, GATE),
    *_both("gated silu*,gelu* 8192x8192 forward fresh", 8.0, 4.0, GATE),
    *_both("gated silu*,gelu* 8192x8192 backward fresh", 7.0, 3.5, GATE),
    Goal("epilogue 512x3072,8192x4096,16x64x112x112* fresh", EAGER, 2.0),
    Goal("linear 512x768x3072,4096x256x1024,64x784x512 fresh", EAGER, 1.0),
    Goal("linear 512x768x3072,64x784x512 float32 forward fresh", PRODUCT, 1 / 1.02),
    Goal("linear 4096x256x1024 float32 forward fresh", PRODUCT, 1 / 1.1),
    Goal("softmax 512x1000,4096x1024,1024x32000,4x21x256x256 fresh", EAGER, 1.3),
    Goal("cells 64x128,64x1024,512x128,512x1024 fresh", EAGER, 2.0),
)


NEARLY_A_COPY = 0.75  # then it is memory that sets the pace, whatever is computed


@dataclass(frozen=True)
class Verdict:
    """How a goal fared on one number of threads."""

    goal: Goal
    threads: int
    measured: float
    worst: str  # the case that decides, or "geometric mean of N"
    missing: tuple[str, ...]  # cases below the goal
    of_ceiling: float | None = None  # which part of a copy's bytes per second the worst moves

    @property
    def met(self) -> bool:
        return self.measured >= self.goal.least

    @property
    def why(self) -> str:
        """What is in the way; nothing where the goal is met."""
        if self.met:
            return ""
        if self.goal.rival in (EAGER, COMPILE) and (self.of_ceiling or 0) >= NEARLY_A_COPY:
            return f"memory: it moves {self.of_ceiling:.0%} of the bytes per second that a copy does"
        return self.goal.why


def measured(figures: Figures, goal: Goal, result: Result) -> float | None:
    """What the goal asks of one result."""
    other = OTHERS.get(goal.rival)
    return other(figures, result) if other else figures.ratio(result, goal.rival)


def verdicts(figures: Figures) -> Iterator[Verdict]:
    """Every goal of which something was measured."""
    for goal in GOALS:
        for threads in figures.threads:
            found = {}
            for result in figures.of(f"{goal.filter} t{threads}", goal.who):
                value = measured(figures, goal, result)
                if value is not None:
                    found[result] = value
            if not found:
                continue
            if goal.mean:
                mean = math.exp(sum(map(math.log, found.values())) / len(found))
                yield Verdict(goal, threads, mean, f"geometric mean of {len(found)}", ())
            else:
                worst = min(found, key=found.__getitem__)
                missing = dict.fromkeys(r.case for r, value in found.items() if value < goal.least)
                yield Verdict(goal, threads, found[worst], worst.case, tuple(missing), worst.of_ceiling)


def wanted(result: Result, rival: str) -> float | None:
    """What one goal asks of this very result, or None; the highest if there are several."""
    found = [
        goal.least
        for goal in GOALS
        if not goal.mean and (goal.rival, goal.who) == (rival, result.provider) and matches(goal.filter, result.words)
    ]
    return max(found, default=None)
