"""Gated units as modules, and the feed-forward block that is built on them.

A class holds its arguments and calls `fusedact.gated_act` with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedact import registry
from fusedact.gated import Biases, Pair, gated_act, split

__all__ = ["GLU", "GatedAct", "GatedMLP", "GeGLU", "ReGLU", "SwiGLU"]


class GLU(nn.GLU):
    """first * sigmoid(second), fused: torch.nn.GLU, whose gate is the second half.

    Shapes: input [*, 2 n, *] with 2 n in `dim`, output [*, n, *].
    """

    def forward(self, input: Tensor) -> Tensor:
        return gated_act(input, None, "sigmoid", dim=self.dim, gate="second")


class GatedAct(nn.Module):
    """activation(gate) * (value + offset), fused; see `fusedact.gated_act` for the arguments.

    Shapes: input [*, 2 n, *] with 2 n in `dim`, output [*, n, *]; or two inputs of the output's shape.

    The remaining keywords are the activation's own parameters.
    """

    def __init__(
        self,
        activation: str,
        dim: int = -1,
        *,
        gate: str = "first",
        layout: str = "concat",
        limit: float | None = None,
        alpha: float = 1.0,
        offset: float = 0.0,
        **params: Any,
    ) -> None:
        super().__init__()
        registry.get(activation).resolve(**params)
        self.activation, self.params = activation, params
        self.dim, self.gate, self.layout, self.limit, self.alpha, self.offset = dim, gate, layout, limit, alpha, offset

    def forward(self, input: Tensor | Pair, bias: Biases = None) -> Tensor:
        """The gated unit of `input`, after `bias`, both as for `fusedact.gated_act`."""
        return gated_act(
            input,
            bias,
            self.activation,
            dim=self.dim,
            gate=self.gate,
            layout=self.layout,
            limit=self.limit,
            alpha=self.alpha,
            offset=self.offset,
            **self.params,
        )

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, after the activation where the class does not name it."""
        shown = [f"{self.activation!r}"] * (type(self) is GatedAct) + [f"dim={self.dim}"]
        for name, default in (
            ("gate", "first"),
            ("layout", "concat"),
            ("limit", None),
            ("alpha", 1.0),
            ("offset", 0.0),
        ):
            if getattr(self, name) != default:
                shown.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(shown + [f"{name}={value!r}" for name, value in self.params.items()])


class SwiGLU(GatedAct):
    """silu(gate) * value, as Llama has it. Arguments and shapes: `GatedAct`, without the activation.

    Source: Shazeer 2020, GLU Variants Improve Transformer
    """

    def __init__(self, dim: int = -1, **options: Any) -> None:
        super().__init__("silu", dim, **options)


class GeGLU(GatedAct):
    """gelu(gate) * value; `approximate` as torch.nn.GELU's. Arguments and shapes: `GatedAct`, without the activation.

    Source: Shazeer 2020, GLU Variants Improve Transformer
    """

    def __init__(self, dim: int = -1, approximate: str = "none", **options: Any) -> None:
        super().__init__("gelu", dim, approximate=approximate, **options)


