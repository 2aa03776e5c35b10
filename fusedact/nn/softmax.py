"""Drop-ins for torch.nn's Softmax, LogSoftmax and Softmax2d, which take a bias to fuse as a second argument."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import _get_softmax_dim  # type: ignore[attr-defined]

from fusedact._softmax import log_softmax, softmax

__all__ = ["LogSoftmax", "Softmax", "Softmax2d"]


class Softmax(nn.Softmax):
    """torch.nn.Softmax, fused with a bias. Shapes: input any; bias [input.size(dim)]."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """softmax(input + bias) along `dim`."""
        dim = _get_softmax_dim("softmax", input.dim(), 4) if self.dim is None else self.dim
        return softmax(input, bias, dim)


class LogSoftmax(nn.LogSoftmax):
    """torch.nn.LogSoftmax, fused with a bias. Shapes: input any; bias [input.size(dim)]."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """log_softmax(input + bias) along `dim`."""
        dim = _get_softmax_dim("log_softmax", input.dim(), 4) if self.dim is None else self.dim
        return log_softmax(input, bias, dim)


class Softmax2d(nn.Softmax2d):
    """torch.nn.Softmax2d, fused with a bias. Shapes: input [N, C, H, W] or [C, H, W]; bias [C]."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """softmax(input + bias) over the channels of each position."""
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.dim()}D instead")
        return softmax(input, bias, -3)
