"""Made by `python -m fusedact.stubs` from the registry; a test compares. Do not edit."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fusedact import registry
from fusedact.registry import Activation, Limits
from fusedact.registry import activations as activations

FUNCTIONS: dict[str, Callable[..., Tensor]]

def run(
    input: Tensor,
    bias: Tensor | None,
    resolved: registry.Resolved,
    dim: int,
    gain: float,
    clamp: Limits,
    save: str,
    inplace: bool,
    out: Tensor | None,
) -> Tensor: ...
def signature(row: Activation) -> inspect.Signature: ...
def annotation(parameter: registry.Parameter) -> str: ...
def legal_range(parameter: registry.Parameter) -> str: ...
def bias_act(
    input: Tensor,
    bias: Tensor | None = None,
    activation: str = "relu",
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
    **params: Any,
) -> Tensor: ...
def identity(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def relu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def relu6(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def leaky_relu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    negative_slope: float = 0.01,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def prelu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    weight: float | Tensor = 0.25,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def rrelu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    lower: float = 0.125,
    upper: float = 0.3333333333333333,
    training: bool = False,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def elu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float = 1.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def celu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float = 1.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def selu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def gelu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    approximate: str = "none",
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def gelu_tanh(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def quick_gelu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def silu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def swish(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    beta: float | Tensor = 1.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def mish(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def softplus(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    beta: float = 1.0,
    threshold: float = 20.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def sigmoid(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def logsigmoid(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def tanh(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def tanhshrink(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def softsign(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def hardtanh(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    min_val: float = -1.0,
    max_val: float = 1.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def clamp(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    min: float | None = -1.0,
    max: float | None = 1.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def hardsigmoid(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def hardswish(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def hardshrink(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    lambd: float = 0.5,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def softshrink(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    lambd: float = 0.5,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def threshold(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: float = 0.0,
    value: float = 0.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def fatrelu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: float = 0.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def squared_relu(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def hard_mish(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def softcap(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    cap: float = 30.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def situ(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    beta: float = 4.0,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def elup1(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def square(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def signed_sqrt(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def cos(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def sin(
    input: Tensor,
    bias: Tensor | None = None,
    *,
    dim: int = -1,
    gain: float = 1.0,
    clamp: Limits = None,
    save: str = "auto",
    inplace: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...

linear = identity
lrelu = leaky_relu
gelu_new = gelu_tanh
gelu_fast = gelu_tanh
gelu_pytorch_tanh = gelu_tanh
swish1 = silu
soft_plus = softplus
logistic = sigmoid
log_sigmoid = logsigmoid
tanh_shrink = tanhshrink
soft_sign = softsign
hard_tanh = hardtanh
clip = clamp
hard_sigmoid = hardsigmoid
hard_swish = hardswish
hard_shrink = hardshrink
soft_shrink = softshrink
relu2 = squared_relu
srelu = squared_relu
sqrelu = squared_relu
elu_plus_one = elup1
squared = square

__all__ = [
    "activations",
    "bias_act",
    "celu",
    "clamp",
    "clip",
    "cos",
    "elu",
    "elu_plus_one",
    "elup1",
    "fatrelu",
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_tanh",
    "hard_mish",
    "hard_shrink",
    "hard_sigmoid",
    "hard_swish",
    "hard_tanh",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "identity",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "logistic",
    "logsigmoid",
    "lrelu",
    "mish",
    "prelu",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "signed_sqrt",
    "silu",
    "sin",
    "situ",
    "soft_plus",
    "soft_shrink",
    "soft_sign",
    "softcap",
    "softplus",
    "softshrink",
    "softsign",
    "sqrelu",
    "square",
    "squared",
    "squared_relu",
    "srelu",
    "swish",
    "swish1",
    "tanh",
    "tanh_shrink",
    "tanhshrink",
    "threshold",
]
