"""Made by `python -m fusedact.stubs` from the registry; a test compares. Do not edit."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fusedact.registry import Activation, Limits, Resolved

MODULES: dict[str, type[nn.Module]]

class Fused:
    row: ClassVar[Activation]
    names: ClassVar[tuple[str, ...]]
    function: ClassVar[Callable[..., Tensor]]
    inplace: bool
    tap: Any
    def arguments(self) -> dict[str, Any]: ...
    def bias_act(
        self,
        input: Tensor,
        bias: Tensor | None = None,
        *,
        dim: int = 1,
        gain: float = 1.0,
        clamp: Limits = None,
        save: str = "auto",
        inplace: bool = False,
        ours: bool = False,
        scale: Tensor | None = None,
        dropout_p: float = 0.0,
        training: bool = True,
        residual: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...
    def forward(self, input: Tensor) -> Tensor: ...

def overwritable(resolved: Resolved) -> bool: ...
def signature(row: Activation, made: type[nn.Module]) -> inspect.Signature: ...

class Own(Fused, nn.Module):
    inplace: bool

class Learnable(Fused, nn.Module):
    init: float
    learnable: bool
    num_parameters: int
    inplace: bool
    def reset_parameters(self) -> None: ...

class Identity(Fused, nn.Identity): ...
class ReLU(Fused, nn.ReLU): ...
class ReLU6(Fused, nn.ReLU6): ...
class LeakyReLU(Fused, nn.LeakyReLU): ...
class PReLU(Fused, nn.PReLU): ...
class RReLU(Fused, nn.RReLU): ...
class ELU(Fused, nn.ELU): ...
class CELU(Fused, nn.CELU): ...
class SELU(Fused, nn.SELU): ...
class GELU(Fused, nn.GELU): ...
class SiLU(Fused, nn.SiLU): ...
class Mish(Fused, nn.Mish): ...
class Softplus(Fused, nn.Softplus): ...
class Sigmoid(Fused, nn.Sigmoid): ...
class LogSigmoid(Fused, nn.LogSigmoid): ...
class Tanh(Fused, nn.Tanh): ...
class Tanhshrink(Fused, nn.Tanhshrink): ...
class Softsign(Fused, nn.Softsign): ...
class Hardtanh(Fused, nn.Hardtanh): ...
class Hardsigmoid(Fused, nn.Hardsigmoid): ...
class Hardswish(Fused, nn.Hardswish): ...
class Hardshrink(Fused, nn.Hardshrink): ...
class Softshrink(Fused, nn.Softshrink): ...
class Threshold(Fused, nn.Threshold): ...

class GELUTanh(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

class QuickGELU(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

class Swish(Learnable):
    beta: float | Tensor
    def __init__(
        self,
        beta: float = 1.0,
        learnable: bool = False,
        num_parameters: int = 1,
        inplace: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

class Clamp(Own):
    min: float | None
    max: float | None
    def __init__(
        self,
        min: float = -1.0,
        max: float = 1.0,
        inplace: bool = False,
    ) -> None: ...

class FATReLU(Own):
    threshold: float
    def __init__(
        self,
        threshold: float = 0.0,
        inplace: bool = False,
    ) -> None: ...

class SquaredReLU(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

class HardMish(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

class Softcap(Own):
    cap: float
    def __init__(
        self,
        cap: float = 30.0,
        inplace: bool = False,
    ) -> None: ...

class SiTU(Own):
    beta: float
    def __init__(
        self,
        beta: float = 4.0,
        inplace: bool = False,
    ) -> None: ...

class ELUPlusOne(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

class Square(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

class SignedSqrt(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

class Cos(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

class Sin(Own):
    def __init__(
        self,
        inplace: bool = False,
    ) -> None: ...

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "Clamp",
    "Cos",
    "ELUPlusOne",
    "FATReLU",
    "GELUTanh",
    "HardMish",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "QuickGELU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "SiTU",
    "Sigmoid",
    "SignedSqrt",
    "Sin",
    "Softcap",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Square",
    "SquaredReLU",
    "Swish",
    "Tanh",
    "Tanhshrink",
    "Threshold",
]
