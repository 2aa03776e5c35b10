"""Every instruction set that this processor has, one process each: the contracts hold with it, too.

The whole accuracy test runs on the widest set; the narrower ones repeat its float32 and 16-bit parts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusedact import _C

ISAS = ("default", "avx2", "avx512")
HERE = Path(__file__).parent


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FUSEDACT_CPU_CAPABILITY": isa}
    environment.pop("PYTEST_XDIST_WORKER", None)
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("isa", ISAS)
def test_the_override_is_obeyed(isa: str) -> None:
    if isa == _C.capability():
        pytest.skip("what is in use anyway")
    done = run(isa, sys.executable, "-c", "import fusedact; print(fusedact._C.capability())")
    if ISAS.index(isa) < ISAS.index(_C.capability()):
        assert done.stdout.strip() == isa
    else:
        assert done.returncode != 0, "an instruction set that is not there must raise, not fall back"
        assert isa in done.stderr


def test_a_wrong_override_raises() -> None:
    done = run("sse9", sys.executable, "-c", "import fusedact; fusedact._C.capability()")
    assert done.returncode != 0
    assert "sse9" in done.stderr
    assert "avx2" in done.stderr


CONTRACTS = (
    "(accuracy and defaults and not float64) or nan or infinities or test_slope_at_kinks or every_row or in_place"
    " or (position and (float32 or bfloat16))"
)


@pytest.mark.parametrize("isa", ISAS)
def test_contracts(isa: str) -> None:
    if ISAS.index(isa) > ISAS.index(_C.capability()):
        pytest.skip(f"this processor's widest instruction set is {_C.capability()}, not {isa}")
    if isa == _C.capability():
        pytest.skip("the rest of the tests run with it")
    files = ("test_accuracy.py", "test_kinks.py", "test_determinism.py")
    arguments = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "-k", CONTRACTS)
    done = run(isa, sys.executable, "-m", "pytest", *files, *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
