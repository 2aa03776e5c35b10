"""Drop-ins for torch.nn's LSTMCell and GRUCell: two matrix products, then one fused pass. Same state_dict keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedact.cells import gru_cell_act, lstm_cell_act

__all__ = ["GRUCell", "LSTMCell"]


def _rows(cell: nn.RNNCellBase, name: str, state: Tensor | None, input: Tensor) -> Tensor:
    """`state` as [batch, hidden]; zeros if it is absent."""
    if state is None:
        return input.new_zeros(input.size(0) if input.dim() == 2 else 1, cell.hidden_size)
    if state.dim() not in (1, 2):
        raise ValueError(f"{type(cell).__name__}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")
    return state if input.dim() == 2 else state.unsqueeze(0)


def _input(cell: nn.RNNCellBase, input: Tensor) -> Tensor:
    """`input` as [batch, input_size]."""
    if input.dim() not in (1, 2):
        raise ValueError(f"{type(cell).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    return input if input.dim() == 2 else input.unsqueeze(0)


class LSTMCell(nn.LSTMCell):
    """torch.nn.LSTMCell with its gate arithmetic fused.

    Shapes: input [batch, input_size] or [input_size]; h and c [batch, hidden_size] or [hidden_size].
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(h, c) after one step from `hx`, zeros if it is absent."""
        x = _input(self, input)
        before = _rows(self, "hx[0]", None if hx is None else hx[0], input)
        c = before if hx is None else _rows(self, "hx[1]", hx[1], input)
        bias = self.bias_ih + self.bias_hh if self.bias else None
        gates = torch.addmm(F.linear(x, self.weight_ih), before, self.weight_hh.t())
        h, c = lstm_cell_act(gates, c, bias)
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


class GRUCell(nn.GRUCell):
    """torch.nn.GRUCell with its gate arithmetic fused.

    Shapes: input [batch, input_size] or [input_size]; h [batch, hidden_size] or [hidden_size].
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h after one step from `hx`, zeros if it is absent."""
        x, before = _input(self, input), _rows(self, "hidden", hx, input)
        input_bias, hidden_bias = (self.bias_ih, self.bias_hh) if self.bias else (None, None)
        input_gates, hidden_gates = F.linear(x, self.weight_ih), F.linear(before, self.weight_hh)
        h = gru_cell_act(input_gates, hidden_gates, before, input_bias, hidden_bias)
        return h if input.dim() == 2 else h.squeeze(0)
