"""Adding an activation touches two places: CONTRIBUTING.md's example, applied to a copy of the sources, and built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def example() -> tuple[str, str]:
    """The struct and the row, from the fenced blocks under "Adding an activation"."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("\n## Adding an activation\n", 1)[1].split("\n## ", 1)[0]
    cpp, python = (re.search(rf"```{tag}\n(.*?)```", section, re.S) for tag in ("cpp", "python"))
    assert None not in (cpp, python), (
        "CONTRIBUTING.md needs a ```cpp and a ```python block under 'Adding an activation'"
    )
    return cpp[1], python[1]


def insert(tree: Path, struct: str, row: str) -> str:
    """Both insertions, and nothing else; the new name."""
    name = re.search(r"struct (\w+)", struct)[1]
    header = tree / "csrc" / "activations.h"
    text = header.read_text()
    body = re.sub(r"\n// At the end of AllActivations:.*", "", struct)
    text, count = re.subn(r"\n// -+ the registry of the C\+\+ side", lambda m: "\n" + body + m[0], text)
    assert count == 1
    text, count = re.subn(r"(using AllActivations = TypeList<[^>]*)>;", rf"\1, {name}>;", text)
    assert count == 1
    header.write_text(text)
    registry = tree / "fusedact" / "registry.py"
    text, count = re.subn(r"\n\)\n\n_BY_NAME", lambda m: "\n" + row.rstrip() + m[0], registry.read_text())
    assert count == 1
    registry.write_text(text)
    return re.search(r'name="(\w+)"', row)[1]


def changed(tree: Path) -> set[str]:
    """Files that differ from the originals."""
    differing = set()
    for folder in ("csrc", "fusedact"):
        command = ["diff", "-rq", "-x", "__pycache__", str(ROOT / folder), str(tree / folder)]
        listing = subprocess.run(command, capture_output=True, text=True).stdout
        differing |= set(re.findall(rf" and {re.escape(str(tree))}/(\S+) differ", listing))
    return differing


CHECK = """
import torch, mpmath, fusedact
from fusedact import registry, stubs, cli
row = registry.get(NAME)
f = getattr(fusedact, NAME)
params = {p.name: p.default for p in row.parameters}
x = torch.linspace(-3, 3, 101, dtype=torch.float64, requires_grad=True)
bias = torch.linspace(-1, 1, 101, dtype=torch.float64, requires_grad=True)
y = f(x, bias)
space = {n: getattr(mpmath, n) for n in ("exp", "expm1", "log1p", "erfc", "sqrt", "tanh", "cos", "sin")}
formula = lambda v: eval(row.formula, {**space, **params, "x": mpmath.mpf(v)})
v = (x + bias).tolist()
wanted = torch.tensor([float(formula(p)) for p in v], dtype=torch.float64)
slopes = torch.tensor([float(mpmath.diff(lambda t: formula(t), p)) for p in v], dtype=torch.float64)
torch.testing.assert_close(y.detach(), wanted, rtol=1e-14, atol=1e-15)
for g in torch.autograd.grad(y.sum(), [x, bias]):
    torch.testing.assert_close(g, slopes, rtol=1e-13, atol=1e-14)
assert torch.autograd.gradgradcheck(f, (x[:8].detach().requires_grad_(), None))
assert NAME in fusedact.activations() and issubclass(getattr(fusedact.nn, row.module), torch.nn.Module)
getattr(fusedact.nn, row.module)()(x)
fusedact.nn.Linear(3, 4, activation=NAME)(torch.randn(2, 3))
assert any(f"def {NAME}(" in text for text in stubs.stubs().values())
assert f"| {NAME} " in cli.markdown_page()
print("fine")
"""


def test_the_example_is_one_struct_and_one_row(tmp_path: Path) -> None:
    """Without building: the insertions apply, and two files differ."""
    for folder in ("csrc", "fusedact"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    name = insert(tmp_path, *example())
    assert changed(tmp_path) == {"csrc/activations.h", "fusedact/registry.py"}
    done = subprocess.run(
        ["g++", "-std=c++20", "-fsyntax-only", "-O1", "-DFUSEDACT_CPU_CAPABILITY=default_", "-I", "csrc",
         "csrc/cpu/kernels_forward.cpp"], cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{name} does not compile: {done.stderr[-3000:]}"


@pytest.mark.slow(reason="builds the extension once more: minutes")
def test_the_example_builds_and_works(tmp_path: Path) -> None:
    for folder in ("csrc", "cmake", "fusedact", "tests", "docs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "_C.*.so", "_build_info.py")
        )
    for file in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, tmp_path / file)
    name = insert(tmp_path, *example())
    environment = {
        **os.environ,
        "CMAKE_ARGS": "-DFUSEDACT_ISAS=",
        "FUSEDACT_CUDA": "0",
        "MAX_JOBS": "2",
        "PYTHONPATH": str(tmp_path),
    }
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(build, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    code = f"NAME = {name!r}\n" + CHECK
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr[-3000:]
    # The registry's own tests know the new row without a new line.
    tests = ["tests/test_accuracy.py", "tests/test_kinks.py", "tests/test_autograd.py", "tests/test_nn.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", name, *tests]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 50
