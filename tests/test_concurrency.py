"""Several Python threads, as DataParallel has them, and a fork after use, as a DataLoader does it."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import ROWS, call
from torch import Tensor

import fusedact


def work(seed: int) -> list[Tensor]:
    """Forward and backward of several rows; large enough that fusedact uses its own threads and memory."""
    generator = torch.Generator().manual_seed(seed)
    results = []
    for row in ROWS[:: max(1, len(ROWS) // 6)]:
        for shape in ((3, 5), (70, 1000)):
            x = torch.randn(shape, generator=generator, requires_grad=True)
            bias = torch.randn(shape[-1], generator=generator, requires_grad=True)
            y = call(row, x, bias)
            results += [y.detach(), *torch.autograd.grad(y.sum(), [x, bias])]
    return results


def test_python_threads() -> None:
    wanted = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, expected in zip(pool.map(work, range(8)), wanted, strict=True):
                for a, b in zip(got, expected, strict=True):
                    assert torch.equal(a, b)


def test_one_module_in_many_threads_accumulates_every_gradient() -> None:
    """DataParallel's replicas share parameters: autograd accumulates from each backward."""
    layer = fusedact.nn.Linear(6, 5, activation="gelu").double()
    x = torch.randn(8, 4, 6, dtype=torch.float64)
    for part in x:
        layer(part).sum().backward()
    wanted = layer.bias.grad.clone()
    layer.zero_grad()
    outputs = [layer(part).sum() for part in x]
    lock = threading.Lock()

    def backward(y: Tensor) -> None:
        grads = torch.autograd.grad(y, list(layer.parameters()))
        with lock:
            for p, g in zip(layer.parameters(), grads, strict=True):
                p.grad = g if p.grad is None else p.grad + g

    threads = [threading.Thread(target=backward, args=(y,)) for y in outputs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    torch.testing.assert_close(layer.bias.grad, wanted)


def _child(queue) -> None:
    torch.set_num_threads(1)  # torch's own OpenMP pool does not survive a fork
    queue.put([t.numpy() for t in work(5)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_use() -> None:
    """The child of a process that has used every part computes the same bits, and ends."""
    wanted = work(5)
    large = torch.randn(6_000_000)
    fusedact.gelu(large)  # the free list has a block, too
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    got = queue.get(timeout=60)
    child.join(30)
    assert child.exitcode == 0
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(torch.from_numpy(a), b)
    for a, b in zip(work(5), wanted, strict=True):
        assert torch.equal(a, b)


def _empty(queue) -> None:
    torch.set_num_threads(1)
    x = torch.randn(6_000_000)
    y = fusedact.gelu(x)
    fusedact.memory.empty_cache()
    queue.put(float(y[0] - torch.nn.functional.gelu(x[:1])[0]))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_the_free_list_is_full() -> None:
    fusedact.gelu(torch.randn(6_000_000))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_empty, args=(queue,))
    child.start()
    assert abs(queue.get(timeout=60)) < 1e-6
    child.join(30)
    assert child.exitcode == 0
