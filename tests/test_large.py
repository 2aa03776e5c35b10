"""More than 2^31 elements: offsets, counts and masks beyond 32 bits. Slow: `pytest --slow tests/test_large.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fusedact

ROWS, WIDTH = 2**21 + 3, 1024  # 2^31 + 3072 elements

slow = pytest.mark.slow(reason="2^31 elements of bfloat16, up to 14 GB")


def large() -> Tensor:
    """[ROWS, WIDTH] of bfloat16, its rows a pattern of 64."""
    block = torch.randn(64, WIDTH).to(torch.bfloat16)
    return block.repeat(ROWS // 64 + 1, 1)[:ROWS]


def ends(x: Tensor) -> Tensor:
    """Rows from the beginning, from around element 2^31, and the last."""
    return torch.cat([x[:5], x[2**21 - 3 :]])


@slow
def test_forward_and_backward() -> None:
    x, bias = large(), torch.randn(WIDTH).to(torch.bfloat16)
    wanted = fusedact.gelu(ends(x), bias)
    leaf, slope = x.requires_grad_(), bias.requires_grad_()
    y = fusedact.gelu(leaf, slope)
    assert torch.equal(ends(y.detach()), wanted)
    grad_x, grad_bias = torch.autograd.grad(y, [leaf, slope], torch.ones(()).to(y.dtype).expand_as(y))
    del y
    few = ends(x.detach()).requires_grad_()
    (slopes,) = torch.autograd.grad(fusedact.gelu(few, bias.detach()).sum(), few)
    assert torch.equal(ends(grad_x), slopes)
    # The rows repeat: the gradient is a multiple of one pattern's, and of the few rows that are left.
    total = grad_x[:64].float().sum(0) * (ROWS // 64) + grad_x[: ROWS % 64].float().sum(0)
    torch.testing.assert_close(grad_bias.float(), total, rtol=2**-7, atol=2e4)


@slow
def test_strided_and_in_place() -> None:
    x = large()
    view = x.t()  # [WIDTH, ROWS]: the bias runs along the slow dim of memory
    bias = torch.randn(WIDTH).to(torch.bfloat16)
    wanted = fusedact.relu(ends(x), bias)
    assert torch.equal(ends(fusedact.relu(view, bias, dim=0).t()), wanted)
    gapped = x[:, ::2]
    wanted_half = fusedact.silu(ends(gapped).contiguous())
    assert torch.equal(ends(fusedact.silu(gapped)), wanted_half)
    fusedact.relu(x, bias, inplace=True)
    assert torch.equal(ends(x), wanted)


@slow
def test_mask() -> None:
    x = large().requires_grad_()
    y = fusedact.relu(x, save="mask")
    (grad,) = torch.autograd.grad(y, x, torch.ones(()).to(y.dtype).expand_as(y))
    assert torch.equal(ends(grad), (ends(x.detach()) > 0).to(torch.bfloat16))