class ReGLU(GatedAct):
    """relu(gate) * value. Arguments and shapes: `GatedAct`, without the activation.

    Source: Shazeer 2020, GLU Variants Improve Transformer
    """

    def __init__(self, dim: int = -1, **options: Any) -> None:
        super().__init__("relu", dim, **options)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)): the feed-forward block of Llama and its kin.

    Args:
        dim: size of the last dim of input and output.
        hidden: size of gate and value.
        activation: a name from `fusedact.activations()`.
        bias: whether the three projections have biases; those of gate and value are added in the fused pass.
        packed: one product for gate and value, with parameters `gate_up_proj.*`, in place of two, with `gate_proj.*`
            and `up_proj.*`. The third is `down_proj.*`.
        layout: of packed weights: "concat", gate first, or "interleaved", row by row.
        limit, alpha, offset: as for `fusedact.gated_act`; the remaining keywords are the activation's own.

    Shapes: input [*, dim], output [*, dim].

    Either form loads the other's checkpoints: what lies under `gate_proj` and `up_proj` is packed, and what lies under
    `gate_up_proj` is taken apart, while it is loaded. The keys of the separate form are those of Llama's MLP;
    `separate_state_dict` has them for a packed one.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: str = "silu",
        *,
        bias: bool = False,
        packed: bool = True,
        layout: str = "concat",
        limit: float | None = None,
        alpha: float = 1.0,
        offset: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **params: Any,
    ) -> None:
        super().__init__()
        if layout not in ("concat", "interleaved"):
            raise ValueError(f"GatedMLP: layout is {layout!r}, but it must be 'concat' or 'interleaved'")
        if layout == "interleaved" and not packed:
            raise ValueError("GatedMLP: layout is 'interleaved', but the weights are separate: give packed=True")
        self.dim, self.hidden, self.packed = dim, hidden, packed
        factory: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        if packed:
            self.gate_up_proj = nn.Linear(dim, 2 * hidden, **factory)
        else:
            self.gate_proj = nn.Linear(dim, hidden, **factory)
            self.up_proj = nn.Linear(dim, hidden, **factory)
        self.act = GatedAct(activation, layout=layout, limit=limit, alpha=alpha, offset=offset, **params)
        self.down_proj = nn.Linear(hidden, dim, **factory)

    def forward(self, input: Tensor) -> Tensor:
        """[*, dim] -> [*, dim]."""
        if self.packed:
            product, bias = _product(self.gate_up_proj, input)
            hidden = self.act(product, bias)
        else:
            (gate, gate_bias), (up, up_bias) = _product(self.gate_proj, input), _product(self.up_proj, input)
            hidden = self.act((gate, up), (gate_bias, up_bias))
        result: Tensor = self.down_proj(hidden)
        return result

    def separate_state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """The parameters, detached, under the keys of separate weights: gate_proj, up_proj and down_proj."""
        own = {prefix + name: p.detach() for name, p in self.named_parameters()}
        return dict(_separate(own, prefix, self.act.layout))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # torch calls this before it loads the children, with a dict that is its own.
        wanted = _packed if self.packed else _separate
        changed = dict(wanted(state_dict, prefix, self.act.layout))
        state_dict.clear()
        state_dict.update(changed)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """The arguments that the children do not show."""
        return f"dim={self.dim}, hidden={self.hidden}, packed={self.packed}"


def _product(layer: nn.Module, input: Tensor) -> tuple[Tensor, Tensor | None]:
    """A layer's product, and the bias that is still to be added: none for layers that are not plain ones."""
    if (
        type(layer) is nn.Linear
        and layer.bias is not None
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    ):
        return F.linear(input, layer.weight), layer.bias
    result: Tensor = layer(input)
    return result, None


def _packed(tensors: Mapping[str, Tensor], prefix: str, layout: str) -> Iterator[tuple[str, Tensor]]:
    """`tensors` with gate_proj and up_proj as one gate_up_proj."""
    for name, tensor in tensors.items():
        kind = name.removeprefix(f"{prefix}gate_proj.")
        up = tensors.get(f"{prefix}up_proj.{kind}")
        if name == f"{prefix}gate_proj.{kind}" and up is not None:
            both = torch.stack((tensor, up), 1).flatten(0, 1) if layout == "interleaved" else torch.cat((tensor, up))
            yield f"{prefix}gate_up_proj.{kind}", both
        elif not (name.startswith(f"{prefix}up_proj.") and name.replace("up_proj.", "gate_proj.") in tensors):
            yield name, tensor


def _separate(tensors: Mapping[str, Tensor], prefix: str, layout: str) -> Iterator[tuple[str, Tensor]]:
    """`tensors` with gate_up_proj as gate_proj and up_proj."""
    for name, tensor in tensors.items():
        kind = name.removeprefix(f"{prefix}gate_up_proj.")
        if name == f"{prefix}gate_up_proj.{kind}":
            gate, up = split(tensor, 0, layout)
            yield f"{prefix}gate_proj.{kind}", gate
            yield f"{prefix}up_proj.{kind}", up
        else:
            yield name, tensor
