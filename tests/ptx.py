"""The CUDA kernels without a GPU: compiled to PTX, and run instruction by instruction by ptxrun, launchers included.

ptxrun is a tool of its own, on PYTHONPATH or beside the project; where it or nvcc is missing, `unavailable()` says so.
Knows how to build the launchers as a library and how the structs of csrc/kernels.h lie in memory; not what is
tested.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parent
CUDA = ROOT / "csrc" / "cuda"
STORAGE = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}
DTYPE = {dtype: i for i, dtype in enumerate(STORAGE)}  # enum DType
SAVED = {"input": 0, "output": 1, "mask": 2}  # enum Saved
EXTENT = {"none": 0, "one": 1, "channel": 2, "full": 3}  # enum Extent
RAW = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}

# The flags of CMakeLists.txt: a test compares.
FLAGS = ("-std=c++20", "--expt-relaxed-constexpr", "-fmad=false")


# ---- tools ----------------------------------------------------------------------------------------------------------


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on PATH, in CUDA_HOME, or from its PyPI package."""
    places = [Path(os.environ["CUDA_HOME"]) / "bin"] if "CUDA_HOME" in os.environ else []
    places += [p for s in sys.path for p in Path(s or ".").glob("nvidia/*/bin")]
    return shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ.get("PATH", "")]))


@functools.cache
def unavailable() -> str | None:
    """Why kernels cannot be run here, or None."""
    beside = ROOT.parent / "shared" / "ptxrun"
    if beside.is_dir() and str(beside) not in sys.path:
        sys.path.append(str(beside))
    try:
        import ptxrun.host  # noqa: F401
    except ImportError as error:
        return f"ptxrun, which runs PTX on a CPU, is neither on PYTHONPATH nor in {beside} ({error})"
    for name in ("nvcc", "cuobjdump", "nvdisasm"):
        found = tool(name)
        if found is None:
            return f"{name} is neither on PATH nor in CUDA_HOME nor installed from PyPI"
        os.environ.setdefault(name.upper(), found)  # where ptxrun looks first
    return None


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _compiled(name: str, command: Sequence[str], sources: str, suffix: str = ".o") -> Path:
    """The output of a compiler, kept in build/ptx under the hash of all that went into it."""
    key = hashlib.sha256("\0".join([*command, sources]).encode()).hexdigest()[:20]
    folder = ROOT / "build" / "ptx"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{name}-{key}{suffix}"
    if not out.exists():
        part = out.with_suffix(f".{os.getpid()}{suffix}")
        _run([*command, "-o", str(part)])
        part.replace(out)
    return out


@functools.cache
def _sources() -> str:
    """Every file that a kernel may include: what changes in them compiles all anew."""
    csrc = ROOT / "csrc"
    files = [*CUDA.glob("*.h"), *CUDA.glob("*.cuh"), *csrc.glob("*.h"), csrc / "registry.cpp"]
    files += [*csrc.glob("*/kernels.h"), *csrc.glob("*/maths.h")]
    return "".join(f.read_text() for f in sorted(files))


def definitions(storage: str, only: Sequence[str] = ()) -> list[str]:
    """-D for one storage type; of all activations, or of a few by the names of their structs."""
    found = [f"-DFUSEDACT_STORAGE={storage}", f"-DFUSEDACT_KERNELS={storage}_kernels"]
    return [*found, "-DFUSEDACT_ONLY=" + "\\,".join(only)] if only else found


@functools.cache
def structs() -> dict[str, str]:
    """The name of each activation's struct in activations.h, by the activation's own."""
    text = (ROOT / "csrc" / "activations.h").read_text()
    return {
        name: struct
        for struct, name in re.findall(r'struct (\w+)[^{]*{\s*static constexpr std::string_view name = "(\w+)"', text)
    }


Only = dict[torch.dtype, tuple[str, ...]]


