"""fusedact: act(x + bias) in one pass over memory, forward and backward, as PyTorch operators.

    fusedact.gelu(x, bias)                            one function per activation
    fusedact.nn.Linear(64, 128, activation="gelu")    and drop-ins for torch.nn's classes
    fusedact.activations()                            the names

Loads the extension, after a check that it was built for the torch that is installed; holds no logic of its own.
"""

from fusedact._load import check_build

__version__ = check_build()

from fusedact import functional, gated, gemm, memory, nn, reference, registry
from fusedact.functional import *  # noqa: F403
from fusedact.functional import __all__ as _functions
from fusedact.gated import gated_act
from fusedact.gemm import linear_act

__all__ = [
    "__version__", "functional", "gated", "gated_act", "gemm", "linear_act", "memory", "nn", "reference", "registry",
    *_functions,
]  # fmt: skip
