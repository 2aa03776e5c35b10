"""The command line: `python -m fusedact info | list | accuracy | plot | lab | bench | fuse | demo | cmake-dir`.

Turns the registry, the extension's facts and measurements into tables, JSON or Markdown, and hands the rest on. The
only file that imports typer, apart from the demo and the benchmark.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import fusedact
from fusedact import _C, _build_info, demo, functional, gallery, lab, memory, proof, registry, testing
from fusedact.bench import command
from fusedact.registry import Activation

app = typer.Typer(
    help="fusedact: act(x + bias) in one pass over memory, forward and backward.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
console = Console()
if not console.is_terminal:  # a pipe or a file has no width of its own
    console = Console(width=140)


@app.command()
def info(as_json: Json = False) -> None:
    """Say what this build is: versions, instruction set, CUDA, threads, memory settings."""
    facts = {
        "fusedact": fusedact.__version__,
        "built for torch": _build_info.torch,
        "installed torch": str(torch.__version__),
        "CUDA": _build_info.cuda or "no: this build computes on the CPU",
        **_cuda_facts(),
        "instruction set": _C.capability(),
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "FUSEDACT_CPU_CAPABILITY": os.environ.get("FUSEDACT_CPU_CAPABILITY", "not set"),
        "threads": torch.get_num_threads(),
        "compiler": _build_info.compiler,
        "Python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "activations": len(registry.ROWS),
    }
    settings = asdict(memory.stats())
    if as_json:
        print(json.dumps({**facts, "memory": settings}, indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    for name, value in settings.items():
        shown = f"{value / 2**20:,.0f} MiB" if name.endswith("_bytes") else str(value)
        table.add_row("memory: " + name.removesuffix("_bytes"), shown)
    console.print(table)


@app.command("cmake-dir")
def cmake_dir() -> None:
    """Print the folder of fusedactConfig.cmake: cmake -Dfusedact_DIR=$(python -m fusedact cmake-dir)."""
    print(Path(fusedact.__file__).parent / "cmake")


def _cuda_facts() -> dict[str, Any]:
    facts = _C.cuda()
    if facts is None:
        return {}
    found = torch.cuda.device_count()
    return {
        "CUDA kernels": f"{facts['kernels']}, compiled for {facts['architectures']}",
        "CUDA devices": ", ".join(torch.cuda.get_device_name(i) for i in range(found)) or "none found",
    }


def _parameters(row: Activation) -> str:
    return ", ".join(f"{p.name}={p.default!r}" for p in row.parameters)


def _facts(row: Activation) -> dict[str, Any]:
    return {
        "name": row.name,
        "aliases": list(row.aliases),
        "formula": row.formula,
        "parameters": {p.name: p.default for p in row.parameters},
        "module": "fusedact.nn." + row.module,
        "torch module": f"torch.nn.{row.module}" if row.torch_module else None,
        "torch function": row.replaces,
        "backward can read": list(row.saves),
        "source": row.source,
    }


@app.command("list")
def list_(
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/activations.md.")] = False,
) -> None:
    """List the activations: names, formulas, parameters, and what backward can read."""
    if as_json:
        print(json.dumps([_facts(row) for row in registry.ROWS], indent=2))
    elif markdown:
        print(markdown_page(), end="")
    else:
        table = Table("name", "f(x)", "parameters", "backward can read", title=f"{len(registry.ROWS)} activations")
        for row in registry.ROWS:
            names = row.name + (f" ({', '.join(row.aliases)})" if row.aliases else "")
            table.add_row(names, escape(row.formula), escape(_parameters(row)), ", ".join(row.saves))
        console.print(table)


def markdown_page() -> str:
    """The text of docs/activations.md."""
    lines = [
        "# Activations",
        "",
        "Made by `python -m fusedact list --markdown` from the registry; a test compares. Each row is a function",
        "`fusedact.<name>(input, bias=None, ...)`, a name for `activation=`, and a class of `fusedact.nn`. What",
        "replaces a function or class of torch has its arguments and its gradient at the kinks.",
        "",
        "| name (aliases) | f(x) | parameters | class | replaces | backward can read | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in registry.ROWS:
        aliases = f" ({', '.join(row.aliases)})" if row.aliases else ""
        replaces = row.replaces or (f"torch.nn.{row.module}" if row.torch_module else "")
        parameters = f"`{_parameters(row)}`" if row.parameters else ""
        cells = [row.name + aliases, f"`{row.formula}`", parameters, row.module, f"`{replaces}`" * bool(replaces)]
        lines.append("| " + " | ".join([*cells, ", ".join(row.saves), row.source]) + " |")
    return "\n".join(lines) + "\n"


DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@app.command()
def accuracy(
    names: Annotated[list[str] | None, typer.Argument(help="Activations; all of them if none is named.")] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}, or all.")] = "float32",
    stride: Annotated[int, typer.Option(min=1, help="Test every n-th float32; 4099 reaches each exponent.")] = 4099,
    full: Annotated[bool, typer.Option("--full", help="Test every float32 there is; hours for all names.")] = False,
    save: Annotated[str, typer.Option(help="What backward reads: auto, input, output or mask.")] = "input",
    as_json: Json = False,
    proved: Annotated[
        Path | None, typer.Option("--proof", help="Measure nothing: show what proof_sweep wrote into this file.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="With --proof: print the page docs/accuracy.md.")
    ] = False,
) -> None:
    """Measure the largest errors of value, first and second derivative, beside PyTorch's.

    Errors are in ulp of the dtype against float64 (for float64: against mpmath, a few hundred points); all finite
    float16 and bfloat16 inputs are tested. Derivatives within 0.1 of one of their roots have an absolute bound
    instead. Exits with 1 if a bound of the accuracy contract is missed.

    With --proof, the file is what tests/native's sweep over every float printed; PyTorch's errors are added to it.
    """
    if proved is not None:
        _proved(proved, names, markdown)
        return
    try:
        rows = [registry.get(name) for name in names] if names else list(registry.ROWS)
        dtypes = list(DTYPES.values()) if dtype == "all" else [DTYPES[dtype]]
    except (ValueError, KeyError) as error:
        message = f"dtype must be one of {', '.join(DTYPES)} or all" if isinstance(error, KeyError) else str(error)
        raise typer.BadParameter(message) from None
    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for wanted in dtypes:
            step = 1 if full or wanted != torch.float32 else stride
            for row in rows:
                results += _measured(row, wanted, step, save, progress)
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        _print_accuracy(results)
    raise typer.Exit(0 if all(r["kept"] for r in results) else 1)


def _proved(path: Path, names: list[str] | None, markdown: bool) -> None:
    """The lines of a sweep as a page or a table; what PyTorch's errors are is kept in the file."""
    try:
        lines = proof.read(path)
        wanted = {registry.get(name).name for name in names} if names else {line.activation for line in lines}
    except (OSError, ValueError, TypeError) as error:
        raise typer.BadParameter(f"--proof {path}: {error}") from None
    if all(line.torch_ulp is None for line in lines):
        proof.add_torch(lines)
        proof.write(lines, path)
    if markdown:
        print(proof.markdown(lines), end="")
        return
    table = Table(title="every float, or what a sweep was told: errors in ulp, fusedact's and PyTorch's")
    for heading in ("activation", "dtype", "order", "step"):
        table.add_column(heading)
    for heading in ("max", "at", "mean", "subnormal", "near roots", "bound", "torch max", "mean"):
        table.add_column(heading, justify="right")
    lines = [line for line in lines if line.activation in wanted]
    for line in lines:
        shown = proof.short(line.ulp) if line.kept else f"[red]{proof.short(line.ulp)}[/]"
        numbers = (line.mean, line.subnormal, line.near_root, line.bound, line.torch_ulp, line.torch_mean)
        cells = (line.activation, line.dtype, line.order, str(line.stride or "sample"), shown, f"{line.at:.9g}")
        table.add_row(*cells, *map(proof.short, numbers))
    console.print(table)
    missed = sum(not line.kept for line in lines)
    console.print(f"{missed} of {len(lines)} bounds missed" if missed else f"all {len(lines)} bounds kept")
    raise typer.Exit(1 if missed else 0)


