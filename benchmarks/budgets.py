"""What the CUDA kernels cost, read off their machine code and counted while ptxrun runs them: no GPU, no time taken.

    python benchmarks/budgets.py [activation ...] [--dtype float32] [--blocks] [--check]

A row for each kernel: registers, spills and stack for sm_80 and sm_90, the widths of its accesses, bytes moved and
instructions issued per element, and for an H100 the time to issue them over the time to move, at its peak rates: below
1 a kernel can only wait for memory. --blocks adds gated units and the epilogue, and the operators without activation:
softmax, maxout, the cells. --check exits with 1 if a budget is missed. Needs nvcc and ptxrun (tests/ptx.py).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from ptx import (
    DTYPE,
    STORAGE,
    Device,
    Gated,
    GruArgs,
    GruBackwardArgs,
    LstmArgs,
    LstmBackwardArgs,
    MaxoutArgs,
    MaxoutBackwardArgs,
    Shape,
    SoftmaxArgs,
    SoftmaxBackwardArgs,
    blocks_library,
    library,
    unavailable,
)

from fusedact import registry

ARCHITECTURES = ("sm_80", "sm_90")
ELEMENTS = 16384  # whole units of eight steps, as in large tensors
REGISTERS = 128  # two blocks of 256 threads on a multiprocessor, 64 KiB of loads under way on all

# What a PTX instruction becomes, in issue slots; all others are about one.
SLOTS = {"div.rn.f32": 10, "rcp.rn.f32": 7, "sqrt.rn.f32": 9, "div.rn.f64": 22, "rcp.rn.f64": 16, "sqrt.rn.f64": 20}

SIZES = {storage: torch.empty((), dtype=dtype).element_size() for dtype, storage in STORAGE.items()}

# Why a kernel may be limited by something other than memory. One that is, without such a reason, has missed its budget.
WIDE = "computed in float64, since its terms cancel"
DOUBLE = "float64: arithmetic is the limit by nature"
STACK = "the slow path of the machine's own sin and cos, for arguments beyond 10^5, has an array"
NEAR = "within a tenth of the time to move, which the estimate is no better than"
PHILOX = "ten rounds of Philox for each four elements"
HALF = "16 bits move in half the time, and are computed in float32 to half an ulp"
# Whose accesses are of 8 bytes, whole sectors all the same: eight elements of a cell would not fit into the registers,
# and of two pieces one result remains.
EIGHT = {("lstm_cell", 2), ("gru_cell", 2), *(("maxout", size) for size in (2, 4, 8))}


@dataclass(frozen=True)
class Budget:
    """One kernel on one activation and dtype."""

    kernel: str
    activation: str
    dtype: str
    registers: dict[str, int]
    spills: dict[str, int]
    stack: dict[str, int]
    widths: str  # of the main loop
    sectors: float  # of it, too: the bytes asked for over the bytes of the sectors touched, the worst access's
    bytes: float  # per element, counted
    least: float  # per element: each input once, each output once
    slots: float  # per element
    ratio: float  # time to issue over time to move, H100
    wide: bool  # the machine code computes in float64

    @property
    def excuse(self) -> str:
        if self.dtype == "float64" or self.kernel == "double_backward":
            return DOUBLE
        if self.wide:
            return WIDE
        if "dropout" in self.kernel:
            return PHILOX
        if "gated" in self.kernel and self.ratio < 1.1:
            return NEAR
        return HALF if self.dtype in ("bfloat16", "float16") else ""

    @property
    def faults(self) -> list[str]:
        """Which budgets are missed."""
        found = []
        for arch in ARCHITECTURES:
            if self.spills[arch]:
                found.append(f"{self.spills[arch]} bytes of spills on {arch}")
            if self.stack[arch] and self.activation not in ("sin", "cos"):
                found.append(f"{self.stack[arch]} bytes of stack on {arch}")
            # Eight elements at a time in float64 take all that a thread can have, and one block on a multiprocessor.
            allowed = 255 if self.wide and self.dtype in ("bfloat16", "float16") else REGISTERS
            if self.registers[arch] > allowed:
                found.append(f"{self.registers[arch]} registers on {arch}, allowed are {allowed}")
        if self.bytes != self.least:
            found.append(f"{self.bytes:g} bytes per element, {self.least:g} are enough")
        widths = {"8", "16"} if (self.activation, SIZES[self.dtype]) in EIGHT else {"16"}
        # Second derivatives go two by two.
        if self.kernel != "double_backward" and not set(self.widths.split()) <= widths:
            found.append(f"accesses of {self.widths} bytes in the main loop, not 16")
        # Pairs are read 32 bytes a thread, in two steps: each sector is touched twice, and moved once.
        if self.sectors < (0.5 if "pairs" in self.kernel else 1):
            found.append(f"only {self.sectors:.0%} of the sectors touched are asked for")
        if self.ratio >= 1 and not self.excuse:
            found.append(f"limited by instructions ({self.ratio:.2f} of the time to move), and no reason is given")
        return found


def budgets(only: dict[torch.dtype, tuple[str, ...]], built: tuple[Path, list[str]] | None = None) -> Iterator[Budget]:
    """The kernels of some activations per dtype: forward, backward from all that can be saved, second derivative.

    `built`: a library (ptx.library) that has these and perhaps more.
    """
    path, texts = built or library(only, units=1)
    on, machine = Device(path, texts), Machine(texts)
    for dtype, names in only.items():
        for name in names:
            row = registry.get(name)
            x = torch.randn(ELEMENTS, dtype=torch.float64).to(dtype)
            args: dict[str, Any] = {"shape": (1, 1, ELEMENTS), "params": row.resolve()[1]}
            size = x.element_size()
            make = functools.partial(_budget, machine, name, STORAGE[dtype])
            yield make("forward", on.forward(name, x, **args), 2 * size)
            for kind in row.saves:
                saved = torch.zeros(ELEMENTS // 8, dtype=torch.uint8) if kind == "mask" else x
                run = on.backward(name, x, saved, kind=kind, **args)
                needed = 1 / 8 if kind == "mask" else 0 if name == "identity" else size
                yield make(f"backward, {kind}", run, 2 * size + needed)
            yield make("double_backward", on.double_backward(name, x, x, x, **args), 5 * size)


def block_budgets(
    only: dict[torch.dtype, tuple[str, ...]], built: tuple[Path, list[str]] | None = None
) -> Iterator[Budget]:
    """The kernels of gated units and of the epilogue, likewise; `built` by ptx.blocks_library."""
    path, texts = built or blocks_library(only, units=1)
    on, machine = Device(path, texts), Machine(texts)
    shape = (16, ELEMENTS // 16, 1)
    for dtype, names in only.items():
        for name in names:
            params = registry.get(name).resolve()[1]
            x = torch.randn(ELEMENTS, dtype=torch.float64).to(dtype)
            both = torch.cat([x, x])
            size = x.element_size()
            make = functools.partial(_budget, machine, name, STORAGE[dtype])
            for way, gated in {
                "two": Gated((x, x.clone()), shape),
                "halves": Gated((both,), shape),
                "pairs": Gated((both,), shape, interleaved=True),
            }.items():
                yield make(f"gated, {way}", on.gated(name, gated, params), 3 * size)
                yield make(f"gated backward, {way}", on.gated_backward(name, x, gated, params), 5 * size)
            drawn, seed = {"dropout": (1, 0.5)}, 8 / ELEMENTS
            run = on.epilogue(name, x, (1, 1, ELEMENTS), params, residual=x.clone())
            yield make("residual", run, 3 * size)
            run = on.epilogue(name, x, (1, 1, ELEMENTS), params, residual=x.clone(), **drawn)
            yield make("dropout, residual", run, 3 * size + seed)
            run = on.epilogue_backward(name, x, x.clone(), (1, 1, ELEMENTS), params, **drawn)
            yield make("dropout backward", run, 3 * size + seed)


def operator_budgets(dtypes: Sequence[torch.dtype], built: tuple[Path, list[str]] | None = None) -> Iterator[Budget]:
    """The kernels without activation, likewise; per element of the largest tensor, or of a cell's state."""
    path, texts = built or blocks_library(dict.fromkeys(dtypes, ("identity",)), units=1)
    on, machine = Device(path, texts), Machine(texts)
    rows, wide = 32, ELEMENTS // 32
    for dtype in dtypes:
        make, number = functools.partial(_budget, machine, dtype=STORAGE[dtype]), {"dtype": DTYPE[dtype]}
        size = torch.empty((), dtype=dtype).element_size()

        def some(count: int = ELEMENTS, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randn(count, dtype=torch.float64).to(dtype)

        like, shape = ((ELEMENTS,), dtype), Shape(rows, wide, 1)
        for log in (False, True):
            name = "log_softmax" if log else "softmax"
            run = on.pass_of("softmax", SoftmaxArgs(shape=shape, log=log, **number), x=some(), y=like)
            yield make(name, kernel="forward", run=run, least=2 * size)
            args = SoftmaxBackwardArgs(shape=shape, log=log, **number)
            run = on.pass_of("softmax_backward", args, grad=some(), y=some(), grad_x=like)
            yield make(name, kernel="backward", run=run, least=3 * size)
        fewer = ELEMENTS // 2
        args = MaxoutArgs(shape=shape, pieces=2, **number)
        run = on.pass_of("maxout", args, x=some(), y=((fewer,), dtype), indices=((fewer,), torch.uint8))
        yield make("maxout", kernel="forward", run=run, least=1.5 * size + 0.5)
        args, indices = MaxoutBackwardArgs(shape=shape, pieces=2, **number), torch.zeros(fewer, dtype=torch.uint8)
        run = on.pass_of("maxout_backward", args, grad=some(fewer), indices=indices, grad_x=like)
        yield make("maxout", kernel="backward", run=run, least=1.5 * size + 0.5)
        four, three = ((4 * ELEMENTS,), dtype), ((3 * ELEMENTS,), dtype)
        cell = {"rows": rows, "hidden": wide, **number}
        run = on.pass_of("lstm", LstmArgs(**cell), gates=some(4 * ELEMENTS), c=some(), h=like, c_new=like)
        yield make("lstm_cell", kernel="forward", run=run, least=7 * size)
        given = {"grad_h": some(), "grad_c_new": some(), "gates": some(4 * ELEMENTS), "c": some()}
        run = on.pass_of("lstm_backward", LstmBackwardArgs(**cell), **given, grad_gates=four, grad_c=like)
        yield make("lstm_cell", kernel="backward", run=run, least=12 * size)
        given = {"input_gates": some(3 * ELEMENTS), "hidden_gates": some(3 * ELEMENTS), "h": some()}
        run = on.pass_of("gru", GruArgs(**cell), **given, h_new=like)
        yield make("gru_cell", kernel="forward", run=run, least=8 * size)
        grads = {"grad_input_gates": three, "grad_hidden_gates": three, "grad_h": like}
        run = on.pass_of("gru_backward", GruBackwardArgs(**cell), grad=some(), **given, **grads)
        yield make("gru_cell", kernel="backward", run=run, least=15 * size)


class Machine:
    """The machine code of PTX, assembled where it is asked for."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.assembled: dict[tuple[int, str], dict[str, Any]] = {}

    def code(self, name: str, arch: str) -> Any:
        """ptxrun's facts about the kernel of that (mangled) name."""
        (text,) = (i for i, text in enumerate(self.texts) if f".entry {name}(" in text)
        if (text, arch) not in self.assembled:
            self.assembled[text, arch] = self._assemble(text, arch)
        return self.assembled[text, arch][name]

    def _assemble(self, text: int, arch: str) -> dict[str, Any]:
        from ptxrun.sass import sass_report

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernels.ptx"
            file.write_text(self.texts[text])
            return {kernel.name: kernel for kernel in sass_report(str(file), arch=arch)}


def _budget(machine: Machine, name: str, dtype: str, kernel: str, run: Any, least: float) -> Budget:
    from ptxrun.sass import GPUS

    (launch,) = run.launches
    seen = launch.result
    codes = {arch: machine.code(launch.name, arch) for arch in ARCHITECTURES}
    moved = seen.summary()
    slots = sum(SLOTS.get(_root(op), 1) * warps for op, (_, warps) in seen.instructions().items()) * 32 / ELEMENTS
    gpu = GPUS["H100"]
    issue = slots / (gpu.sms * gpu.ghz * 4 * 32)
    # Of what moves elements: a mask's bytes are little beside them, and dropout's seed is one address for a whole warp.
    moving = (r for r in seen.traffic() if r["space"] == "global" and r["width"] > 1 and r["efficiency"] <= 1)
    main = [r for r in moving if r["bytes"] >= ELEMENTS]
    widths = sorted({row["width"] for row in main})
    return Budget(
        kernel=kernel,
        activation=name,
        dtype=dtype,
        registers={arch: code.registers for arch, code in codes.items()},
        spills={arch: (code.spill_stores or 0) + (code.spill_loads or 0) for arch, code in codes.items()},
        stack={arch: code.stack for arch, code in codes.items()},
        widths=" ".join(map(str, widths)),
        sectors=min(row["efficiency"] for row in main),
        bytes=(moved["unique_read_bytes"] + moved["unique_written_bytes"]) / ELEMENTS,
        least=least,
        slots=slots,
        ratio=issue / (least / gpu.gbs),
        wide=codes["sm_90"].main().pipes["fp64"] > 0,
    )


def _root(op: str) -> str:
    return re.sub(r"\.ftz", "", op)


def main() -> int:
    parser = argparse.ArgumentParser(description="Budgets of the CUDA kernels, without a GPU.")
    parser.add_argument("activations", nargs="*", help="names; all of them if none is given")
    parser.add_argument("--dtype", choices=[*STORAGE.values()], help="one dtype instead of four")
    parser.add_argument("--blocks", action="store_true", help="the operators around an activation, too")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a budget is missed")
    options = parser.parse_args()
    if unavailable():
        print(unavailable(), file=sys.stderr)
        return 1
    names = tuple(registry.get(n).name for n in options.activations) or tuple(registry.activations())
    only = {dtype: names for dtype, storage in STORAGE.items() if options.dtype in (None, storage)}
    head = ("activation", "dtype", "kernel", "registers", "spills", "stack", "widths", "bytes", "slots", "issue/move")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    missed = []
    rows = budgets(only)
    if options.blocks:
        rows = itertools.chain(rows, block_budgets(only), operator_budgets([*only]))
    for b in rows:
        pairs = ["/".join(str(of[arch]) for arch in ARCHITECTURES) for of in (b.registers, b.spills, b.stack)]
        ratio = f"{b.ratio:.2f}" + (f" ({b.excuse})" if b.ratio >= 1 and b.excuse else "")
        cells = (b.activation, b.dtype, b.kernel, *pairs, b.widths, f"{b.bytes:g}", f"{b.slots:.1f}", ratio)
        print("| " + " | ".join(cells) + " |")
        missed += [f"{b.activation} {b.dtype} {b.kernel}: {fault}" for fault in b.faults]
    print("\n".join(["", *missed, f"{len(missed)} budgets missed" if missed else "all budgets kept"]))
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