def library(only: Only, units: int = 2048) -> tuple[Path, list[str]]:
    """A shared library of bias_act's launchers, and the PTX of its kernels; per storage type, its activations.

    `units`: how many units of work a tensor is cut into before they get longer than one step.
    """
    names = _names(only)
    every = sorted({name for some in names.values() for name in some})
    kernels = [(file, s, some) for s, some in names.items() for file in ("forward", "backward")]
    kernels += [("double_backward", "float64", every), ("fold", "float64", ["identity"])]
    return _linked("launchers", kernels, [CUDA / "drive.cpp", HERE / "ptx_launch.cpp"], units)


def blocks_library(only: Only, units: int = 2048) -> tuple[Path, list[str]]:
    """The same of the operators around an activation."""
    names = _names(only)
    kernels = [(file, s, some) for s, some in names.items() for file in ("gated", "epilogue")]
    kernels += [
        (file, "float64", ["identity"]) for file in ("dropout_mask", "fold", "softmax", "maxout", "cells", "statistics")
    ]
    hosts = [CUDA / "gated.cpp", CUDA / "epilogue.cpp", HERE / "ptx_launch_blocks.cpp"]
    return _linked("blocks", kernels, hosts, units)


def _names(only: Only) -> dict[str, list[str]]:
    return {storage: sorted(only.get(dtype, ())) or ["identity"] for dtype, storage in STORAGE.items()}


def _linked(
    name: str, kernels: list[tuple[str, str, list[str]]], hosts: list[Path], units: int
) -> tuple[Path, list[str]]:
    from ptxrun.build import embedded_ptx

    nvcc = tool("nvcc") or "nvcc"
    ptx = ["-Xcompiler", "-fPIC", "-lineinfo", "-gencode", "arch=compute_80,code=compute_80", "-c"]

    def device(file: str, storage: str, names: Sequence[str]) -> Path:
        source = CUDA / f"{file}.cu"
        command = [nvcc, *FLAGS, *definitions(storage, [structs()[n] for n in names]), *ptx, str(source)]
        return _compiled(f"{file}-{storage}", command, _sources() + source.read_text())

    def host(file: Path) -> Path:
        defined = [f"-DFUSEDACT_ENOUGH_UNITS={units}"]
        command = ["g++", "-std=c++20", "-O1", "-fPIC", *defined, "-c", str(file)]
        return _compiled(file.stem, command, _sources() + file.read_text())

    build = ROOT / "build" / "ptx"
    build.mkdir(parents=True, exist_ok=True)
    # One process compiles, those beside it wait and find the results.
    with open(build / "lock", "w") as lock, ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = list(pool.map(lambda kernel: device(*kernel), kernels))
    texts = [text for o in objects for _, text in embedded_ptx(str(o))]
    objects += [host(f) for f in (*hosts, ROOT / "csrc" / "registry.cpp")]
    return _compiled(name, [nvcc, "-shared", "--cudart", "none", *(str(o) for o in objects)], "", ".so"), texts


# ---- the structs of kernels.h ---------------------------------------------------------------------------------------


class Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("outer", "channels", "inner")]


class Vector(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_uint8), ("extent", ctypes.c_uint8)]


class Sum(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_uint8)]


class Scalars(ctypes.Structure):
    _fields_ = [
        ("params", ctypes.POINTER(ctypes.c_double)),
        *((name, ctypes.c_double) for name in ("gain", "clamp_min", "clamp_max")),
        ("clamped", ctypes.c_bool),
    ]


