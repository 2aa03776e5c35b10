"""What every test shares: a fresh inductor cache, one thread per xdist worker, a fixed seed, `slow` with its reason."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

# Before torch is imported: the inductor cache is keyed by an operator's name and would serve a stale graph.
_CACHE = tempfile.TemporaryDirectory(prefix="fusedact-inductor-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _CACHE.name

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow(reason): minutes or gigabytes; run with --slow")
    config.addinivalue_line("markers", "cuda: on a CUDA device; skipped where there is none")
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        for mark in item.iter_markers("slow"):
            item.add_marker(pytest.mark.skip(reason=f"slow ({mark.kwargs['reason']}); run with --slow"))


@pytest.fixture
def operators_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile sees the operators of small tensors too, not torch's functions in their place (lowering.py)."""
    from fusedact import lowering

    monkeypatch.setattr(lowering, "ALSO_IN_TORCH", {})


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Iterator[None]:
    """Where there is to be no compiler (make wheel-test), inductor's own complaint is a reason to skip."""
    try:
        return (yield)
    except Exception as error:
        if os.environ.get("CXX") == "/nonexistent" and "InvalidCxxCompiler" in str(error):
            pytest.skip("torch.compile's inductor wants a C++ compiler")
        raise


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
