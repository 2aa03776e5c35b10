"""The zoo in the benchmark: models of torchvision, timm and Transformers, as cases of `python -m fusedact bench`.

    python benchmarks/zoo.py                                          all models, one thread, as they are and fused
    python benchmarks/zoo.py --filter "*Llama*,*Gpt*" --clock cpu     some; the options are the benchmark's
    python benchmarks/zoo.py --with-compile --filter "*resnet18"      torch.compile too: minutes a model
    python benchmarks/zoo.py --table docs/fuse.md --minutes 14        the table of the documentation, in 14 minutes

Needs the extra `zoo`. An example of cases of one's own: a model, its inputs, and what a training step descends.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import typer
import zoo_table
from torch import Tensor, nn

from fusedact.bench import cases, command
from fusedact.bench.cases.models import Model, model
from fusedact.bench.providers import COMPILE, OURS_COMPILED

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from zoo import ZOO, Animal


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [t for value in values for t in tensors(value)]


class Positional(nn.Module):
    """A model that takes keyword arguments and returns a structure, called with tensors and returning tensors."""

    def __init__(self, inner: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(self.inner(**dict(zip(self.names, given, strict=True)))))


def means(outputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """A loss that reads everything and wants nothing."""
    return torch.stack([t.float().mean() for t in outputs if t.requires_grad]).sum()


def case(animal: Animal) -> Model:
    """Not checked: many drop out at random. tests/test_zoo.py compares them."""
    names = list(animal.inputs())
    return model(
        animal.name.replace(" ", "-"),
        "small",
        lambda: Positional(animal.make(), names),
        lambda: (*animal.inputs().values(), torch.zeros(())),
        family="zoo",
        loss=means,
        checked=False,
    )


def main() -> None:
    warnings.simplefilter("ignore")
    if "--table" in sys.argv:
        typer.run(zoo_table.write(ZOO))
        return
    cases.MORE += [case(animal) for animal in ZOO]
    arguments = [a for a in sys.argv[1:] if a != "--with-compile"]
    defaults = {"--plan": "zoo", "--threads": "1"}
    for option, value in defaults.items():
        if option not in arguments:
            arguments += [option, value]
    if "--with-compile" not in sys.argv:
        arguments += ["--without", COMPILE, "--without", OURS_COMPILED]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command.main)
    app(arguments, prog_name="zoo.py")


if __name__ == "__main__":
    main()
