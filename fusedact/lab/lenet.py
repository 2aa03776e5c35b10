"""How does a whole network look with fused layers? LeNet-5, every activation an argument of the layer before it.

The variant with 697,046 parameters at 32 × 32 × 3 and 10 classes: the convolutions have no padding, the first pooling
moves by one pixel and the second by two (rounding up), so that the last convolution ends in 120 maps of 8 × 8.

Trained on CIFAR-10 where its folder is given (`--data`, the unpacked binary or Python version), on scikit-learn's
digits, enlarged to 32 × 32 in three equal colours, otherwise. Nothing is downloaded.
"""

from __future__ import annotations

import io
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedact
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMETERS = 697_046
BATCH, STEPS, IMAGES = 64, 60, 10_000  # of CIFAR-10 the first images only, so that a minute is enough


def lenet5(activation: str = "relu") -> nn.Sequential:
    """LeNet-5 for images [N, 3, 32, 32]: logits [N, 10]."""
    return nn.Sequential(
        fusedact.nn.Conv2d(3, 6, 5, activation=activation),  # 28 × 28
        nn.AvgPool2d(2, stride=1),  # 27 × 27
        fusedact.nn.Conv2d(6, 16, 5, activation=activation),  # 23 × 23
        nn.AvgPool2d(2, ceil_mode=True),  # 12 × 12
        fusedact.nn.Conv2d(16, 120, 5, activation=activation),  # 8 × 8
        nn.Flatten(),
        fusedact.nn.Linear(120 * 8 * 8, 84, activation=activation),
        nn.Linear(84, 10),
    )


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays and plain Python values, and refuses everything else that a pickle can name."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype", "scalar"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a CIFAR-10 file holds no {module}.{name}")


def cifar10(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [N, 3, 32, 32] from 0 to 1, their classes, and the same for the test.

    Raises:
        FileNotFoundError: `folder` holds neither version of CIFAR-10; the message says what was looked for.
        ValueError: a file is damaged.
    """
    for base in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for suffix, read in ((".bin", _binary), ("", _python)):
            parts = [base / f"data_batch_{n}{suffix}" for n in range(1, 6)] + [base / f"test_batch{suffix}"]
            if parts[0].is_file() and parts[-1].is_file():
                read_parts = [read(part) for part in parts if part.is_file()]
                *train, test = [(torch.from_numpy(x).float().div_(255), torch.from_numpy(y)) for x, y in read_parts]
                return torch.cat([x for x, _ in train]), torch.cat([y for _, y in train]), *test
    raise FileNotFoundError(
        f"no CIFAR-10 in {folder}: expected data_batch_1.bin ... test_batch.bin (binary version) or data_batch_1 ... "
        "test_batch (Python version), there or in cifar-10-batches-bin or cifar-10-batches-py beneath"
    )


def _binary(path: Path) -> tuple[Any, Any]:
    raw = numpy.fromfile(path, dtype=numpy.uint8)
    if raw.size == 0 or raw.size % 3073:
        raise ValueError(f"{path} has {raw.size} bytes, but CIFAR-10's images take 3073 each: the file is damaged")
    raw = raw.reshape(-1, 3073)
    return raw[:, 1:].reshape(-1, 3, 32, 32), raw[:, 0].astype(numpy.int64)


def _python(path: Path) -> tuple[Any, Any]:
    try:
        held = _Arrays(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return held[b"data"].reshape(-1, 3, 32, 32), numpy.asarray(held[b"labels"], dtype=numpy.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is not a batch of CIFAR-10: {error}") from error


def enlarged_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits as images [N, 3, 32, 32]."""
    data = frame.digits()

    def images(x: Tensor) -> Tensor:
        return F.interpolate(x.view(-1, 1, 8, 8), size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)

    return images(data.x), data.y, images(data.test_x), data.test_y


def run(data: str | Path | None = None) -> frame.Report:
    """Count the parameters, train for STEPS steps, and read the test images.

    Args:
        data: the folder of CIFAR-10; None for the digits.
    """
    x, y, test_x, test_y = enlarged_digits() if data is None else cifar10(Path(data))
    x, y, test_x, test_y = x[:IMAGES], y[:IMAGES], test_x[:1000], test_y[:1000]
    net = lenet5()
    for layer in net:
        if isinstance(layer, fusedact.nn.Conv2d | fusedact.nn.Linear):
            layer.init_for_activation_()
    count = sum(p.numel() for p in net.parameters())
    untrained = frame.accuracy(net, test_x, test_y)
    begin = time.perf_counter()
    losses: list[float] = []
    for _ in frame.track(range(STEPS // 10), "training"):
        losses += frame.fit(net, x, y, steps=10, lr=2e-3, batch=BATCH)
    seconds = (time.perf_counter() - begin) / STEPS
    accuracy = frame.accuracy(net, test_x, test_y)
    what = "digits" if data is None else "CIFAR-10 images"
    rows = [
        (f"{number} {type(layer).__name__}", f"{sum(p.numel() for p in layer.parameters()):,}")
        for number, layer in enumerate(net)
        if list(layer.parameters())
    ] + [("all", f"{count:,}")]
    conclusion = (
        f"LeNet-5 with {count:,} parameters ({'as' if count == PARAMETERS else 'NOT as'} in the literature) reads "
        f"{accuracy:.1%} of {len(test_y)} unseen {what} after {STEPS} steps of {BATCH}, {untrained:.1%} before; "
        f"{1e3 * seconds:.0f} ms per step on one thread."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        left.plot(losses)
        left.set(yscale="log", xlabel="step", ylabel="training loss")
        with torch.no_grad():
            maps = net[0](test_x[:1])[0]
        right.imshow(torch.cat([torch.cat(list(maps[:3]), 1), torch.cat(list(maps[3:]), 1)], 0), cmap="viridis")
        right.set(title="what the six first filters see", xticks=[], yticks=[])

    return frame.Report(
        f"LeNet-5 on {what}",
        ("layer", "parameters"),
        rows,
        conclusion,
        {"parameters": count, "accuracy": accuracy, "untrained": untrained, "seconds": seconds, "losses": losses},
        draw,
    )
