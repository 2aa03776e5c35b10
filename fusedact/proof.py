"""What tests/native's sweep over every float found, read back: beside PyTorch's errors, and as docs/accuracy.md.

Knows the lines that `proof_sweep` prints and the registry's bounds. Measures nothing of ours; PyTorch's errors are
measured here, by testing.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusedact import registry, testing
from fusedact.registry import Activation


@dataclass
class Line:
    """One activation, dtype and order of derivative. Errors are in ulp of the dtype."""

    activation: str
    dtype: str
    order: str  # of testing.ORDERS
    isa: str
    inputs: int  # judged; NaN, infinities and kinks are not among them
    stride: (
        int  # every n-th pattern and all neighbours of kinks, roots and range ends; 1: every one; 0: a sample (float64)
    )
    dense: list[float]  # [low, high]: every input with low <= |x| < high as well; [0, 0]: no such range
    ulp: float  # the largest
    at: float  # where
    mean: float
    subnormal: float  # the largest where the true value is no normal number
    subnormal_at: float
    near_root: float  # absolute, of derivatives within 0.1 of a root that miss their ulp
    truth: float  # how far the sweep's truth in double is from MPFR's
    torch_ulp: float | None = None
    torch_mean: float | None = None

    @property
    def bound(self) -> float:
        """The registry's, in ulp."""
        return float(getattr(registry.get(self.activation).bound(getattr(torch, self.dtype)), self.order))

    @property
    def kept(self) -> bool:
        """Whether the registry's bounds hold; a subnormal result may be off by one step beside the rounding."""
        near = registry.get(self.activation).bound(getattr(torch, self.dtype)).near_root
        return self.ulp <= self.bound and self.subnormal <= 1.5 and self.near_root <= near


def read(path: Path) -> list[Line]:
    """The lines of a file: the last of each activation, dtype, order and instruction set, in the registry's order."""
    lines = [Line(**json.loads(text)) for text in path.read_text().splitlines() if text.strip()]
    names, dtypes = [row.name for row in registry.ROWS], [str(d).removeprefix("torch.") for d in testing.DTYPES]
    latest = {(line.isa, line.dtype, line.activation, line.order): line for line in lines}
    return sorted(
        latest.values(),
        key=lambda line: (
            line.isa,
            dtypes.index(line.dtype),
            names.index(line.activation),
            testing.ORDERS.index(line.order),
        ),
    )


def write(lines: Iterable[Line], path: Path) -> None:
    """As `read` reads them."""
    path.write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines))


def add_torch(lines: Iterable[Line]) -> None:
    """Fill in PyTorch's errors where they are missing: all 16-bit inputs, every 40009th float32; float64 not."""
    found: dict[tuple[str, str], dict[str, testing.Worst]] = {}
    for line in lines:
        if line.torch_ulp is not None or line.dtype == "float64":
            continue
        key = (line.activation, line.dtype)
        if key not in found:
            found[key] = torchs(registry.get(line.activation), getattr(torch, line.dtype), 40009)
        if worst := found[key].get(line.order):
            line.torch_ulp, line.torch_mean = worst.ulp, worst.mean


def torchs(row: Activation, dtype: torch.dtype, step: int) -> dict[str, testing.Worst]:
    """The errors of PyTorch's own function by order, at every `step`-th float32; empty where it has none."""
    function = row.torch_function
    if function is None:
        return {}
    params = row.defaults()
    if row.tensor_parameter is not None:
        params[row.tensor_parameter.name] = torch.tensor([row.tensor_parameter.default], dtype=dtype)
    call: Callable[[Tensor], Tensor] = lambda x: function(x, **params)  # noqa: E731
    sweep = testing.every(dtype, step if dtype == torch.float32 else 1)
    pieces = [testing.some()] if dtype == torch.float64 else list(sweep)
    for orders in (3, 2, 1):  # hardsigmoid has no second derivative in torch
        try:
            return dict(zip(testing.ORDERS, testing.measure(row, call, pieces, orders), strict=False))
        except RuntimeError:
            continue
    return {}


_SIGNS = dict(zip(testing.ORDERS, ("f", "f′", "f″"), strict=True))


def _inputs(line: Line) -> str:
    if line.stride <= 1:
        return "**every one**" if line.stride else "a sample"
    low, high = line.dense
    return f"every one with {low:g} ≤ abs(x) < {high:g}, every {line.stride}th" if high else f"every {line.stride}th"


def short(value: float | None) -> str:
    """A number in a table's cell."""
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.3f}" if 0.001 <= value < 1000 else f"{value:.1e}"


def markdown(lines: list[Line]) -> str:
    """The text of docs/accuracy.md."""
    missed = [line for line in lines if not line.kept]
    page = [
        "# Accuracy, measured",
        "",
        "Made by `python -m fusedact accuracy --proof docs/accuracy.jsonl --markdown` from what `proof_sweep`",
        "(tests/native) found; a test compares. Errors are in ulp: the largest, where it is, and the mean; beside",
        "them PyTorch's largest and mean (all inputs of 16 bits, every 40009th float32). Inputs within",
        "0.1 of a root of f′ or f″ have an absolute bound instead, and are not among these. A value that is no normal",
        "number is judged by the subnormal step, in the column of that name; allowed is 1.5.",
        "",
        "Where it says *every one*, all 2^32 float32 (or 2^16) patterns were tried, but NaN and infinity; elsewhere",
        "every n-th and the neighbours of kinks, roots and range ends. Instruction sets that were run:",
        f"{', '.join(sorted({line.isa for line in lines}))}.",
        "",
        f"**{len(missed)} of {len(lines)} bounds missed.**" if missed else f"All {len(lines)} bounds kept.",
        "",
    ]
    for line in missed:
        page.append(
            f"- {line.activation} {_SIGNS[line.order]}, {line.dtype}, {line.isa}: "
            f"{short(line.ulp)} ulp at {line.at!r}, allowed are {line.bound:g}; "
            f"subnormal {short(line.subnormal)} at {line.subnormal_at!r}, allowed are 1.5"
        )
    previous = None
    for line in lines:
        if (line.isa, line.dtype) != previous:
            previous = (line.isa, line.dtype)
            page += [
                "",
                f"## {line.dtype}, {line.isa}",
                "",
                "| activation | | inputs | max | at | mean | subnormal | bound | PyTorch's max | mean |",
                "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
            ]
        numbers = (line.mean, line.subnormal, line.bound, line.torch_ulp, line.torch_mean)
        mean, subnormal, bound, torch_ulp, torch_mean = map(short, numbers)
        at = f"{line.at:.9g}" if line.ulp else ""
        name = line.activation if line.order == "forward" else ""
        inputs = _inputs(line) if line.order == "forward" else ""
        cells = (name, _SIGNS[line.order], inputs, short(line.ulp), at, mean, subnormal, bound, torch_ulp, torch_mean)
        page.append("| " + " | ".join(cells) + " |")
    return "\n".join(page) + "\n"
