"""Fused models in tools that train and ship models: Lightning's Trainer, ONNX. Needs the extra `zoo`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fusedact

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """A pair in a method, a formula, and a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out, self.act = nn.Linear(8, 32), nn.Linear(32, 8), nn.GELU()
        self.tail = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.out(self.act(self.fc(x)))
        return self.tail(x + h * torch.sigmoid(h))


def products_without_bias(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with every F.linear: whether it ran without a bias."""
    ran: list[bool] = []
    linear = torch.nn.functional.linear

    def watched(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ran.append(bias is None)
        return linear(input, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    return ran


@pytest.mark.slow(reason="Lightning takes ten seconds to import")
def test_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of a fused model have the losses of the unfused one."""
    if importlib.util.find_spec("torchvision") is not None:
        import zoo

        zoo._vision()  # Lightning imports it, and a torchvision for another flavour of torch does not import alone
    lightning: Any = pytest.importorskip("pytorch_lightning")

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.losses: list[float] = []

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = (self.net(batch[0]) - batch[1]).square().mean()
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    model = Task()
    fused = fusedact.fuse(model)
    data = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randn(32, 4))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    counts = []
    for task in (model, fused):
        ran = products_without_bias(monkeypatch)
        loader = torch.utils.data.DataLoader(data, 8)
        lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(task, loader)
        counts.append(sum(ran))
    assert counts == [0, 8 * 3], "eight steps, three products whose bias the activation adds"
    assert len(fused.losses) == 8
    assert fused.losses == pytest.approx(model.losses, rel=1e-4)


def test_onnx(tmp_path: Path) -> None:
    """A fused model exports to standard operators, and onnxruntime agrees with it."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime: Any = pytest.importorskip("onnxruntime")
    fused = fusedact.fuse(Net()).eval()
    x = torch.randn(5, 8)
    program: Any = torch.onnx.export(fused, (x,), dynamo=True, verbose=False)
    assert {node.domain for node in program.model.graph} == {""}
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), fused(x), rtol=1e-4, atol=1e-5)
