"""The gate arithmetic of LSTM and GRU cells, as torch's own cells do it on the CPU: one operator after the other."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

import fusedact
from fusedact.bench.case import Case, normal

SHAPES = {f"{batch}x{hidden}": (batch, hidden) for batch in (64, 512) for hidden in (128, 1024)}


def _lstm(gates: Tensor, c: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (gates + bias).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h_gates: Tensor, h: Tensor, x_bias: Tensor, h_bias: Tensor) -> Tensor:
    r, z, n = (x + x_bias).chunk(3, -1)
    hr, hz, hn = (h_gates + h_bias).chunk(3, -1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return n + (z + hz).sigmoid() * (h - n)


def _lstm_inputs(shape: str, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, hidden = SHAPES[shape]
    return (
        normal(batch, 4 * hidden, dtype=dtype),
        normal(batch, hidden, dtype=dtype, seed=1),
        normal(4 * hidden, dtype=dtype, seed=2, bias=True),
    )


def _gru_inputs(shape: str, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, hidden = SHAPES[shape]
    gates = [normal(batch, 3 * hidden, dtype=dtype, seed=seed) for seed in (0, 1)]
    biases = [normal(3 * hidden, dtype=dtype, seed=seed, bias=True) for seed in (3, 4)]
    return (*gates, normal(batch, hidden, dtype=dtype, seed=2), *biases)


CELLS = (
    ("lstm_cell_act", fusedact.lstm_cell_act, _lstm, _lstm_inputs, (0, 1)),
    ("gru_cell_act", fusedact.gru_cell_act, _gru, _gru_inputs, (0, 1, 2)),
)


def cases() -> list[Case]:
    """Both cells at every size."""
    return [
        Case(
            "cells",
            name,
            shape,
            dtype,
            functools.partial(make, shape, dtype),
            {"eager": theirs, "fusedact": mine},
            rows=rows,
            slack=1.0 if dtype == torch.float32 else 32.0,  # eager rounds each of its ten steps to 16 bits
        )
        for shape in SHAPES
        for name, mine, theirs, make, rows in CELLS
        for dtype in (torch.float32, torch.bfloat16)
    ]
