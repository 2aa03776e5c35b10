"""`python -m fusedact.stubs` writes the type stubs of what is made at import: functional.pyi and nn/activation.pyi.

With `--check` it writes nothing and exits with 1 if a stub is out of date. Derives from the registry alone.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from fusedact import functional, registry
from fusedact.nn import activation

_HEADER = '"""Made by `python -m fusedact.stubs` from the registry; a test compares. Do not edit."""\n'


def functional_stub() -> str:
    """The text of functional.pyi."""
    lines = [
        _HEADER,
        "import inspect",
        "from collections.abc import Callable",
        "from typing import Any",
        "",
        "import torch",
        "from torch import Tensor",
        "",
        "from fusedact import registry",
        "from fusedact.registry import Activation, Limits",
        "from fusedact.registry import activations as activations",
        "",
        "FUNCTIONS: dict[str, Callable[..., Tensor]]",
        "",
        _function("run", inspect.signature(functional.run)),
        _function("run_epilogue", inspect.signature(functional.run_epilogue)),
        "def signature(row: Activation) -> inspect.Signature: ...",
        "def annotation(parameter: registry.Parameter) -> str: ...",
        "def legal_range(parameter: registry.Parameter) -> str: ...",
        _function("bias_act", inspect.signature(functional.bias_act)),
    ]
    lines += [_function(row.name, functional.signature(row)) for row in registry.ROWS]
    lines += ["", *(f"{alias} = {row.name}" for row in registry.ROWS for alias in row.aliases)]
    names = sorted(["activations", "bias_act", *functional.FUNCTIONS])
    lines += ["", "__all__ = [", *(f'    "{name}",' for name in names), "]"]
    return "\n".join(lines) + "\n"


def module_stub() -> str:
    """The text of nn/activation.pyi."""
    lines = [
        _HEADER,
        "import inspect",
        "from collections.abc import Callable",
        "from typing import Any, ClassVar",
        "",
        "import torch",
        "from torch import Tensor, nn",
        "",
        "from fusedact.registry import Activation, Limits, Resolved",
        "",
        "MODULES: dict[str, type[nn.Module]]",
        "",
        "class Fused:",
        "    row: ClassVar[Activation]",
        "    names: ClassVar[tuple[str, ...]]",
        "    function: ClassVar[Callable[..., Tensor]]",
        "    inplace: bool",
        "    tap: Any",
        "    def arguments(self) -> dict[str, Any]: ...",
        _function("bias_act", inspect.signature(activation.Fused.bias_act), "    "),
        "    def forward(self, input: Tensor) -> Tensor: ...",
        "",
        "def overwritable(resolved: Resolved) -> bool: ...",
        "def signature(row: Activation, made: type[nn.Module]) -> inspect.Signature: ...",
        "",
        "class Own(Fused, nn.Module):",
        "    inplace: bool",
        "",
        "class Learnable(Fused, nn.Module):",
        "    init: float",
        "    learnable: bool",
        "    num_parameters: int",
        "    inplace: bool",
        "    def reset_parameters(self) -> None: ...",
    ]
    lines.append("")
    for row in registry.ROWS:
        if row.torch_module is not None:
            lines.append(f"class {row.module}(Fused, nn.{row.module}): ...")
    for row in registry.ROWS:
        made = activation.MODULES[row.name]
        if row.torch_module is None:
            lines += ["", f"class {row.module}({made.__bases__[0].__name__}):"]
            lines += [f"    {p.name}: {functional.annotation(p)}" for p in row.parameters]
            self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
            arguments = [self, *activation.signature(row, made).parameters.values()]
            lines.append(_function("__init__", inspect.Signature(arguments, return_annotation="None"), "    "))
    names = sorted((made.__name__ for made in activation.MODULES.values()), key=lambda n: (not n.isupper(), n))
    lines += ["", "__all__ = [", *(f'    "{name}",' for name in names), "]"]
    return "\n".join(lines) + "\n"


def _function(name: str, signature: inspect.Signature, indent: str = "") -> str:
    """`def name(...) -> ...: ...`, an argument a line, with annotations as they stand in the source."""
    lines: list[str] = []
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        text = "**" * (p.kind is p.VAR_KEYWORD) + p.name
        if p.annotation is not p.empty:
            text += f": {p.annotation}"
        if p.default is not p.empty:
            text += " = " + repr(p.default).replace("'", '"')
        lines.append(text)
    arguments = "".join(f"{indent}    {line},\n" for line in lines)
    return f"{indent}def {name}(\n{arguments}{indent}) -> {signature.return_annotation}: ..."


def stubs() -> dict[Path, str]:
    """Path and text of every stub."""
    package = Path(__file__).parent
    return {package / "functional.pyi": functional_stub(), package / "nn" / "activation.pyi": module_stub()}


def main() -> int:
    """Write the stubs, or with --check compare them."""
    stale = [path for path, text in stubs().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path} is out of date: run `python -m fusedact.stubs`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(stubs()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
