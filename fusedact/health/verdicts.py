"""What the counts mean, in words, and what to try. Every threshold is here; knows counts and rows, no tensors.

A verdict names the cause where there is one: gradients that vanish below a saturated layer are that layer's fault, and
the layers below get no verdict of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from fusedact.registry import Activation

SEEN = 32  # values of a channel, in all: before, nobody can say that it is dead
SILENT = 0.01  # a dead channel's output stays below it (GELU's tail; SiLU's is -0.001)
SATURATED = {True: 0.5, False: 0.95}  # squashing or not: the share of saturated values above which it is a fault
MOSTLY_DEAD = 0.5  # the share of dead channels that explains why nothing arrives below
RATIO = 1e3  # a gradient or an output so many times larger or smaller than the last, or first, activation's


class Verdict(NamedTuple):
    """One thing that is wrong with one activation."""

    kind: str  # "not finite", "dead", "saturated", "exploding", "vanishing"
    words: str
    channels: list[int]  # which, if it is about some of them
    advice: list[str]


def squashes(row: Activation) -> bool:
    """Whether the activation is meant to bound its output: then a flat zone saturates it, and does not kill it."""
    return row.init in ("sigmoid", "tanh")


def judge(found: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Activation]) -> dict[str, list[Verdict]]:
    """The verdicts on each activation.

    Args:
        found: name -> what `Sums.summary` says of it, in the order in which the activations run.
        rows: name -> row.
    """
    names = list(found)
    judged: dict[str, list[Verdict]] = {name: [] for name in names}
    explained = False  # by what lies behind: walked from the last activation to the first
    last = next((found[name]["gradient"] for name in reversed(names) if found[name]["gradient"]), None)
    for name in reversed(names):
        one, row = found[name], rows[name]
        verdicts = [*_not_finite(one), *_dead(one, row)]
        dead = len(verdicts[-1].channels) / one["channels"] if verdicts and verdicts[-1].kind == "dead" else 0.0
        if dead < MOSTLY_DEAD:
            verdicts += _saturated(one, row)
        broken = any(v.kind in ("not finite", "saturated") for v in verdicts) or dead >= MOSTLY_DEAD
        explained |= broken
        if not any(v.kind == "not finite" for v in verdicts):
            verdicts += _size(one, found[names[0]], last, row, explained)
        judged[name] = verdicts
    return judged


def _not_finite(one: Mapping[str, Any]) -> list[Verdict]:
    if not (one["nan"] or one["inf"] or one["not finite steps"]):
        return []
    counts = f"{one['nan']:.0f} NaN and {one['inf']:.0f} inf among the values read"
    per = one["per channel"]
    channels = [c for c, (nan, inf) in enumerate(zip(per["nan"], per["inf"], strict=True)) if nan or inf]
    advice = [
        "a lower learning rate, and clip_grad_norm_",
        "torch.autograd.set_detect_anomaly(True) finds the first one",
    ]
    return [Verdict("not finite", counts, channels, advice)]


def _dead(one: Mapping[str, Any], row: Activation) -> list[Verdict]:
    per = one["per channel"]
    if squashes(row) or one["values per step and channel"] * one["steps"] < SEEN:
        return []
    channels = [
        c
        for c, share in enumerate(per["saturated"])
        if share == 1 and max(abs(per["min"][c]), abs(per["max"][c])) <= SILENT
    ]
    if not channels:
        return []
    shown = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
    words = f"{len(channels)} of {one['channels']} channels are dead: {shown}"
    advice = [_initialise(row), "leaky_relu, elu or gelu instead", "a lower learning rate", "normalise before it"]
    return [Verdict("dead", words, channels, advice)]


def _saturated(one: Mapping[str, Any], row: Activation) -> list[Verdict]:
    if one["saturated"] <= SATURATED[squashes(row)]:
        return []
    advice = ["smaller weights: " + _initialise(row), "normalise before it (BatchNorm, LayerNorm)"]
    advice += ["relu or gelu in hidden layers"] if squashes(row) else ["a lower learning rate"]
    return [Verdict("saturated", f"{one['saturated']:.0%} of the values are where |f'| < 0.001", [], advice)]


def _size(
    one: Mapping[str, Any], first: Mapping[str, Any], last: Mapping[str, Any] | None, row: Activation, explained: bool
) -> list[Verdict]:
    """Exploding or vanishing: the outputs against the first activation's, the gradient against the last one's."""
    grown = one["rms"] / max(first["rms"], 1e-30)
    ratio = one["gradient"]["rms"] / last["rms"] if one["gradient"] and last and last["rms"] else 1.0
    if grown > RATIO or ratio > RATIO:
        words = f"outputs are {grown:.0e} times the first activation's" if grown > RATIO else ""
        words = words or f"the gradient is {ratio:.0e} times the last activation's"
        advice = [
            "smaller weights: " + _initialise(row),
            "a lower learning rate",
            "normalise before it",
            "clip_grad_norm_",
        ]
        return [Verdict("exploding", words, [], advice)]
    if explained:
        return []
    if ratio < 1 / RATIO or (grown < 1 / RATIO and not squashes(row)):
        words = f"the gradient is {ratio:.0e} of the last activation's"
        if ratio >= 1 / RATIO:
            words = f"outputs are {grown:.0e} of the first activation's"
        advice = [_initialise(row), "skip connections: x + f(x)", "normalise before it"]
        return [Verdict("vanishing", words, [], advice + ["relu or gelu instead"] * squashes(row))]
    return []


def _initialise(row: Activation) -> str:
    """The initialisation that suits the row, by its inventor's name."""
    who = {"relu": "He's", "leaky_relu": "He's", "selu": "LeCun's"}.get(row.init, "Xavier's")
    gain = nn.init.calculate_gain(row.init) if row.init != "selu" else 1.0  # type: ignore[arg-type]
    return f"{who} initialisation (gain {gain:.3g}; layer.init_for_activation_())"
