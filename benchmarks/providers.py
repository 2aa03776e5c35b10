"""The contenders, and the activations they compete in. Knows nothing of timing, threads or goals.

Each contender computes act(x + bias), and nothing less: one column of functions says how it does so as a user would
write it, the other how it does so into a tensor that is there already. Activations are rows of fusedact's registry.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fusedact

Fresh = Callable[[Tensor, Tensor], Tensor]  # (x, bias) -> y, which is a new tensor
Into = Callable[[Tensor, Tensor, Tensor], Any]  # (x, bias, out); the result is in out

# What torch spells as an argument of another activation.
_BY_ARGUMENT: dict[str, tuple[str, dict[str, Any]]] = {"gelu_tanh": ("gelu", {"approximate": "tanh"})}


def torch_function(name: str) -> Callable[[Tensor], Tensor]:
    """The torch function that `name` replaces, with torch's defaults."""
    row_name, arguments = _BY_ARGUMENT.get(name, (name, {}))
    function = fusedact.registry.get(row_name).torch_function
    if function is None:
        raise ValueError(f"torch has no {name}, so there is nothing to compare fusedact.{name} with")
    return partial(function, **arguments) if arguments else function


def torch_in_place(name: str) -> Callable[[Tensor], Tensor]:
    """The same function, writing its result over its argument."""
    operator, arguments = _BY_ARGUMENT.get(name, (name, {}))
    if operator == "relu":  # aten::relu.out exists, but allocates a result and copies it
        return torch.relu_
    act = getattr(torch.ops.aten, operator).out
    return lambda x: act(x, out=x, **arguments)


# ---- eager ----


def eager(name: str) -> Fresh:
    act = torch_function(name)
    return lambda x, bias: act(x + bias)


def eager_into(name: str) -> Into:
    # The sum goes into `out`, and the activation works on it in place: the least memory that eager can touch.
    act = torch_in_place(name)
    return lambda x, bias, out: act(torch.add(x, bias, out=out))


# ---- torch.compile: static shapes, one graph, its backward compiled too ----


def compiled(name: str) -> Fresh:
    return torch.compile(eager(name), fullgraph=True, dynamic=False)


def compiled_into(name: str) -> Into:
    act = torch_function(name)  # Inductor writes a result that is copied somewhere straight to where it goes
    return torch.compile(lambda x, bias, out: out.copy_(act(x + bias)), fullgraph=True, dynamic=False)


# ---- fusedact: the function that carries the activation's name ----


def fused(name: str) -> Fresh:
    function = getattr(fusedact, name)
    return lambda x, bias: function(x, bias)  # the same wrapper that eager has, so that tiny calls compare


def fused_into(name: str) -> Into:
    function = getattr(fusedact, name)
    return lambda x, bias, out: function(x, bias, out=out)


@contextmanager
def no_free_list() -> Iterator[None]:
    """fusedact as it is when it may keep nothing: every large result is memory that the system has just mapped."""
    limit = fusedact.memory.stats().limit_bytes
    fusedact.memory.set_limit(0)
    try:
        yield
    finally:
        fusedact.memory.set_limit(limit)


@dataclass(frozen=True)
class Provider:
    name: str
    fresh: Callable[[str], Fresh] | None
    into: Callable[[str], Into] | None
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # what holds while it is called


EAGER = Provider("eager", eager, eager_into)
COMPILE = Provider("torch.compile", compiled, compiled_into)
FUSEDACT = Provider("fusedact", fused, fused_into)
FUSEDACT_NO_LIST = Provider("no free list", fused, None, no_free_list)
# Not a contender but the ceiling: x moved to a tensor that is there already, and nothing computed.
COPY = Provider("copy", None, lambda name: lambda x, bias, out: out.copy_(x))

PROVIDERS = (EAGER, COMPILE, FUSEDACT, FUSEDACT_NO_LIST, COPY)


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
