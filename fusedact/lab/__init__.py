"""The lab: small experiments that show what activations do, each in a file of its own.

    fusedact.lab.run("vanish").conclusion
    python -m fusedact lab vanish

Each returns a `Report`: a table, a picture, and a conclusion computed from its own numbers. Data ship with
scikit-learn or are made up on the spot, seeds are fixed, and none takes a minute on two cores.
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType
from typing import Any

from fusedact.lab.frame import Report, shown_on

__all__ = ["EXPERIMENTS", "Report", "describe", "run", "shown_on"]

EXPERIMENTS = (
    "collapse", "xor", "vanish", "dying", "saturation", "selu", "residual", "choose", "goodness", "lenet", "lstm",
    "transformer",
)  # fmt: skip


def _module(name: str) -> ModuleType:
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, EXPERIMENTS, 2, 0.5) if isinstance(name, str) else []
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no experiment is called {name!r}; {hint}there are {', '.join(EXPERIMENTS)}")
    return importlib.import_module(f"fusedact.lab.{name}")


def describe(name: str) -> str:
    """What an experiment asks, in one line.

    Raises:
        ValueError: no experiment has that name; the message lists them.
    """
    return (_module(name).__doc__ or "").split("\n")[0]


def run(name: str, seed: int = 0, **options: Any) -> Report:
    """Run an experiment.

    Args:
        name: one of `EXPERIMENTS`.
        seed: decides everything random; the caller's random state is left alone.
        options: the experiment's own, see its module.

    Raises:
        ValueError: no experiment has that name; the message lists them.
        ImportError: scikit-learn is missing: `pip install 'fusedact[lab]'`.
    """
    from fusedact.lab import frame

    module = _module(name)
    with frame.seeded(seed):
        report: Report = module.run(**options)
    return report
