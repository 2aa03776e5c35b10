"""The health of a model's activations: dead, saturated, vanishing, exploding, or fine.

    with fusedact.monitor(model, every=10) as m:
        train(model)
    m.report()

`fusedact.health.lightning.MonitorCallback` does it for Lightning's Trainer.
"""

from fusedact.health.verdicts import Verdict
from fusedact.health.watch import Monitor, monitor

__all__ = ["Monitor", "Verdict", "monitor"]
