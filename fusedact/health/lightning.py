"""The monitor as a callback of Lightning's Trainer. Needs lightning (or pytorch_lightning), which `import fusedact`
does not."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment, unused-ignore]
    except ImportError as error:
        raise ImportError(f"the callback needs Lightning ({error}): pip install lightning") from error

from fusedact.health.watch import Monitor


class MonitorCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Watches the activations of the module that is trained, logs numbers, and reports at the end.

    Args:
        every: watch each n-th training batch.
        report: print the report when training ends.
        options: of `fusedact.monitor`.

    `monitor` is the monitor, during training and afterwards.
    """

    def __init__(self, every: int = 100, report: bool = True, **options: Any) -> None:
        super().__init__()
        self.every, self.report, self.options = every, report, options
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach."""
        self.monitor = Monitor(pl_module, self.every, by_hand=True, **self.options).attach()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A step begins; Lightning calls training_step, which need not call the module itself."""
        if self.monitor is not None:
            self.monitor.begin_step()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The step is over: log if it was watched."""
        if self.monitor is None:
            return
        watched = self.monitor.watching
        self.monitor.end_step()
        if watched and self.monitor.seen:
            pl_module.log_dict(self.monitor.scalars())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach, and report."""
        if self.monitor is not None:
            self.monitor.detach()
            if self.report and self.monitor.seen:
                self.monitor.report()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach: the module is left as it was."""
        if self.monitor is not None:
            self.monitor.detach()
