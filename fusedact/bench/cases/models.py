"""Small models of today's kinds, end to end: a training step and an inference, of torch.nn and after `fusedact.fuse`.

Own definitions, as a textbook has them, of torch.nn's modules and functions. Fusing changes no line of them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedact
from fusedact.bench.case import FRESH, INFERENCE, STEP, TOLERANCE, Case, Expression, Trial, Wrong, tuple_of

CLASSES = 10
WORDS = 512


class Attention(nn.Module):
    """Causal or not; `rotary` turns queries and keys by their position."""

    def __init__(self, dim: int, heads: int, causal: bool, rotary: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.causal, self.rotary = heads, causal, rotary
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        if self.rotary:
            q, k = turned(q), turned(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, dim))  # type: ignore[no-any-return]


def turned(x: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., RoFormer, 2021), halves one after the other."""
    length, dim = x.shape[-2:]
    frequencies = 10000.0 ** -(torch.arange(0, dim, 2, device=x.device, dtype=x.dtype) / dim)
    angles = torch.arange(length, device=x.device, dtype=x.dtype)[:, None] * frequencies
    a, b = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, norm: Callable[[int], nn.Module], attention: nn.Module, mlp: nn.Module, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention, self.mlp = norm(dim), norm(dim), attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Up, activation, down; `act` as a module."""

    def __init__(self, dim: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(dim, hidden), act, nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """Llama's: down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Patches of 4 x 4, a learnt position, blocks, the mean."""

    def __init__(self, dim: int = 192, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, 64, dim) * 0.02)
        blocks = [Block(nn.LayerNorm, Attention(dim, 3, False), FeedForward(dim, 4 * dim, nn.GELU()), dim)]
        self.blocks = nn.Sequential(*(copy.deepcopy(blocks[0]) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]


class Language(nn.Module):
    """Words to the next word's logits: `positions` learnt (GPT-2) or none (Llama, whose attention turns)."""

    def __init__(
        self, dim: int, block: Callable[[], nn.Module], norm: nn.Module, positions: int, depth: int = 4
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, dim)
        self.positions = nn.Embedding(positions, dim) if positions else None
        self.blocks = nn.Sequential(*(block() for _ in range(4)))
        self.norm, self.head = norm, nn.Linear(dim, WORDS, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        if self.positions is not None:
            x = x + self.positions(torch.arange(words.shape[1], device=words.device))
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(784, 1024), nn.SiLU(), nn.Linear(1024, 1024), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(1024, CLASSES))


def convnet() -> nn.Module:
    def stage(channels: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    layers = [*stage(3, 32), *stage(32, 32), nn.MaxPool2d(2), *stage(32, 64), *stage(64, 64)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def gpt(dim: int = 256) -> nn.Module:
    def block() -> nn.Module:
        return Block(nn.LayerNorm, Attention(dim, 4, True), FeedForward(dim, 4 * dim, nn.GELU("tanh")), dim)

    return Language(dim, block, nn.LayerNorm(dim), 128)


def llama(dim: int = 256) -> nn.Module:
    def block() -> nn.Module:
        attention = Attention(dim, 4, True, rotary=True, bias=False)
        return Block(nn.RMSNorm, attention, GatedFeedForward(dim, 688), dim)

    return Language(dim, block, nn.RMSNorm(dim), 0)


def _pictures(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape), torch.randint(CLASSES, shape[:1])


def _sentences(batch: int, length: int) -> tuple[Tensor, Tensor]:
    words = torch.randint(WORDS, (batch, length + 1))
    return words[:, :-1].contiguous(), words[:, 1:].contiguous()


MODELS: tuple[tuple[str, str, Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]], ...] = (
    ("mlp", "128x784", mlp, lambda: _pictures(128, 784)),
    ("convnet", "16x3x32x32", convnet, lambda: _pictures(16, 3, 32, 32)),
    ("vit", "8x3x32x32", ViT, lambda: _pictures(8, 3, 32, 32)),
    ("gpt2-like", "4x128", gpt, lambda: _sentences(4, 128)),
    ("llama-like", "4x128", llama, lambda: _sentences(4, 128)),
)


@dataclass(frozen=True, eq=False)
class Model(Case):
    """A whole model: `build` makes it, `loss(output, target)` is what a step descends; the last input is the target."""

    build: Callable[[], nn.Module] = mlp
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy

    def outputs(self, mode: str) -> tuple[str, ...]:
        return (FRESH,)

    def expression(self, source: str, mode: str, output: str) -> Expression | None:
        return self.fresh.get(source)

    def model(self, source: str, device: str) -> nn.Module:
        """The model of `source`, always from the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built = self.build().to(device)
        return fusedact.fuse(built) if source == "fusedact" else built

    def trial(
        self,
        source: str,
        mode: str,
        output: str,
        inputs: tuple[Any, ...],
        through: Callable[[Expression], Expression] | None = None,
        cold: int = 1,
    ) -> Trial | None:
        if source not in self.fresh:
            return None
        *given, target = inputs
        model = self.model(source, str(target.device)).train(mode == STEP)
        call = through(model) if through else model
        parameters = tuple(model.parameters())

        def inference() -> Any:
            with torch.inference_mode():
                return call(*given)

        if mode == INFERENCE:
            return Trial(inference, lambda: tuple(y.clone() for y in tuple_of(inference())))
        optimizer = torch.optim.SGD(parameters, lr=1e-5)  # so small that all steps are alike

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(call(*given), target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss

        def once() -> tuple[Tensor | None, ...]:
            loss = step()
            return loss.detach(), *(None if p.grad is None else p.grad.clone() for p in parameters)

        return Trial(step, once, kept=lambda: self.loss(call(*given), target), owned=parameters)

    def exact(self, mode: str, inputs: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        *given, target = (x.double() if x.is_floating_point() else x for x in inputs)
        model = self.model("eager", str(target.device)).double().train(mode == STEP)
        if mode == INFERENCE:
            with torch.no_grad():
                return tuple_of(model(*given))
        loss = self.loss(model(*given), target)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True)

    def check(
        self,
        who: str,
        results: tuple[Tensor | None, ...],
        truth: tuple[Tensor | None, ...],
        inputs: tuple[Any, ...],
        slack: float = 1.0,
    ) -> None:
        """By the length of the difference: an element that rounding puts on a kink's other side may jump."""
        limit = TOLERANCE[self.dtype] * slack
        for i, (got, expected) in enumerate(zip(results, truth, strict=True)):
            if got is None or expected is None:
                raise Wrong(f"{who}: {'result' if got is None else 'truth'} {i} is missing")
            off = float((got.double() - expected).norm() / expected.norm())
            if not off <= limit:  # NaN is wrong, too
                raise Wrong(f"{who}: result {i} is off by {off:.1e} of its length, allowed are {limit:.1e}")

    def picked(self, inputs: tuple[Any, ...]) -> Tensor | None:
        return None

    def traffic(self, mode: str, inputs: tuple[Any, ...]) -> int | None:
        return None


def model(
    name: str,
    shape: str,
    build: Callable[[], nn.Module],
    make: Callable[[], tuple[Any, ...]],
    family: str = "models",
    **more: Any,
) -> Model:
    """A model as a case; for those of others, too. `make` is called with a fixed seed."""

    def inputs() -> tuple[Any, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return make()

    both: dict[str, Expression] = {"eager": F.linear, "fusedact": F.linear}  # who takes part; `trial` has the models
    # The tolerance: every layer's rounding. Much smaller than what another activation would do.
    defaults: dict[str, Any] = {
        "modes": (INFERENCE, STEP),
        "rows": (),
        "slack": 50.0,
        "bound_by_memory": False,
        "rounds": 4,
    }
    return Model(family, name, shape, torch.float32, inputs, both, build=build, **{**defaults, **more})


@functools.cache
def cases() -> list[Case]:
    """The five."""
    # In front of a batch norm gradients nearly cancel, and which of two pixels is the largest may hang on rounding.
    return [dataclasses.replace(model(*row), slack=2500.0 if row[0] == "convnet" else 50.0) for row in MODELS]
