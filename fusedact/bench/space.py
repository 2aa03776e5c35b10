"""Which cells there are, which of them a filter means, and the plans: what is measured if nobody says.

A cell is a case in a mode, with its results in one of four places, on a number of threads. There are tens of thousands,
so a plan is a list of filters, the same that a user gives. Knows nothing of contenders and time.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from fusedact.bench.case import MODES, OUTPUTS, Case
from fusedact.bench.providers import COMPILE, MASK, NO_LIST, OURS_COMPILED


@dataclass(frozen=True)
class Cell:
    """One row of a table; every contender takes part in it."""

    case: Case
    mode: str
    output: str
    threads: int
    without: tuple[str, ...] = ()  # contenders that are left out

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """What a filter's words are compared with."""
        case = self.case
        dtype = str(case.dtype).removeprefix("torch.")
        return case.family, case.name, case.shape, dtype, self.mode, self.output, f"t{self.threads}"

    def __str__(self) -> str:
        return " ".join(self.words)


def matches(filter: str, words: Sequence[str]) -> bool:
    """Whether every word of `filter` is one of `words`: "gelu*,silu forward" has two, the first with alternatives."""
    for exact, patterns in _parsed(filter):
        if exact.isdisjoint(words) and not any(fnmatch.fnmatchcase(w, p) for p in patterns for w in words):
            return False
    return True


@functools.cache
def _parsed(filter: str) -> tuple[tuple[frozenset[str], tuple[str, ...]], ...]:
    """Of each word the alternatives: those that are names, and those with a *."""
    split = [wanted.split(",") for wanted in filter.split()]
    return tuple((frozenset(a for a in word if "*" not in a), tuple(a for a in word if "*" in a)) for word in split)


@dataclass(frozen=True)
class Line:
    """A part of a plan: the cells that `filter` means, without some contenders."""

    filter: str
    without: tuple[str, ...] = ()


# The activations that the goals are about: those that need no exponential, and those that do.
SIMPLE = "relu,leaky_relu,hardswish"
SMOOTH = "gelu,gelu_tanh,silu,sigmoid,tanh,elu,softplus,mish"
FEW = "relu,gelu,silu,tanh"
SHORT = (COMPILE, OURS_COMPILED)
PLAIN = (OURS_COMPILED, MASK)  # who is left out of most cells

# Every operator on something small, in every mode: for its results. And a table worth reading, for its times.
QUICK = (
    Line("activations 32x128 float32 forward,backward,double fresh", SHORT),
    Line("activations 32x128 float32 forward warm,inplace", SHORT),
    Line("activations 32x128 bfloat16 backward fresh", SHORT),
    Line(f"activations {FEW} 512x3072 float32 forward,backward fresh", SHORT),
    Line("gated silu*,gelu*,relu* 32x256 float32,bfloat16 backward fresh", SHORT),
    Line("softmax 32x100 backward fresh", SHORT),
    Line("maxout 32x120 backward fresh", SHORT),
    Line("epilogue 32x128,2x8x14x14* forward,backward fresh", SHORT),
    Line("linear 16x32x64 forward,backward fresh", SHORT),
    Line("cells 64x128 backward fresh", SHORT),
    Line("models mlp,convnet,llama-like inference,step fresh", SHORT),
)

# README's table: the three settings for large tensors, 16 bits, the cost of a call, and the other goals. Large cells
# take seconds a call, and compiling takes seconds a cell: four activations stand for all there. Of two lines that mean
# the same cell, the first decides who is left out.
STANDARD = (
    Line(f"activations {FEW} 512x3072 float32 forward fresh", (NO_LIST,)),
    Line(f"activations {SIMPLE},{SMOOTH} 512x3072 float32 forward fresh", (*PLAIN, NO_LIST)),
    Line(f"activations {SIMPLE},{SMOOTH} 512x3072 float32 backward fresh", (OURS_COMPILED, NO_LIST)),
    Line(f"activations {FEW} 8192x4096 float32 forward,backward fresh", PLAIN),
    Line(f"activations {FEW} 8192x4096 float32 forward,backward warm", PLAIN),
    Line(f"activations {SIMPLE},{SMOOTH} 512x3072 bfloat16 forward fresh", (*PLAIN, COMPILE, NO_LIST)),
    Line("activations gelu 8 float32 forward,grad,backward fresh", ()),
    Line("activations relu,gelu 512x3072 float32 double fresh", SHORT),
    Line("activations relu,silu 4096x3136,16x64x112x112* float32 forward fresh", (*SHORT, NO_LIST)),
    Line("gated silu,gelu 512x8192 float32 forward,backward fresh", (*PLAIN, NO_LIST)),
    Line("models inference,step fresh t2", ()),
)

# GB/s against size, for the plot.
SWEEP = (
    Line("activations relu,gelu,silu 8,512,32x128,256x1024,512x3072,4096x3136,8192x4096 float32 forward fresh", PLAIN),
)
PLANS = {"quick": QUICK, "standard": STANDARD, "sweep": SWEEP, "zoo": (Line("zoo"),), "all": (Line(""),)}


def cells(cases: Sequence[Case], threads: Sequence[int], plan: Sequence[Line], filters: Sequence[str]) -> list[Cell]:
    """The cells of a plan that one of the filters means, in the order in which they are measured.

    Raises:
        ValueError: there is none; the message says which word is unknown, or that the plan is what lacks it.
    """
    space = _space(tuple(cases), tuple(threads))
    found: dict[tuple[str, ...], Cell] = {}
    for line in plan:
        for cell in space:
            if not matches(line.filter, cell.words) or (filters and not any(matches(f, cell.words) for f in filters)):
                continue
            found.setdefault(cell.words, dataclasses.replace(cell, without=line.without))
    if not found:
        raise ValueError(_why(space, filters))
    # The same case in a row, so that its inputs are made once.
    order = {case: i for i, case in enumerate(dict.fromkeys(cell.case for cell in found.values()))}
    return sorted(found.values(), key=lambda cell: (cell.threads, order[cell.case]))


@functools.lru_cache(4)
def _space(cases: tuple[Case, ...], threads: tuple[int, ...]) -> list[Cell]:
    return [
        Cell(case, mode, output, count)
        for count in threads
        for case in cases
        for mode in case.modes
        for output in case.outputs(mode)
    ]


def _why(space: Sequence[Cell], filters: Sequence[str]) -> str:
    everything = {word for cell in space for word in cell.words}
    for pattern in (p for filter in filters for word in filter.split() for p in word.split(",")):
        if not fnmatch.filter(everything, pattern):
            near = difflib.get_close_matches(pattern, sorted(everything), 3, 0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else f": {', '.join((*MODES, *OUTPUTS))}, ..."
            return f"--filter: no cell is called {pattern!r}{hint}"
    wanted = [cell for cell in space if any(matches(f, cell.words) for f in filters)]
    if wanted:
        return f"--filter: not in this plan, but --plan all has {len(wanted)} such cells, as {wanted[0]}"
    return f"--filter: no cell has all the words of {' or '.join(map(repr, filters))}; --list shows what there is"
