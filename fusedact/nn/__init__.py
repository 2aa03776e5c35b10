"""torch.nn with the activation fused: drop-ins for its activation classes, and layers with `activation=`.

Every class here whose name torch.nn has is a subclass of torch.nn's, with the same constructor, repr and state_dict.
"""

from fusedact.nn import activation, batch_norm, gated, layers
from fusedact.nn.activation import *  # noqa: F403
from fusedact.nn.activation import __all__ as _activations
from fusedact.nn.batch_norm import *  # noqa: F403
from fusedact.nn.batch_norm import __all__ as _batch_norms
from fusedact.nn.cells import GRUCell, LSTMCell
from fusedact.nn.gated import *  # noqa: F403
from fusedact.nn.gated import __all__ as _gated
from fusedact.nn.layers import *  # noqa: F403
from fusedact.nn.layers import __all__ as _layers
from fusedact.nn.maxout import Maxout
from fusedact.nn.softmax import LogSoftmax, Softmax, Softmax2d

__all__ = [
    "GRUCell", "LSTMCell", "LogSoftmax", "Maxout", "Softmax", "Softmax2d", "activation", "batch_norm", "gated",
    "layers",
    *_activations, *_batch_norms, *_gated, *_layers,
]  # fmt: skip
