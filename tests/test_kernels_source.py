"""The walls: kernels know nothing of torch, an instruction set's objects leak nothing, NEON compiles the source."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
KERNELS = sorted(CSRC.glob("cpu/kernels_*.cpp"))
CUDA = [*sorted(CSRC.glob("cuda/*.cu")), CSRC / "cuda" / "drive.cpp"]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)

pytestmark = pytest.mark.skipif(not CSRC.exists(), reason="not in the source tree")


def reached_from(file: Path) -> set[str]:
    """Every header that `file` includes, through the project's own headers."""
    seen: set[str] = set()
    waiting = [file]
    while waiting:
        here = waiting.pop()
        for name in INCLUDE.findall(here.read_text()):
            own = next((p for p in (here.parent / name, CSRC / name, CSRC / "cpu" / name) if p.exists()), None)
            if name not in seen and own is not None:
                waiting.append(own)
            seen.add(name)
    return seen


@pytest.mark.parametrize("file", [*KERNELS, *CUDA, CSRC / "activations.h", CSRC / "kernels.h"], ids=lambda p: p.name)
def test_kernels_include_no_torch(file: Path) -> None:
    foreign = {h for h in reached_from(file) if re.match(r"(torch|ATen|c10|pybind11|Python)\b", h)}
    assert not foreign, f"{file.name} reaches {foreign}"


def test_the_maths_stands_once() -> None:
    """No transcendental function of the C library outside math.h and its SIMD pack, where each has its error bound."""
    for file in [*CSRC.glob("*.cpp"), *CSRC.glob("cpu/*.cpp"), CSRC / "cpu" / "loops.h", *CSRC.glob("cuda/*")]:
        found = re.findall(r"std::(exp|expm1|log|log1p|tanh|erf|erfc|sin|cos|pow)\(", file.read_text())
        assert not found, f"{file.name} calls std::{found}"


def test_every_file_says_what_it_is_for() -> None:
    for file in [f for kind in ("h", "cpp", "cuh", "cu") for f in CSRC.rglob(f"*.{kind}")]:
        assert file.read_text().startswith(("//", "/*")), f"{file.relative_to(ROOT)} has no header comment"


def objects() -> list[Path]:
    """The kernels' object files of the build in this tree (not of `make sanitize`), of every ISA but the baseline."""
    return sorted(ROOT.glob("build/editable-*/**/kernels_avx*/**/*.o"))


def test_isa_objects_export_no_weak_symbols() -> None:
    """A weak symbol from an AVX object may be the copy that the linker keeps, and an old processor runs into it.

    Tables of constants may be weak: each copy is the same.
    """
    if not objects() or shutil.which("nm") is None:
        pytest.skip("no build folder with kernel objects (or no nm): `make build` leaves one")
    for file in objects():
        listing = subprocess.run(["nm", "-C", str(file)], capture_output=True, text=True, check=True).stdout
        weak = [line for line in listing.splitlines() if re.search(r" [WVu] (?!fusedact::cubics::\w+::row$)", line)]
        assert not weak, f"{file.name} exports weak symbols: {weak[:3]}"


@pytest.mark.parametrize("file", KERNELS, ids=lambda p: p.name)
def test_aarch64_compiles_the_same_source(file: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no cross compiler: apt install g++-aarch64-linux-gnu")
    command = [
        compiler,
        "-std=c++20",
        "-fsyntax-only",
        "-Wno-psabi",
        "-DFUSEDACT_CPU_CAPABILITY=default_",
        "-I",
        str(CSRC),
    ]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if " error: " in line)