def _measured(row: Activation, dtype: torch.dtype, step: int, save: str, progress: Progress) -> list[dict[str, Any]]:
    """One result for each of value, first and second derivative."""
    total = 1 if dtype == torch.float64 else (1 << torch.finfo(dtype).bits) // step
    task = progress.add_task(f"{row.name} {str(dtype).removeprefix('torch.')}", total=total)

    def pieces() -> Iterator[Tensor]:
        for piece in [testing.some()] if dtype == torch.float64 else testing.every(dtype, step):
            yield piece
            progress.advance(task, piece.numel())

    ours = testing.measure(row, lambda x: functional.bias_act(x, None, row.name, save=save), pieces())
    theirs = proof.torchs(row, dtype, max(step, 4099))
    progress.remove_task(task)
    bound = row.bound(dtype)
    results = []
    for order, worst in zip(testing.ORDERS, ours, strict=True):
        other = theirs.get(order)
        limit = getattr(bound, order)
        results.append(
            {
                "activation": row.name,
                "dtype": str(dtype).removeprefix("torch."),
                "order": order,
                "ulp": worst.ulp,
                "at": worst.x,
                "absolute near roots": worst.near_root,
                "bound": limit,
                "bound near roots": bound.near_root,
                "kept": worst.count > 0 and worst.ulp <= limit and worst.near_root <= bound.near_root,
                "points": worst.count,
                "torch ulp": other.ulp if other else None,
                "torch absolute near roots": other.near_root if other else None,
            }
        )
    return results


