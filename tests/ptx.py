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
    files = [*CUDA.glob("*.h"), *CUDA.glob("*.cuh"), *(ROOT / "csrc").glob("*.h"), ROOT / "csrc" / "registry.cpp"]
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


def library(only: dict[torch.dtype, tuple[str, ...]], units: int = 2048) -> tuple[Path, list[str]]:
    """A shared library of the launchers, and the PTX of its kernels; per storage type, the activations that it has.

    `units`: how many units of work a tensor is cut into before they get longer than one step.
    """
    from ptxrun.build import embedded_ptx

    nvcc = tool("nvcc") or "nvcc"
    ptx = ["-Xcompiler", "-fPIC", "-lineinfo", "-gencode", "arch=compute_80,code=compute_80", "-c"]

    def kernels(file: str, storage: str, names: Sequence[str]) -> Path:
        source = CUDA / f"{file}.cu"
        command = [nvcc, *FLAGS, *definitions(storage, [structs()[n] for n in names]), *ptx, str(source)]
        return _compiled(f"{file}-{storage}", command, _sources() + source.read_text())

    def host(file: Path) -> Path:
        defined = ['-DFUSEDACT_CUDA_ARCHITECTURES="8.0"', f"-DFUSEDACT_ENOUGH_UNITS={units}"]
        command = ["g++", "-std=c++20", "-O1", "-fPIC", *defined, "-c", str(file)]
        return _compiled(file.stem, command, _sources() + file.read_text())

    build = ROOT / "build" / "ptx"
    build.mkdir(parents=True, exist_ok=True)
    names = {storage: sorted(only.get(dtype, ())) or ["identity"] for dtype, storage in STORAGE.items()}
    every = sorted({name for some in names.values() for name in some})
    jobs = [functools.partial(kernels, file, s, some) for s, some in names.items() for file in ("forward", "backward")]
    jobs += [functools.partial(kernels, "double_backward", "float64", every)]
    jobs += [functools.partial(kernels, "fold", "float64", ["identity"])]
    # One process compiles, those beside it wait and find the results.
    with open(build / "lock", "w") as lock, ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = list(pool.map(lambda job: job(), jobs))
    texts = [text for o in objects for _, text in embedded_ptx(str(o))]
    objects += [host(f) for f in (CUDA / "drive.cpp", ROOT / "csrc" / "registry.cpp", HERE / "ptx_launch.cpp")]
    link = [nvcc, "-shared", "--cudart", "none", *(str(o) for o in objects)]
    return _compiled("launchers", link, "", ".so"), texts


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
        for name in ("backward_bytes", "double_backward_bytes"):
            getattr(self.lib, name).restype = ctypes.c_int64

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
