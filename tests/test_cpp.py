"""C++ programs: the example builds against the installed package and libtorch, and agrees with torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedact

EXAMPLE = Path(__file__).parent.parent / "examples" / "cpp"

pytestmark = [
    pytest.mark.slow(reason="compiles against libtorch"),
    pytest.mark.skipif(not EXAMPLE.exists(), reason="not in the source tree"),
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("c++") is None, reason="needs cmake and a compiler"
    ),
]


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_builds_and_agrees(tmp_path: Path) -> None:
    folder = run(sys.executable, "-m", "fusedact", "cmake-dir").strip()
    assert (Path(folder) / "fusedactConfig.cmake").exists()
    run(
        *("cmake", "-S", EXAMPLE, "-B", tmp_path, f"-Dfusedact_DIR={folder}", "-DCMAKE_BUILD_TYPE=Release"),
        f"-DTorch_DIR={torch.utils.cmake_prefix_path}/Torch",
    )
    run("cmake", "--build", tmp_path)
    said = run(tmp_path / "example")
    assert "all equal" in said
    assert "DIFFERENT" not in said
    header = (Path(fusedact.__file__).parent / "include" / "fusedact" / "fusedact.h").read_text()
    program = (EXAMPLE / "main.cpp").read_text()
    for operator in ("bias_act", "bias_act_epilogue", "gated_act", "softmax", "log_softmax", "maxout", "linear_act",
                     "lstm_cell_act", "gru_cell_act", "batch_norm_act"):  # fmt: skip
        assert f" {operator}(" in header, "not in the public header"
        assert f"fusedact::{operator}(" in program, "not in the example"


def test_without_torch_it_says_what_must_come_first(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(p LANGUAGES NONE)\nfind_package(fusedact REQUIRED)\n"
    )
    done = subprocess.run(
        [
            "cmake",
            "-B",
            str(tmp_path / "b"),
            "-S",
            str(tmp_path),
            f"-Dfusedact_DIR={Path(fusedact.__file__).parent}/cmake",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "find_package(Torch REQUIRED) must come first" in done.stderr
