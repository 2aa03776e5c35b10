"""Whether the extension fits the installed torch, asked before it is loaded: afterwards there is only a linker's error.

Knows the names in `_build_info.py`, which the build writes, and nothing else.
"""

from __future__ import annotations

import importlib.util

import torch

_FIX = "run `pip install --no-build-isolation -e .` in fusedact's source tree (or `make build`)"


def check_build() -> str:
    """The version of fusedact; ImportError unless the extension is there, and was built for this torch."""
    if importlib.util.find_spec("fusedact._C") is None or importlib.util.find_spec("fusedact._build_info") is None:
        raise ImportError(f"fusedact's extension _C has not been built for this Python: {_FIX}")
    from fusedact import _build_info

    built, installed = _flavour(_build_info.torch), _flavour(torch.__version__)
    if built != installed:
        raise ImportError(
            f"fusedact was built for torch {_build_info.torch} ({built[1]}), but torch {torch.__version__} "
            f"({installed[1]}) is installed. Either install a torch {built[0]} ({built[1]}), or rebuild: {_FIX}"
        )
    return _build_info.version


def _flavour(torch_version: str) -> tuple[str, str]:
    """("2.13", "cpu") or ("2.13", "cu130"): what a build is tied to."""
    public, _, local = str(torch_version).partition("+")
    return ".".join(public.split(".")[:2]), local or "cpu"