def _print_accuracy(results: list[dict[str, Any]]) -> None:
    table = Table(title="largest errors in ulp, fusedact's and PyTorch's; near a derivative's root: absolute")
    for heading in ("activation", "dtype"):
        table.add_column(heading)
    for heading in ("f", "torch", "f'", "torch", "f''", "torch", "near roots", "torch"):
        table.add_column(heading, justify="right")
    for three in zip(*[iter(results)] * len(testing.ORDERS), strict=True):
        cells = []
        for r in three:
            shown = proof.short(r["ulp"])
            cells += [shown if r["kept"] else f"[red]{shown}[/]", proof.short(r["torch ulp"])]
        for who in ("absolute near roots", "torch absolute near roots"):
            cells.append(proof.short(max((r[who] for r in three if r[who] is not None), default=None)))
        table.add_row(three[0]["activation"], three[0]["dtype"], *cells)
    console.print(table)
    missed = [r for r in results if not r["kept"]]
    for r in missed:
        console.print(
            f"{r['activation']} {r['dtype']} {r['order']}: {proof.short(r['ulp'])} ulp at x = {r['at']!r}, allowed are "
            f"{r['bound']:g}; near roots {r['absolute near roots']:.1e}, allowed are {r['bound near roots']:.0e}"
        )
    console.print(f"{len(missed)} of {len(results)} bounds missed" if missed else f"all {len(results)} bounds kept")


@app.command()
def plot(
    names: Annotated[list[str] | None, typer.Argument(help="Activations; all of them if none is named.")] = None,
    output: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("fusedact-plots"),
    markdown: Annotated[bool, typer.Option("--markdown", help="Write a page, index.md, with them, too.")] = False,
) -> None:
    """Draw activations with first and second derivative, kinks, saturation zones, and the errors in ulp."""
    try:
        rows = [registry.get(name) for name in names] if names else list(registry.ROWS)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    pages = ["# Gallery", "", "Made by `python -m fusedact plot --markdown`.", ""]
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            for row in progress.track(rows, description="drawing"):
                errors = [gallery.measure(row, dtype) for dtype in testing.DTYPES]
                picture = gallery.save(row, output / f"{row.name}.png", errors)
                pages.append(gallery.markdown(row, picture.name, errors))
    except ImportError as error:
        sys.exit(f"Plots need matplotlib and mpmath ({error}). Install them: pip install 'fusedact[lab]'")
    except OSError as error:
        sys.exit(f"plot: {error}")
    if markdown:
        (output / "index.md").write_text("\n".join(pages))
    console.print(f"{len(rows)} pictures in {output}" if len(rows) > 1 else str(picture), markup=False, highlight=False)


