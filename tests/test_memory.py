"""fusedact.memory: reuse, a bound that holds, an off switch, and what a fork or a thread may do to it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fusedact
from fusedact import memory

MiB = 1 << 20


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """An empty free list of 64 MiB, serving what has 4 MiB or more; put back afterwards."""
    before = memory.stats()
    memory.empty_cache()
    memory.set_limit("64MiB")
    memory.set_threshold(4 * MiB)
    yield
    memory.empty_cache()
    memory.set_limit(before.limit_bytes)
    memory.set_threshold(before.threshold_bytes)


def result(mebibytes: int) -> torch.Tensor:
    return fusedact.relu(torch.ones(mebibytes * MiB // 4))


def test_a_freed_block_is_used_again() -> None:
    y = result(8)
    address, before = y.data_ptr(), memory.stats()
    assert before.allocated_bytes >= 8 * MiB
    assert before.cached_bytes == 0
    del y
    kept = memory.stats()
    assert kept.cached_bytes == 8 * MiB
    assert kept.allocated_bytes == before.allocated_bytes - 8 * MiB
    y = result(8)
    after = memory.stats()
    assert y.data_ptr() == address
    assert after.hits == kept.hits + 1
    assert after.misses == kept.misses
    assert after.cached_bytes == 0
    assert (y == 1).all()


def test_what_is_kept_is_bounded() -> None:
    several = [result(8) for _ in range(12)]
    assert memory.stats().cached_bytes == 0
    while several:
        several.pop()
        assert memory.stats().cached_bytes <= 64 * MiB
    assert memory.stats().cached_bytes > 0
    memory.set_limit(16 * MiB)
    assert memory.stats().cached_bytes <= 16 * MiB
    memory.set_limit(0)
    assert memory.stats().cached_bytes == 0
    del several
    y = result(8)
    del y
    assert memory.stats().cached_bytes == 0


def test_a_block_over_the_limit_is_not_kept() -> None:
    y = result(80)
    del y
    assert memory.stats().cached_bytes <= 64 * MiB


def test_the_off_switch() -> None:
    with memory.enabled(False):
        assert not memory.stats().enabled
        before = memory.stats()
        y = result(8)
        after = memory.stats()
        assert (after.hits, after.misses, after.allocated_bytes) == (before.hits, before.misses, before.allocated_bytes)
    assert memory.stats().enabled
    del y  # freed after the switch: by the allocator that it came from
    with pytest.raises(KeyError), memory.enabled(False):
        raise KeyError
    assert memory.stats().enabled


def test_small_results_are_torchs() -> None:
    before = memory.stats()
    y = result(2)
    assert memory.stats() == before
    del y
    assert memory.stats() == before


def test_empty_cache_leaves_living_tensors_alone() -> None:
    y, z = result(8), result(8)
    del z
    memory.empty_cache()
    assert memory.stats().cached_bytes == 0
    assert (y == 1).all()


def test_sizes_as_text() -> None:
    for text, size in (("512MB", 512 * 10**6), ("2GiB", 2 << 30), ("0", 0), ("1.5KiB", 1536), (" 7 B", 7)):
        memory.set_limit(text)
        assert memory.stats().limit_bytes == size


def test_gradients_come_from_there_too() -> None:
    x = torch.ones(2 * MiB, requires_grad=True)
    fusedact.gelu(x).sum().backward()
    x.grad = None
    before = memory.stats()
    fusedact.gelu(x).sum().backward()
    assert memory.stats().hits >= before.hits + 2


def test_a_block_serves_again_for_what_it_served() -> None:
    """A value's memory for a value and a gradient's for a gradient, in any order of freeing; and any before none."""
    x, incoming = torch.ones(2 * MiB, requires_grad=True), torch.ones(2 * MiB)
    for first in (True, False):
        y = fusedact.relu(x)
        (gradient,) = torch.autograd.grad(y, x, incoming)
        value_at, gradient_at = y.data_ptr(), gradient.data_ptr()
        if first:
            del y, gradient
        else:
            del gradient, y
        y = fusedact.relu(x)
        (gradient,) = torch.autograd.grad(y, x, incoming)
        assert (y.data_ptr(), gradient.data_ptr()) == (value_at, gradient_at)
        del y, gradient
    before = memory.stats()
    living = [fusedact.relu(x), fusedact.relu(x)]
    assert memory.stats().hits == before.hits + len(living)


def test_what_is_stored_elsewhere_may_be_resized_and_shared() -> None:
    """Storage functions that need an allocator's cooperation."""
    y = result(8)
    y.untyped_storage().resize_(16 * MiB)
    assert y[:100].eq(1).all()
    assert y.untyped_storage().nbytes() == 16 * MiB
    y = result(8)
    y.share_memory_()
    assert (y == 1).all()


def test_threads() -> None:
    def work(seed: int) -> bool:
        sizes = torch.randint(4, 20, (20,), generator=torch.Generator().manual_seed(seed)).tolist()
        return all(bool((fusedact.square(torch.full((n * MiB // 4,), float(seed))) == seed**2).all()) for n in sizes)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
    assert memory.stats().cached_bytes <= 64 * MiB


def _child(queue) -> None:
    torch.set_num_threads(1)
    a, b = result(8), result(8)
    del a
    a = result(8)
    queue.put((bool((a == 1).all() and (b == 1).all()), memory.stats().cached_bytes))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork() -> None:
    """Parent and child go on with free lists of their own."""
    living, y = result(8), result(8)
    del y
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    right, cached = queue.get(timeout=60)
    child.join(30)
    assert child.exitcode == 0
    assert right
    assert cached <= 64 * MiB
    assert (living == 1).all()
    assert (result(8) == 1).all()