class ForwardArgs(ctypes.Structure):
    _fields_ = [
        ("shape", Shape),
        ("dtype", ctypes.c_uint8),
        ("x", ctypes.c_void_p),
        ("bias", Vector),
        ("weight", Vector),
        ("scalars", Scalars),
        ("y", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("parallel", ctypes.c_void_p),
    ]


class BackwardArgs(ctypes.Structure):
    _fields_ = [
        ("shape", Shape),
        ("dtype", ctypes.c_uint8),
        ("saved_kind", ctypes.c_uint8),
        ("grad", ctypes.c_void_p),
        ("saved", ctypes.c_void_p),
        ("bias", Vector),
        ("weight", Vector),
        ("scalars", Scalars),
        ("grad_x", ctypes.c_void_p),
        ("grad_bias", Sum),
        ("grad_weight", Sum),
        ("parallel", ctypes.c_void_p),
    ]


class DoubleBackwardArgs(ctypes.Structure):
    _fields_ = [
        ("shape", Shape),
        ("dtype", ctypes.c_uint8),
        ("saved_kind", ctypes.c_uint8),
        ("u", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("saved", ctypes.c_void_p),
        ("bias", Vector),
        ("scalars", Scalars),
        ("grad_grad", ctypes.c_void_p),
        ("grad_x", ctypes.c_void_p),
        ("grad_bias", Sum),
        ("parallel", ctypes.c_void_p),
    ]


def _args(*fields: tuple[str, Any]) -> type[ctypes.Structure]:
    return type("Args", (ctypes.Structure,), {"_fields_": [*fields, ("parallel", ctypes.c_void_p)]})


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


class Halves(ctypes.Structure):
    _fields_ = [("length", ctypes.c_int64), ("pitch", ctypes.c_int64), ("step", ctypes.c_int)]


class GatedScalars(ctypes.Structure):
    _fields_ = [
        ("params", ctypes.POINTER(ctypes.c_double)),
        *((name, ctypes.c_double) for name in ("alpha", "offset", "limit")),
        ("limited", ctypes.c_bool),
    ]


class Dropout(ctypes.Structure):
    _fields_ = [
        ("source", ctypes.c_uint8),  # enum Source: none, seed, mask
        ("seed", ctypes.c_uint64),
        ("keep", ctypes.c_int64),
        ("factor", ctypes.c_double),
        ("mask", ctypes.c_void_p),
        ("seed_at", ctypes.c_void_p),
    ]


_SHAPED = [("shape", Shape), ("dtype", ctypes.c_uint8)]
_BIASES = [("gate_bias", Vector), ("value_bias", Vector), ("scalars", GatedScalars)]
GatedForwardArgs = _args(*_SHAPED, ("halves", Halves), *_pointers("gate", "value"), *_BIASES, *_pointers("y"))
GatedBackwardArgs = _args(
    *_SHAPED,
    ("halves", Halves),
    *_pointers("grad", "gate", "value"),
    *_BIASES,
    *_pointers("grad_gate", "grad_value"),
    ("grad_gate_bias", Sum),
    ("grad_value_bias", Sum),
)
_BESIDE = [("scale", Vector), ("bias", Vector), ("weight", Vector)]
EpilogueArgs = _args(
    *_SHAPED, *_pointers("x", "residual"), *_BESIDE, ("scalars", Scalars), ("dropout", Dropout), *_pointers("y")
)
EpilogueBackwardArgs = _args(
    *_SHAPED,
    *_pointers("grad", "x"),
    *_BESIDE,
    *((name, Vector) for name in ("center", "slope", "offset")),
    ("scalars", Scalars),
    ("dropout", Dropout),
    *_pointers("grad_x"),
    ("raw", ctypes.c_bool),
    *((name, Sum) for name in ("grad_bias", "grad_scale", "grad_weight")),
)


SoftmaxArgs = _args(*_SHAPED, ("log", ctypes.c_bool), *_pointers("x"), ("bias", Vector), *_pointers("y"))
SoftmaxBackwardArgs = _args(*_SHAPED, ("log", ctypes.c_bool), *_pointers("grad", "y", "grad_x"), ("grad_bias", Sum))
_PIECES = [("shape", Shape), ("pieces", ctypes.c_int64), ("dtype", ctypes.c_uint8)]
MaxoutArgs = _args(*_PIECES, *_pointers("x"), ("bias", Vector), *_pointers("y", "indices"))
MaxoutBackwardArgs = _args(*_PIECES, *_pointers("grad", "indices", "grad_x"), ("grad_bias", Sum))
_CELLS = [("rows", ctypes.c_int64), ("hidden", ctypes.c_int64), ("dtype", ctypes.c_uint8)]
LstmArgs = _args(*_CELLS, *_pointers("gates"), ("bias", Vector), *_pointers("c", "h", "c_new"))
LstmBackwardArgs = _args(
    *_CELLS,
    *_pointers("grad_h", "grad_c_new", "gates"),
    ("bias", Vector),
    *_pointers("c", "grad_gates", "grad_c"),
    ("grad_bias", Sum),
)
_GRU = [*_pointers("input_gates", "hidden_gates"), ("input_bias", Vector), ("hidden_bias", Vector), *_pointers("h")]
GruArgs = _args(*_CELLS, *_GRU, *_pointers("h_new"))
GruBackwardArgs = _args(
    *_CELLS,
    *_pointers("grad"),
    *_GRU,
    *_pointers("grad_input_gates", "grad_hidden_gates", "grad_h"),
    ("grad_input_bias", Sum),
    ("grad_hidden_bias", Sum),
)


class Counts(ctypes.Structure):
    _fields_ = [
        ("zones", ctypes.POINTER(ctypes.c_double)),
        ("zone_count", ctypes.c_int64),
        *_pointers("sums", "histogram"),
    ]


StatisticsArgs = _args(*_SHAPED, *_pointers("x"), ("bias", Vector), *_pointers("y"), ("counts", Counts))


# ---- the device -----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a call left: tensors by name, and ptxrun's launches with their reports and traffic."""

    results: dict[str, Tensor] = field(default_factory=dict)
    launches: list[Any] = field(default_factory=list)
    unwritten: dict[str, int] = field(default_factory=dict)  # elements of a result that nobody wrote

    def __getitem__(self, name: str) -> Tensor:
        return self.results[name]

    @property
    def reports(self) -> list[str]:
        """Everything that ptxrun has to say: errors and warnings alike."""
        return [str(r) for launch in self.launches for r in (launch.result.reports if launch.result else [])]


class Device:
    """Launchers in a library, and memory that ptxrun watches."""

    def __init__(self, path: Path, ptx: list[str]) -> None:
        from ptxrun.host import HostRuntime

        self.runtime = HostRuntime(str(path), ptx)
        self.lib = self.runtime.lib
        for of in ("", "double_", "gated_", "epilogue_", "softmax_", "maxout_", "lstm_", "gru_"):
            if hasattr(self.lib, f"{of}backward_bytes"):
                getattr(self.lib, f"{of}backward_bytes").restype = ctypes.c_int64
        if hasattr(self.lib, "statistics_bytes"):
            self.lib.statistics_bytes.restype = ctypes.c_int64

    def set(self, sms: int = 108, **options: Any) -> Device:
        """How many multiprocessors there are (one makes few blocks that take many turns), and ptxrun's options."""
        runtime = type(self.runtime)
        callbacks = (ctypes.cast(c, ctypes.c_void_p) for c in runtime._cbs)
        runtime._lib.ptxrun_callbacks(*callbacks, ctypes.c_int(sms))
        self.runtime.options = dict(options, check="report")
        return self

    def forward(
        self,
        name: str,
        x: Tensor,
        shape: tuple[int, int, int],
        bias: Tensor | None = None,
        weight: Tensor | None = None,
        extent: str = "none",
        params: Sequence[float] = (),
        gain: float = 1.0,
        clamp: tuple[float, float] | None = None,
        mask: bool = False,
        inplace: bool = False,
        shift: int = 0,
    ) -> Run:
        """cuda::forward; results "y" and, if asked for, "mask". `shift`: x and y start so far off 16 bytes."""
        call = _Call(self.runtime, shift)
        args = ForwardArgs(shape=Shape(*shape), dtype=DTYPE[x.dtype], x=call.give(x))
        args.bias, args.weight = call.vector(bias, "channel"), call.vector(weight, extent, x.dtype)
        args.scalars = call.scalars(params, gain, clamp)
        args.y = args.x if inplace else call.take("y", x.shape, x.dtype)
        if inplace:
            call.taken["y"] = call.given
        if mask:
            args.mask = call.take("mask", ((x.numel() + 7) // 8,), torch.uint8, shift=0)
        self.lib.run_forward(name.encode(), ctypes.byref(args))
        return call.done()

    def backward(
        self,
        name: str,
        grad: Tensor,
        saved: Tensor,
        shape: tuple[int, int, int],
        kind: str = "input",
        bias: Tensor | None = None,
        weight: Tensor | None = None,
        extent: str = "none",
        params: Sequence[float] = (),
        gain: float = 1.0,
        clamp: tuple[float, float] | None = None,
        grad_bias: torch.dtype | None = None,
        grad_weight: torch.dtype | None = None,
        shift: int = 0,
    ) -> Run:
        """cuda::backward; results "grad_x" and, where a dtype is given, "grad_bias" and "grad_weight"."""
        call = _Call(self.runtime, shift)
        args = BackwardArgs(shape=Shape(*shape), dtype=DTYPE[grad.dtype], saved_kind=SAVED[kind])
        args.grad, args.saved = call.give(grad), call.give(saved, 0 if kind == "mask" else None)
        args.bias, args.weight = call.vector(bias, "channel"), call.vector(weight, extent, grad.dtype)
        args.scalars = call.scalars(params, gain, clamp)
        args.grad_x = call.take("grad_x", grad.shape, grad.dtype)
        if grad_bias is not None:
            args.grad_bias = call.sum("grad_bias", shape[1], grad_bias)
        if grad_weight is not None:
            args.grad_weight = call.sum("grad_weight", shape[1] if extent == "channel" else 1, grad_weight)
        room = call.workspace(self.lib.backward_bytes(name.encode(), ctypes.byref(args)))
        self.lib.run_backward(name.encode(), ctypes.byref(args), room)
        return call.done()

    def double_backward(
        self,
        name: str,
        u: Tensor,
        grad: Tensor,
        saved: Tensor,
        shape: tuple[int, int, int],
        kind: str = "input",
        bias: Tensor | None = None,
        params: Sequence[float] = (),
        gain: float = 1.0,
        clamp: tuple[float, float] | None = None,
        grad_bias: torch.dtype | None = None,
        shift: int = 0,
    ) -> Run:
        """cuda::double_backward; results "grad_grad", "grad_x" and, where a dtype is given, "grad_bias"."""
        call = _Call(self.runtime, shift)
        args = DoubleBackwardArgs(shape=Shape(*shape), dtype=DTYPE[grad.dtype], saved_kind=SAVED[kind])
        args.u, args.grad, args.saved = call.give(u), call.give(grad), call.give(saved)
        args.bias, args.scalars = call.vector(bias, "channel"), call.scalars(params, gain, clamp)
        args.grad_grad = call.take("grad_grad", grad.shape, grad.dtype)
        args.grad_x = call.take("grad_x", grad.shape, grad.dtype)
        if grad_bias is not None:
            args.grad_bias = call.sum("grad_bias", shape[1], grad_bias)
        room = call.workspace(self.lib.double_backward_bytes(name.encode(), ctypes.byref(args)))
        self.lib.run_double_backward(name.encode(), ctypes.byref(args), room)
        return call.done()

    def gated(
        self,
        name: str,
        x: Gated,
        params: Sequence[float] = (),
        bias: tuple[Tensor, Tensor] | None = None,
        alpha: float = 1.0,
        offset: float = 0.0,
        limit: float | None = None,
        shift: int = 0,
    ) -> Run:
        """cuda::gated_forward; result "y", in the order of memory."""
        call = _Call(self.runtime, shift)
        args = GatedForwardArgs(shape=Shape(*x.shape), dtype=DTYPE[x.tensors[0].dtype], halves=x.halves)
        args.gate, args.value = x.pointers([call.give(t) for t in x.tensors])
        if bias is not None:
            args.gate_bias, args.value_bias = (call.vector(b, "channel") for b in bias)
        args.scalars = call.gated_scalars(params, alpha, offset, limit)
        args.y = call.take("y", (math.prod(x.shape),), x.tensors[0].dtype)
        self.lib.run_gated(name.encode(), ctypes.byref(args))
        return call.done()

    def gated_backward(
        self,
        name: str,
        grad: Tensor,
        x: Gated,
        params: Sequence[float] = (),
        bias: tuple[Tensor, Tensor] | None = None,
        alpha: float = 1.0,
        offset: float = 0.0,
        limit: float | None = None,
        sums: torch.dtype | None = None,
        shift: int = 0,
    ) -> Run:
        """cuda::gated_backward; results "grad_0" (and "grad_1" of two tensors); "gate_sum", "value_sum" on demand."""
        call = _Call(self.runtime, shift)
        args = GatedBackwardArgs(shape=Shape(*x.shape), dtype=DTYPE[grad.dtype], halves=x.halves)
        args.grad = call.give(grad)
        args.gate, args.value = x.pointers([call.give(t) for t in x.tensors])
        if bias is not None:
            args.gate_bias, args.value_bias = (call.vector(b, "channel") for b in bias)
        args.scalars = call.gated_scalars(params, alpha, offset, limit)
        grads = [call.take(f"grad_{i}", t.shape, grad.dtype) for i, t in enumerate(x.tensors)]
        args.grad_gate, args.grad_value = x.pointers(grads)
        if sums is not None:
            args.grad_gate_bias = call.sum("gate_sum", x.shape[1], sums)
            args.grad_value_bias = call.sum("value_sum", x.shape[1], sums)
        room = call.workspace(self.lib.gated_backward_bytes(name.encode(), ctypes.byref(args)))
        self.lib.run_gated_backward(name.encode(), ctypes.byref(args), room)
        return call.done()

    def epilogue(
        self,
        name: str,
        x: Tensor,
        shape: tuple[int, int, int],
        params: Sequence[float] = (),
        bias: Tensor | None = None,
        scale: Tensor | None = None,
        residual: Tensor | None = None,
        weight: Tensor | None = None,
        extent: str = "none",
        dropout: tuple[int, float] | Tensor | None = None,
        gain: float = 1.0,
        clamp: tuple[float, float] | None = None,
        shift: int = 0,
    ) -> Run:
        """cuda::epilogue; result "y". `dropout`: (seed, p), or the mask of factors."""
        call = _Call(self.runtime, shift)
        args = EpilogueArgs(shape=Shape(*shape), dtype=DTYPE[x.dtype])
        args.x, args.residual = call.give(x), None if residual is None else call.give(residual)
        args.scale, args.bias = call.vector(scale, "channel"), call.vector(bias, "channel")
        args.weight, args.scalars = call.vector(weight, extent), call.scalars(params, gain, clamp)
        args.dropout = call.dropout(dropout)
        args.y = call.take("y", x.shape, x.dtype)
        self.lib.run_epilogue(name.encode(), ctypes.byref(args))
        return call.done()

    def epilogue_backward(
        self,
        name: str,
        grad: Tensor,
        x: Tensor | None,
        shape: tuple[int, int, int],
        params: Sequence[float] = (),
        bias: Tensor | None = None,
        scale: Tensor | None = None,
        weight: Tensor | None = None,
        extent: str = "none",
        dropout: tuple[int, float] | Tensor | None = None,
        gain: float = 1.0,
        clamp: tuple[float, float] | None = None,
        sums: dict[str, torch.dtype] | None = None,
        shift: int = 0,
    ) -> Run:
        """cuda::epilogue_backward; results "grad_x" and, of `sums`, "grad_bias", "grad_scale" and "grad_weight"."""
        call = _Call(self.runtime, shift)
        args = EpilogueBackwardArgs(shape=Shape(*shape), dtype=DTYPE[grad.dtype])
        args.grad, args.x = call.give(grad), None if x is None else call.give(x)
        args.scale, args.bias = call.vector(scale, "channel"), call.vector(bias, "channel")
        args.weight, args.scalars = call.vector(weight, extent), call.scalars(params, gain, clamp)
        args.dropout = call.dropout(dropout)
        args.grad_x = call.take("grad_x", grad.shape, grad.dtype)
        for which, dtype in (sums or {}).items():
            one = which == "grad_weight" and extent != "channel"
            setattr(args, which, call.sum(which, 1 if one else shape[1], dtype))
        room = call.workspace(self.lib.epilogue_backward_bytes(name.encode(), ctypes.byref(args)))
        self.lib.run_epilogue_backward(name.encode(), ctypes.byref(args), room)
        return call.done()

    def dropout_mask(self, seed: int, p: float, count: int, dtype: torch.dtype, shift: int = 0) -> Run:
        """cuda::dropout_mask; result "mask"."""
        call = _Call(self.runtime, shift)
        dropout = call.dropout((seed, p))
        mask = call.take("mask", (count,), dtype)
        self.lib.run_dropout_mask(ctypes.byref(dropout), DTYPE[dtype], ctypes.c_void_p(mask), ctypes.c_int64(count))
        return call.done()

    def statistics(
        self,
        x: Tensor | None,
        y: Tensor | None,
        shape: tuple[int, int, int],
        sums: Tensor,
        histogram: Tensor | None = None,
        bias: Tensor | None = None,
        zones: Sequence[float] = (),
        shift: int = 0,
    ) -> Run:
        """cuda::statistics; results "sums" and, if given, "histogram", with what has been counted added."""
        call = _Call(self.runtime, shift)
        args = StatisticsArgs(shape=Shape(*shape), dtype=DTYPE[(y if x is None else x).dtype])
        args.x, args.y = (None if t is None else call.give(t) for t in (x, y))
        args.bias = call.vector(bias, "channel")
        args.counts.zones = call.scalars(zones, 1.0, None).params
        args.counts.zone_count = len(zones) // 2
        for name, into in (("sums", sums), ("histogram", histogram)):
            if into is not None:
                setattr(args.counts, name, call.give(into, 0))
                call.taken[name] = call.given
        room = call.workspace(self.lib.statistics_bytes(ctypes.byref(args)))
        self.lib.run_statistics(ctypes.byref(args), room)
        return call.done()

    def pass_of(self, name: str, args: Any, shift: int = 0, **tensors: Any) -> Run:
        """run_<name> of a family without activations. What `args` lacks: tensors that go in; (sizes, dtype) of results;
        a Vector's as ("vector", tensor), a Sum's as ("sum", count, dtype)."""
        call = _Call(self.runtime, shift)
        for field_name, given in tensors.items():
            if isinstance(given, Tensor):
                setattr(args, field_name, call.give(given, 0 if given.dtype == torch.uint8 else None))
            elif given is None:
                continue
            elif given[0] == "vector":
                setattr(args, field_name, call.vector(given[1], "channel"))
            elif given[0] == "sum":
                setattr(args, field_name, call.sum(field_name, *given[1:]))
            else:
                sizes, dtype = given
                setattr(args, field_name, call.take(field_name, sizes, dtype, 0 if dtype == torch.uint8 else None))
        if name.endswith("_backward"):
            room = call.workspace(getattr(self.lib, f"{name}_bytes")(ctypes.byref(args)))
            getattr(self.lib, f"run_{name}")(ctypes.byref(args), room)
        else:
            getattr(self.lib, f"run_{name}")(ctypes.byref(args))
        return call.done()


@dataclass(frozen=True)
class Gated:
    """Gate and value in the three ways in which they may lie, and their shape. `second`: the gate is the second."""

    tensors: tuple[Tensor, ...]  # two, or one that holds both, in the order of memory
    shape: tuple[int, int, int]  # of the result
    interleaved: bool = False
    second: bool = False

    @property
    def halves(self) -> Halves:
        outer, channels, inner = self.shape
        if len(self.tensors) == 2:
            return Halves(outer * channels * inner, 0, 1)
        if not self.interleaved:
            return Halves(channels * inner, 2 * channels * inner, 1)
        return Halves(inner, 2 * inner, 1) if inner > 1 else Halves(outer * channels, 0, 2)

    def pointers(self, places: list[int]) -> tuple[int, int]:
        halves = self.halves
        between = 1 if halves.step == 2 else halves.length
        both = (*places, places[0] + between * self.tensors[0].element_size())[:2]
        return (both[1], both[0]) if self.second else (both[0], both[1])


class _Call:
    """The memory of one call."""

    def __init__(self, runtime: Any, shift: int) -> None:
        self.runtime, self.shift = runtime, shift
        self.taken: dict[str, Any] = {}
        self.alive: list[Any] = []
        self.given: Any = None
        type(runtime)._current = runtime
        runtime.memory.clear()
        runtime.launches.clear()

    def _place(
        self, shape: Sequence[int], dtype: torch.dtype, shift: int | None
    ) -> tuple[Any, int, Sequence[int], torch.dtype]:
        size = torch.empty((), dtype=dtype).element_size()
        skip = size * (self.shift if shift is None else shift)
        return self.runtime.empty((skip + size * math.prod(shape),), "u1"), skip, shape, dtype

    def give(self, tensor: Tensor, shift: int | None = None) -> int:
        memory, skip, *_ = self.given = self._place(tensor.shape, tensor.dtype, shift)
        raw = tensor.contiguous().view(RAW.get(tensor.dtype, tensor.dtype)).numpy()
        memory.bytes[skip:] = raw.reshape(-1).view("u1")
        memory.init[skip:] = True
        return int(memory.base + skip)

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, shift: int | None = None) -> int:
        self.taken[name] = place = self._place(shape, dtype, shift)
        return int(place[0].base + place[1])

    def vector(self, tensor: Tensor | None, extent: str, x: torch.dtype | None = None) -> Vector:
        if tensor is None:
            return Vector(None, 0, EXTENT["none"])
        return Vector(self.give(tensor, None if extent == "full" else 0), DTYPE[tensor.dtype], EXTENT[extent])

    def sum(self, name: str, count: int, dtype: torch.dtype) -> Sum:
        return Sum(self.take(name, (count,), dtype, 0), DTYPE[dtype])

    def scalars(self, params: Sequence[float], gain: float, clamp: tuple[float, float] | None) -> Scalars:
        values = (ctypes.c_double * max(1, len(params)))(*params)
        self.alive.append(values)
        low, high = clamp or (0.0, 0.0)
        return Scalars(ctypes.cast(values, ctypes.POINTER(ctypes.c_double)), gain, low, high, clamp is not None)

    def gated_scalars(self, params: Sequence[float], alpha: float, offset: float, limit: float | None) -> GatedScalars:
        values = self.scalars(params, 1.0, None).params
        return GatedScalars(values, alpha, offset, limit or 0.0, limit is not None)

    def dropout(self, given: tuple[int, float] | Tensor | None) -> Dropout:
        """As dropout_of in epilogue/kernels.h; the seed lies in the device's memory."""
        if given is None:
            return Dropout()
        if isinstance(given, Tensor):
            return Dropout(source=2, mask=self.give(given))
        seed, p = given
        kept = int((1 - p) * 2.0**32 + 0.5)
        at = self.give(torch.tensor([seed]), 0)
        return Dropout(source=1, keep=kept - 2**31, factor=2.0**32 / kept if kept else 0.0, seed_at=at)

    def workspace(self, count: int) -> ctypes.c_void_p | None:
        return self.runtime.empty((count,), "u1").ptr if count else None

    def done(self) -> Run:
        run = Run(launches=list(self.runtime.launches))
        for launch in run.launches:
            if launch.error is not None:
                raise launch.error
        for name, (memory, skip, shape, dtype) in self.taken.items():
            raw = torch.from_numpy(memory.bytes[skip:].copy()).reshape(-1)
            if math.prod(shape) == 0:
                continue
            run.results[name] = raw.view(RAW.get(dtype, dtype)).view(dtype).reshape(shape)
            size = max(1, run.results[name].element_size())
            run.unwritten[name] = int((~memory.init[skip:].reshape(-1, size).all(axis=1)).sum())
        return run