@app.command()
def fuse(
    model: Annotated[
        str, typer.Argument(help="What makes the model, called without arguments: package.module:factory.")
    ],
    dropout: Annotated[bool, typer.Option("--dropout", help="Fuse dropout + residual, too.")] = False,
    as_json: Json = False,
) -> None:
    """Say what fusedact.fuse would do to a model: what it fuses, what it leaves, and why."""
    module, _, name = model.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), name)()
        _, report = fusedact.fuse(made, inplace=True, dropout=dropout, report=True)
    except (ImportError, AttributeError, TypeError) as error:
        raise typer.BadParameter(f"{model!r} makes no model ({error}); give package.module:factory") from None
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        console.print(report)


@app.command("lab")
def lab_(
    name: Annotated[str | None, typer.Argument(help="An experiment (--list names them), or all.")] = None,
    as_list: Annotated[bool, typer.Option("--list", help="Say what each experiment asks, and run none.")] = False,
    output: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path("fusedact-lab"),
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write a page beside each picture, too.")] = False,
    data: Annotated[Path | None, typer.Option(help="lenet: the folder of CIFAR-10, instead of the digits.")] = None,
    function: Annotated[
        str | None, typer.Option(help="goodness: a function of your own to judge, as package.module:function.")
    ] = None,
) -> None:
    """Run small experiments that show what activations do: a table, a picture, and what follows from the numbers."""
    if as_list:
        table = Table("experiment", "question")
        for each in lab.EXPERIMENTS:
            table.add_row(each, escape(lab.describe(each)))
        console.print(table)
        return
    if name is None:
        raise typer.BadParameter(f"name an experiment, or all: {', '.join(lab.EXPERIMENTS)}")
    try:
        lab.describe("collapse" if name == "all" else name)
        if data is not None and name != "lenet":
            raise ValueError("--data belongs to lenet")
        if function is not None and name != "goodness":
            raise ValueError("--function belongs to goodness")
        options: dict[str, Any] = {"data": data} if data else {"function": _imported(function)} if function else {}
    except (ValueError, ImportError) as error:
        raise typer.BadParameter(str(error)) from None
    for each in lab.EXPERIMENTS if name == "all" else (name,):
        _experiment(each, output, seed, markdown, options)


def _imported(path: str) -> Callable[[Tensor], Tensor]:
    """The function at `package.module:function`; the working directory counts, as for `python -m`."""
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"--function must be package.module:function, but got {path!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    found = getattr(importlib.import_module(module), attribute, None)
    if not callable(found):
        raise ValueError(f"{module} has no function {attribute}")
    return found  # type: ignore[no-any-return]


def _experiment(name: str, output: Path, seed: int, markdown: bool, options: dict[str, Any]) -> None:
    begin = time.perf_counter()
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress, lab.shown_on(progress):
            report = lab.run(name, seed, **options)
        picture = report.save(output / f"{name}.png")
    except ImportError as error:
        sys.exit(f"The lab needs scikit-learn and matplotlib ({error}). Install them: pip install 'fusedact[lab]'")
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"lab {name}: {error}")
    if markdown:
        page = f"# {name}\n\n{lab.describe(name)}\n\n{report.markdown(picture.name)}"
        (output / f"{name}.md").write_text(page)
    console.print(report.table())
    console.print(report.conclusion, markup=False, highlight=False)
    console.print(f"{picture}, {time.perf_counter() - begin:.1f} s", style="dim", markup=False, highlight=False)


app.command("bench")(command.main)
app.command("demo")(demo.main)
