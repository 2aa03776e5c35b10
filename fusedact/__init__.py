"""fusedact: act(x + bias) in one pass over memory, forward and backward, as PyTorch operators.

    fusedact.gelu(x, bias)                            one function per activation
    fusedact.nn.Linear(64, 128, activation="gelu")    and drop-ins for torch.nn's classes
    fusedact.activations()                            the names
    model = fusedact.fuse(model)                      an existing model, with its activations fused

Loads the extension, after a check that it was built for the torch that is installed; holds no logic of its own.
"""

from fusedact._load import check_build

__version__ = check_build()

from fusedact import functional, fusing, gated, gemm, memory, nn, reference, registry
from fusedact.functional import *  # noqa: F403
from fusedact.functional import __all__ as _functions
from fusedact.fusing import compile_pass, explain, fuse, unfuse
from fusedact.gated import gated_act
from fusedact.gemm import linear_act

__all__ = [
    "__version__", "compile_pass", "explain", "functional", "fuse", "fusing", "gated", "gated_act", "gemm",
    "linear_act", "memory", "nn", "reference", "registry", "unfuse", *_functions,
]  # fmt: skip
