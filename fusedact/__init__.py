"""fusedact: act(x + bias) in one pass over memory, forward and backward, as PyTorch operators.

    fusedact.gelu(x, bias)                            one function per activation
    fusedact.nn.Linear(64, 128, activation="gelu")    and drop-ins for torch.nn's classes
    fusedact.activations()                            the names
from fusedact import cells, functional, fusing, gated, gemm, memory, nn, reference, registry
from fusedact._maxout import maxout
from fusedact._softmax import log_softmax, softmax
from fusedact.cells import gru_cell_act, lstm_cell_act
from fusedact.functional import *  # noqa: F403
from fusedact.functional import __all__ as _functions
from fusedact.fusing import compile_pass, explain, fuse, unfuse
from fusedact.gated import gated_act
from fusedact.gemm import linear_act

__all__ = [
    "__version__", "cells", "compile_pass", "explain", "functional", "fuse", "fusing", "gated", "gated_act", "gemm",
    "gru_cell_act", "linear_act", "log_softmax", "lstm_cell_act", "maxout", "memory", "nn", "reference", "registry",
    "softmax", "unfuse", *_functions,
]  # fmt: skip
