"""The contenders: whose expression, compiled or not, under which settings. And the ceilings, which compute nothing.

One row each. What a source computes is in cases/; a row whose source a case has not takes no part there.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fusedact
from fusedact.bench.case import BACKWARD, COLD, DOUBLE, FORWARD, FRESH, GRAD, INPLACE, MODES, OUTPUTS, Case, Expression

EAGER, COMPILE, OURS, OURS_COMPILED = "eager", "torch.compile", "fusedact", "fusedact, compiled"
NO_LIST, MASK, ONEDNN, LIGER, PRODUCT = "no free list", "fusedact, mask", "onednn", "liger", "product alone"
COPY, OWN_COPY, ADD = "copy", "fusedact copy", "in-place add"


@contextmanager
def no_free_list() -> Iterator[None]:
    """fusedact as it is when it may keep nothing: every large result is memory that the system has just mapped."""
    limit = fusedact.memory.stats().limit_bytes
    fusedact.memory.set_limit(0)
    try:
        yield
    finally:
        fusedact.memory.set_limit(limit)


@contextmanager
def heap_keeps_everything() -> Iterator[None]:
    """While this holds, glibc's malloc serves blocks of any size from its heap and gives none of it back: what torch
    allocates is warm memory too, in eager and in compiled calls. By default every block over 32 MiB is mapped anew, and
    each of its pages faults on the first write. The runner shows how many faults it counted."""
    libc = ctypes.CDLL(None)
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    if not hasattr(libc, "mallopt"):
        raise RuntimeError("reusing buffers in backward is measured with glibc's mallopt, and this system has none")
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(mmap_max, 65536)  # glibc's defaults
        libc.mallopt(trim_threshold, 128 * 1024)
        libc.malloc_trim(0)


def compiled(expression: Expression) -> Expression:
    """Static shapes, its backward compiled too, and one graph: a model may have several."""
    whole = not isinstance(expression, nn.Module)
    return torch.compile(expression, fullgraph=whole, dynamic=False)


@dataclass(frozen=True)
class Provider:
    """A contender in every cell whose case has its source, in those modes and outputs."""

    name: str
    source: str
    through: Callable[[Expression], Expression] | None = None
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # what holds while it is called
    modes: tuple[str, ...] = tuple(MODES)
    outputs: tuple[str, ...] = tuple(OUTPUTS)
    least: int = 0  # bytes of the first input
    devices: tuple[str, ...] = ("cpu", "cuda")
    checked: bool = True

    @property
    def ours(self) -> bool:
        """Whether it is this library's result."""
        return self.source in ("fusedact", "mask")


# torch.compile has no double backward.
ONCE = tuple(mode for mode in MODES if mode != DOUBLE)

PROVIDERS = (
    Provider(EAGER, "eager"),
    Provider(COMPILE, "eager", compiled, modes=ONCE),
    Provider(ONEDNN, "onednn", modes=(FORWARD,), outputs=(FRESH, COLD), devices=("cpu",)),
    Provider(LIGER, "liger", devices=("cuda",)),
    Provider(OURS, "fusedact"),
    Provider(OURS_COMPILED, "fusedact", compiled, modes=ONCE),
    # Results of less than 1.5 MiB never come from the list.
    Provider(NO_LIST, "fusedact", around=no_free_list, outputs=(FRESH,), least=3 << 19, devices=("cpu",)),
    Provider(MASK, "mask", modes=(GRAD, BACKWARD), outputs=(FRESH,)),
    # The matrix product without bias and activation: the ceiling of a linear layer.
    Provider(PRODUCT, "product", modes=(FORWARD,), outputs=(FRESH,), checked=False),
)


@dataclass(frozen=True)
class Ceiling:
    """What no function of x can beat without staying in a cache: x moved to memory that is there, nothing computed."""

    name: str
    run: Callable[[Tensor, Tensor], object]  # (x, out)
    inplace: bool  # the ceiling of in-place cells, or of all others


CEILINGS = (
    Ceiling(COPY, lambda x, out: out.copy_(x), False),
    # With the library's own stores, past the caches where that pays.
    Ceiling(OWN_COPY, lambda x, out: fusedact.identity(x, out=out), False),
    Ceiling(ADD, lambda x, out: out.add_(1.0), True),
)
LEAST_FOR_CEILING = 64 << 10  # bytes; below, a call costs more than what it moves


def ceilings(case: Case, output: str, inputs: tuple[object, ...], cold: int) -> Iterator[tuple[Ceiling, Expression]]:
    """The ceilings of a cell and their calls; none for whole models and for tiny tensors."""
    x = inputs[0]
    if not case.bound_by_memory or not isinstance(x, Tensor) or x.nbytes < LEAST_FOR_CEILING:
        return
    pairs = [(x.detach(), torch.zeros_like(x))]
    if output == COLD:
        pairs += [(x.clone(), torch.zeros_like(x)) for _ in range(cold - 1)]
    for ceiling in CEILINGS:
        if ceiling.inplace == (output == INPLACE):
            yield ceiling, _in_turns(ceiling, pairs)


def _in_turns(ceiling: Ceiling, pairs: list[tuple[Tensor, Tensor]]) -> Expression:
    calls = [functools.partial(ceiling.run, *pair) for pair in pairs]
    number = 0

    def call() -> None:
        nonlocal number
        calls[number % len(calls)]()
        number += 1

    return calls[0] if len(calls) == 1 else call
