"""The extension: pybind11 faces of the operators in `torch.ops.fusedact`, and facts about this build."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

def bias_act(
    input: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    activation: str,
    params: Sequence[float],
    dim: int,
    gain: float,
    clamp_min: float | None,
    clamp_max: float | None,
    save: str,
) -> Tensor: ...
def bias_act_(
    input: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    activation: str,
    params: Sequence[float],
    dim: int,
    gain: float,
    clamp_min: float | None,
    clamp_max: float | None,
    save: str,
) -> Tensor: ...
def bias_act_out(
    input: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    activation: str,
    params: Sequence[float],
    dim: int,
    gain: float,
    clamp_min: float | None,
    clamp_max: float | None,
    save: str,
    out: Tensor,
) -> Tensor: ...
def gated_act(
    input: Tensor,
    other: Tensor | None,
    bias: Tensor | None,
    other_bias: Tensor | None,
    activation: str,
    params: Sequence[float],
    dim: int,
    gate: str,
    layout: str,
    limit: float | None,
    alpha: float,
    offset: float,
) -> Tensor: ...
def activations() -> list[dict[str, Any]]: ...
def capability() -> str: ...
def memory_stats() -> dict[str, Any]: ...
def memory_set_limit(bytes: int) -> None: ...
def memory_set_threshold(bytes: int) -> None: ...
def memory_empty_cache() -> None: ...
def memory_enable(on: bool) -> None: ...
