"""The gate arithmetic of recurrent cells, each step's in one pass over memory, forward and backward.

What is left of a cell are its matrix products: `fusedact.nn.LSTMCell` and `GRUCell` put both together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import has_torch_function_variadic

from fusedact import _C
from fusedact._softmax import wrong_types

__all__ = ["gru_cell_act", "lstm_cell_act"]


def lstm_cell_act(gates: Tensor, c: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One step of an LSTM after its matrix products: (h, c_new) from the gates before their activations.

    With i, f, g, o = (gates + bias).chunk(4, -1), in torch.nn.LSTMCell's order,

        c_new = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c_new)

    Backward computes the gates' activations again from `gates`, which is all that is kept, with `c` and the bias.

    Args:
        gates: [..., 4 * hidden]: what the input and the hidden state contribute, added up.
        c: [..., hidden], of the same dtype.
        bias: None, or [4 * hidden]; of the same dtype, or float32 beside 16-bit gates.

    Returns:
        h and c_new, each [..., hidden], contiguous.

    Raises:
        TypeError: a wrong type, or dtypes that do not fit.
        ValueError: shapes that do not fit; got, expected and the fix in one message.
        NotImplementedError: this build has no kernel for the device.

    Source: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000 (the forget gate).
    """
    if is_dynamo_compiling() or has_torch_function_variadic(gates, c, bias):
        h, c_new = torch.ops.fusedact.lstm_cell_act(gates, c, bias)
        return h, c_new
    try:
        return _C.lstm_cell_act(gates, c, bias)
    except TypeError as error:
        raise wrong_types(error, "lstm_cell_act", gates=gates, c=c, bias=bias) from None


def gru_cell_act(
    input_gates: Tensor,
    hidden_gates: Tensor,
    h: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> Tensor:
    """One step of a GRU after its matrix products: h_new from the gates before their activations.

    With (r, z, n) = (input_gates + input_bias).chunk(3, -1), (r', z', n') = (hidden_gates + hidden_bias).chunk(3, -1),
    in torch.nn.GRUCell's order,

        n = tanh(n + sigmoid(r + r') * n')
        h_new = (1 - sigmoid(z + z')) * n + sigmoid(z + z') * h

    Args:
        input_gates: [..., 3 * hidden]: what the input contributes.
        hidden_gates: [..., 3 * hidden]: what the hidden state contributes.
        h: [..., hidden]: the hidden state itself; all of the same dtype.
        input_bias, hidden_bias: None, or [3 * hidden]; of the same dtype, or float32 beside 16-bit gates.

    Returns:
        h_new, [..., hidden], contiguous.

    Raises:
        TypeError: a wrong type, or dtypes that do not fit.
        ValueError: shapes that do not fit; got, expected and the fix in one message.
        NotImplementedError: this build has no kernel for the device.

    Source: Cho et al. 2014; the reset gate applied after the product, as in cuDNN and torch.
    """
    if is_dynamo_compiling() or has_torch_function_variadic(input_gates, hidden_gates, h, input_bias, hidden_bias):
        result: Tensor = torch.ops.fusedact.gru_cell_act(input_gates, hidden_gates, h, input_bias, hidden_bias)
        return result
    try:
        return _C.gru_cell_act(input_gates, hidden_gates, h, input_bias, hidden_bias)
    except TypeError as error:
        raise wrong_types(
            error, "gru_cell_act", input_gates=input_gates, hidden_gates=hidden_gates, h=h, input_bias=input_bias,
            hidden_bias=hidden_bias,
        ) from None  # fmt: skip
