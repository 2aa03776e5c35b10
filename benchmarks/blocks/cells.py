"""The gate arithmetic of LSTM and GRU cells, as torch's own cells do it on the CPU: one operator after the other."""

from __future__ import annotations

from typing import Any

import torch
from case import BACKWARD, FORWARD, Case, normal
from torch import Tensor

import fusedact


def lstm(gates: Tensor, c: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (gates + bias).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(x: Tensor, h_gates: Tensor, h: Tensor, x_bias: Tensor, h_bias: Tensor) -> Tensor:
    r, z, n = (x + x_bias).chunk(3, -1)
    hr, hz, hn = (h_gates + h_bias).chunk(3, -1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return n + (z + hz).sigmoid() * (h - n)


def lstm_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    batch, hidden = shape
    return (
        normal(batch, 4 * hidden, dtype=dtype),
        normal(batch, hidden, dtype=dtype, seed=1),
        normal(4 * hidden, dtype=dtype, seed=2),
    )


def gru_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    batch, hidden = shape
    gates = [normal(batch, 3 * hidden, dtype=dtype, seed=seed) for seed in (0, 1)]
    biases = [normal(3 * hidden, dtype=dtype, seed=seed) for seed in (3, 4)]
    return (*gates, normal(batch, hidden, dtype=dtype, seed=2), *biases)


CELLS = (
    ("lstm_cell_act", fusedact.lstm_cell_act, lstm, lstm_inputs),
    ("gru_cell_act", fusedact.gru_cell_act, gru, gru_inputs),
)

CASES = [
    Case(
        name,
        shape,
        dtype,
        {"eager": theirs, "fusedact": mine},
        make,
        goals={(FORWARD, "eager"): 2.0, (BACKWARD, "eager"): 2.0},
        checked=dtype == torch.float32,  # eager's own steps in bfloat16 are farther off than the runner allows
    )
    for shape in ((64, 128), (64, 1024), (512, 128), (512, 1024))
    for name, mine, theirs, make in CELLS
    for dtype in (torch.float32, torch.bfloat16)
]
