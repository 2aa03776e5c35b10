"""Maxout as a layer; torch.nn has none."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedact._maxout import maxout

__all__ = ["Maxout"]


class Maxout(nn.Module):
    """The largest of `pieces` affine functions for each output (Goodfellow et al. 2013).

    result[..., i] = max over j of input @ weight[i * pieces + j] + bias[i * pieces + j]

    Shapes: input [*, in_features], output [*, out_features]; weight [out_features * pieces, in_features], bias
    [out_features * pieces], initialised as torch.nn.Linear's.

    Args:
        in_features, out_features: sizes of the last dim.
        pieces: how many affine functions each output is chosen from, 1 to 256.
        bias: whether to learn an additive bias.

    Raises:
        ValueError: `pieces` is not in [1, 256].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pieces: int = 2,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= pieces <= 256:
            raise ValueError(f"pieces is {pieces}, but it must be in [1, 256]")
        self.in_features, self.out_features, self.pieces = in_features, out_features, pieces
        rows = out_features * pieces
        self.weight = nn.Parameter(torch.empty(rows, in_features, device=device, dtype=dtype))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as torch.nn.Linear does: uniform in ±1 / sqrt(in_features)."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """[*, in_features] to [*, out_features]."""
        return maxout(F.linear(input, self.weight), self.bias, self.pieces)

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, pieces={self.pieces}, "
            f"bias={self.bias is not None}"
        )
