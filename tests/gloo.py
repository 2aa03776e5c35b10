"""Two gloo processes on this machine, for what is tested across them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def worker(rank: int, port: int, body: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        body(*arguments)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # Not by way of Python's exit: a thread of gloo's that still holds the last reference to a collective's tensor takes
    # the GIL in a destructor, and an interpreter that is shutting down ends that thread there: std::terminate.
    os._exit(0)


def run(body: Callable[..., None], *arguments: object) -> None:
    """`body(*arguments)` in each of `WORLD` processes, one thread each, that form a process group.

    Raises what the first of them to fail raised.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, body, arguments), nprocs=WORLD)
