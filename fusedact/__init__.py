"""fusedact: act(x + bias) in one pass over memory, forward and backward, as PyTorch operators.

    fusedact.gelu(x, bias)                            one function per activation
    fusedact.nn.Linear(64, 128, activation="gelu")    and drop-ins for torch.nn's classes
    fusedact.activations()                            the names
    fusedact.gated_act, linear_act, softmax, log_softmax, maxout, lstm_cell_act, gru_cell_act
    fusedact.fuse(model)                              the same in a model that exists
    fusedact.monitor(model)                           what the activations of a model do while it runs

Loads the extension, after a check that it was built for the torch that is installed; holds no logic of its own. What
reads other people's code, watches models or runs experiments is imported when first asked for: the rest takes less
than 50 ms.
"""

from typing import TYPE_CHECKING, Any

from fusedact._load import check_build

__version__ = check_build()

from fusedact import cells, functional, gated, gemm, memory, nn, reference, registry, sharding
from fusedact._maxout import maxout
from fusedact._softmax import log_softmax, softmax
from fusedact.cells import gru_cell_act, lstm_cell_act
from fusedact.functional import *  # noqa: F403
from fusedact.functional import __all__ as _functions
from fusedact.gated import gated_act
from fusedact.gemm import linear_act

if TYPE_CHECKING:
    from fusedact import fusing, health, lab
    from fusedact.fusing import compile_pass, explain, fuse, unfuse
    from fusedact.health import monitor

sharding.register_when_imported()

__all__ = [
    "__version__", "cells", "compile_pass", "explain", "functional", "fuse", "fusing", "gated", "gated_act", "gemm",
    "gru_cell_act", "health", "lab", "linear_act", "log_softmax", "lstm_cell_act", "maxout", "memory", "monitor", "nn",
    "reference", "registry", "sharding", "softmax", "unfuse", *_functions,
]  # fmt: skip

# Name -> the module that has it, or that it is.
_LATER = {
    "fusing": "fusing", "compile_pass": "fusing", "explain": "fusing", "fuse": "fusing", "unfuse": "fusing",
    "health": "health", "monitor": "health",
    "lab": "lab",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'fusedact' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"fusedact.{_LATER[name]}")
    value = module if name == _LATER[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_LATER]
