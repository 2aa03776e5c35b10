"""What do an LSTM's gates do? A toy sequence: one marked number must be remembered until the end.

Sigmoids open and close (0 to 1), tanhs carry (-1 to 1): the whole of a step after its matrix products is one pass in
`fusedact.nn.LSTMCell`. Four units do it, and show how: at the mark they let go of what they had and write, then keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fusedact
from fusedact.lab import frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH, HIDDEN, PLAIN_HIDDEN, BATCH, STEPS, LR = 12, 4, 12, 128, 400, 2e-2
MARK = 3  # where it stands in the sequences whose gates are shown; in training it is anywhere in the first half


class Reader(nn.Module):
    """Sequences [N, LENGTH, 2] of (value, mark) to the marked value [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.answer = fusedact.nn.LSTMCell(2, HIDDEN), nn.Linear(HIDDEN, 1)
        for bias in (self.cell.bias_ih, self.cell.bias_hh):
            nn.init.zeros_(bias)
        nn.init.constant_(self.cell.bias_ih[HIDDEN : 2 * HIDDEN], 1.0)  # remember first: Jozefowicz et al. 2015

    def states(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(h, c) before each step, and after the last."""
        h, c = x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), HIDDEN)
        yield h, c
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
            yield h, c

    def forward(self, x: Tensor) -> Tensor:
        *_, (h, _) = self.states(x)
        result: Tensor = self.answer(h)
        return result.squeeze(-1)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of each step, how far the forget gate is open, and what goes through the input gate into the memory: its
        standard deviation over the sequences. Means over the units, [LENGTH] each. For the eye: the cell keeps none."""
        cell = self.cell
        forget, written = [], []
        for t, (h, _) in zip(range(x.size(1)), self.states(x), strict=False):
            product = F.linear(x[:, t], cell.weight_ih, cell.bias_ih) + F.linear(h, cell.weight_hh, cell.bias_hh)
            i, f, g, _ = product.chunk(4, -1)  # torch.nn.LSTMCell's order
            forget.append(f.sigmoid().mean())
            written.append((i.sigmoid() * g.tanh()).std(0).mean())
        return torch.stack(forget), torch.stack(written)


class Plain(nn.Module):
    """The same with a recurrent network that has no gates: h = tanh(W [x, h] + b)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.answer = (
            fusedact.nn.Linear(2 + PLAIN_HIDDEN, PLAIN_HIDDEN, activation="tanh"),
            nn.Linear(PLAIN_HIDDEN, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), PLAIN_HIDDEN)
        for t in range(x.size(1)):
            h = self.cell(torch.cat([x[:, t], h], -1))
        result: Tensor = self.answer(h)
        return result.squeeze(-1)


def sequences(count: int, mark: int | None = None) -> tuple[Tensor, Tensor]:
    """[count, LENGTH, 2] of (value, mark) with one mark each, and the marked values [count]."""
    value, where = torch.rand(count, LENGTH) * 2 - 1, torch.randint(LENGTH // 2, (count,))
    if mark is not None:
        where = torch.full((count,), mark)
    marks = F.one_hot(where, LENGTH).float()
    return torch.stack([value, marks], -1), (value * marks).sum(-1)


def run() -> frame.Report:
    """Train both on fresh sequences, and look at the gates where the mark is known."""
    nets: dict[str, nn.Module] = {"LSTM": Reader(), "no gates": Plain()}
    losses: dict[str, list[float]] = {name: [] for name in nets}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=LR) for name, net in nets.items()}
    for _ in frame.track(range(STEPS), "training"):
        x, y = sequences(BATCH)
        for name, net in nets.items():
            optimizers[name].zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizers[name].step()
            losses[name].append(float(loss.detach()))
    x, y = sequences(512, MARK)
    with torch.no_grad():
        errors = {name: float(F.mse_loss(net(x), y)) for name, net in nets.items()}
        reader = nets["LSTM"]
        assert isinstance(reader, Reader)
        forget, written = reader.gates(x)
    guess = float(y.var(correction=0))
    relative = {name: error / guess for name, error in errors.items()}
    rest = [t for t in range(LENGTH) if t != MARK]
    gates = {
        "forget gate": (float(forget[MARK]), float(forget[MARK + 1 :].mean())),
        "written": (float(written[MARK]), float(written[rest].mean())),
    }
    rows = [(f"error of {name}", f"{error:.4f}", f"{relative[name]:.1%} of guessing") for name, error in errors.items()]
    for name, (at, else_), where in zip(gates, gates.values(), ("in the steps after", "elsewhere"), strict=True):
        rows.append((name, f"{at:.2f} at the mark", f"{else_:.2f} {where}"))
    conclusion = (
        f"{HIDDEN} LSTM units recall the marked number with {relative['LSTM']:.1%} of the error of guessing, "
        f"{PLAIN_HIDDEN} units without gates with {relative['no gates']:.1%}. At the mark the forget gates let "
        f"{gates['forget gate'][0]:.2f} of the old memory pass, in each step afterwards {gates['forget gate'][1]:.2f}; "
        f"what goes in differs between sequences by {gates['written'][0]:.2f} at the mark, elsewhere by "
        f"{gates['written'][1]:.2f}."
    )

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(forget, marker="o", label="forget gate, mean of the units")
        left.plot(written, marker="o", label="input gate x candidate, standard deviation")
        left.axvline(MARK, color="black", linestyle="--", linewidth=0.8)
        left.set(xlabel="time; dashed: the mark", ylabel=f"over {len(x)} sequences", ylim=(0, 1))
        left.legend()
        for name, curve in losses.items():
            right.plot(curve, label=name)
        right.axhline(guess, color="black", linestyle="--", linewidth=0.8)
        right.set(yscale="log", xlabel="step", ylabel="squared error; dashed: guessing")
        right.legend()

    return frame.Report(
        "Remember the marked number",
        ("", "", "against"),
        rows,
        conclusion,
        {"relative": relative, **gates},
        draw,
    )
