"""Fused models under torch.distributed: DDP and FSDP2 on gloo processes of one machine give the unfused gradients."""

from __future__ import annotations

from typing import Any

import gloo
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fusedact

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


class Net(nn.Module):
    """A block as models have it, and a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out, self.act = nn.Linear(8, 32), nn.Linear(32, 8), nn.GELU()
        self.tail = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(x + self.out(self.act(self.fc(x))))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x).sin().sum().backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient: Any = parameter.grad
        full = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        found[name.removeprefix("module.")] = full.clone()
    return found


def wrapped(kind: str, fused: bool) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = fusedact.fuse(Net()) if fused else Net()
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1e-3)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if kind == "tensor parallel":
        return parallelize_module(model, mesh, {"fc": ColwiseParallel(), "out": RowwiseParallel()})
    for part in (model.tail, model):
        fully_shard(part, mesh=mesh)
    return model


def check(kind: str) -> None:
    seed = 0 if kind == "tensor parallel" else dist.get_rank()  # tensor parallel ranks see the same batch
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
    ran = []
    old = torch.nn.functional.linear

    def watched(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ran.append(weight)
        return old(input, weight, bias)

    torch.nn.functional.linear = watched
    mine = gradients(wrapped(kind, True), x)
    torch.nn.functional.linear = old
    # A layer with its activation is one operator. The hooks of tensor parallel layers gather and scatter: there
    # only the Sequential's pair is, and the activation between the two works on this rank's columns.
    assert len(ran) == (3 if kind == "tensor parallel" else 2), "products that run apart from an activation"
    theirs = gradients(wrapped(kind, False), x)
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    # every rank has the mean over ranks
    for gradient in mine.values():
        others = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]
        dist.all_gather(others, gradient.contiguous())
        assert all(torch.equal(other, gradient) for other in others)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "tensor parallel"])
def test_gradients(kind: str) -> None:
    """Bucketed (DDP), sharded (FSDP2) and column-wise (DTensor) gradients of a fused model are the unfused model's."""
    gloo.run(check, kind)
