"""What is measured: one file per family, each with `cases()`. Only the registry's names and sizes; no timing."""

from __future__ import annotations

import functools

from fusedact.bench.case import Case
from fusedact.bench.cases import activations, cells, epilogue, gated, linear, maxout, models, softmax

FAMILIES = (activations, gated, softmax, maxout, epilogue, linear, cells, models)
MORE: list[Case] = []  # cases of your own; benchmarks/zoo.py adds some


@functools.cache
def _own() -> tuple[Case, ...]:
    return tuple(case for family in FAMILIES for case in family.cases())


def every() -> tuple[Case, ...]:
    """All cases of all families, and yours."""
    return (*_own(), *MORE)
