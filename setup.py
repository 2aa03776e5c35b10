"""Hands the build to CMake and puts what it installs where setuptools wants it. Names no source file and no flag.

Environment: MAX_JOBS, CMAKE_ARGS, CMAKE_GENERATOR, FUSEDACT_CUDA, TORCH_CUDA_ARCH_LIST. Build with `pip install
--no-build-isolation`, so that the torch that is compiled against is the one that is installed.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
VERSION = "0.1.0"
PASSED_ON = ("FUSEDACT_CUDA", "TORCH_CUDA_ARCH_LIST")


def torch_folder() -> Path | None:
    """Where torch lies, without importing it."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def local_version() -> str:
    """`+pt213cpu`: a build is tied to one minor version of torch and one kind of device. A source archive is not."""
    folder = torch_folder()
    if folder is None or "sdist" in sys.argv:
        return ""
    for node in ast.parse((folder / "version.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            public, _, flavour = ast.literal_eval(node.value).partition("+")
            return f"+pt{''.join(public.split('.')[:2])}{flavour or 'cpu'}"
    raise RuntimeError(f"no __version__ in {folder / 'version.py'}")


class CMakeBuild(build_ext):
    """cmake, build, install: into the wheel's folder, or beside the sources for an editable install."""

    def run(self) -> None:
        folder = torch_folder()
        if folder is None:
            raise RuntimeError(
                f"torch is not installed for {sys.executable}: install it first, and build fusedact with "
                "`pip install --no-build-isolation` (an isolated build would compile against another torch)"
            )
        # For an editable install setuptools' folder is new each time; ninja needs the old one to see what has changed.
        editable = ROOT / "build" / f"editable-{sys.implementation.cache_tag}"
        build = editable if self.editable_mode else Path(self.build_temp).resolve()
        prefix = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build), f"-G{os.environ.get('CMAKE_GENERATOR', 'Ninja')}"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DTORCH_ROOT={folder}",
            f"-DFUSEDACT_VERSION={self.distribution.get_version()}",
            *(f"-D{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), *jobs], check=True)
        install = ["cmake", "--install", str(build), "--component", "python", "--strip", "--prefix", str(prefix)]
        subprocess.run(install, check=True)

    def copy_extensions_to_source(self) -> None:
        """CMake has put it there already."""


setup(
    version=VERSION + local_version(),
    ext_modules=[Extension("fusedact._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
