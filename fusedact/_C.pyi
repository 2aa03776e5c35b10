"""The extension: pybind11 faces of the operators in `torch.ops.fusedact`, and facts about this build."""

from collections.abc import Callable, Sequence
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
def bias_act_of(
    activation: str, params: Sequence[float]
) -> Callable[[Tensor, Tensor | None, int, float, str], Tensor]: ...
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
def bias_act_epilogue(
    input: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    seed: Tensor | None,
    activation: str,
    params: Sequence[float],
    dim: int,
    gain: float,
    clamp_min: float | None,
    clamp_max: float | None,
    dropout_p: float,
) -> Tensor: ...
def batch_norm_act(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    act_weight: Tensor | None,
    eps: float,
    activation: str,
    params: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]: ...
def linear_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    param: Tensor | None,
    activation: str,
    params: Sequence[float],
    gain: float,
    clamp_min: float | None,
    clamp_max: float | None,
    save: str,
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
def softmax(input: Tensor, bias: Tensor | None, dim: int, log: bool) -> Tensor: ...
def maxout(input: Tensor, bias: Tensor | None, pieces: int, dim: int) -> tuple[Tensor, Tensor]: ...
def lstm_cell_act(gates: Tensor, c: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]: ...
def gru_cell_act(
    input_gates: Tensor,
    hidden_gates: Tensor,
    h: Tensor,
    input_bias: Tensor | None,
    hidden_bias: Tensor | None,
) -> Tensor: ...
def bias_act_statistics(
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
    zones: Sequence[float],
    sums: Tensor,
    histogram: Tensor,
    gradient: Tensor | None,
) -> Tensor: ...
def linear_act_statistics(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    param: Tensor | None,
    activation: str,
    params: Sequence[float],
    gain: float,
    clamp_min: float | None,
    clamp_max: float | None,
    save: str,
    zones: Sequence[float],
    sums: Tensor,
    histogram: Tensor,
    gradient: Tensor | None,
) -> Tensor: ...
def statistics_(
    sums: Tensor,
    histogram: Tensor | None,
    input: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    dim: int,
    zones: Sequence[float],
) -> None: ...
def activations() -> list[dict[str, Any]]: ...
def capability() -> str: ...
def cuda() -> dict[str, Any] | None: ...
def memory_stats() -> dict[str, Any]: ...
def memory_set_limit(bytes: int) -> None: ...
def memory_set_threshold(bytes: int) -> None: ...
def memory_empty_cache() -> None: ...
def memory_enable(on: bool) -> None: ...
