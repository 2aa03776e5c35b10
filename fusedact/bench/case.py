"""What a benchmark computes: one expression over some tensors, written once for each source, and checked against truth.

Knows nothing of timing, threads, compilers or goals: those turn a case's expressions into contenders.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Expression = Callable[..., Any]  # of a case's inputs; returns a tensor or a tuple of them
FORWARD, GRAD, BACKWARD, DOUBLE = "forward", "grad", "backward", "double"
INFERENCE, STEP = "inference", "step"
MODES = {
    FORWARD: "forward",
    GRAD: "forward, for a backward",
    BACKWARD: "forward + backward",
    DOUBLE: "forward + backward + double backward",
    INFERENCE: "inference",
    STEP: "training step",
}
FRESH, WARM, INPLACE, COLD = "fresh", "warm", "inplace", "cold"
OUTPUTS = {
    FRESH: "as a user calls it: results are new tensors",
    WARM: "every contender reuses its buffers: no page faults",
    INPLACE: "the result replaces the input",
    COLD: "new tensors, from inputs that rotate beyond the last cache",
}

# How far eager PyTorch itself is from the truth, relative, and as much of the result's root mean square.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2**-6, torch.float16: 2**-9}
CHECKED_WHOLE = 2**22  # elements; of larger inputs, rows are checked
CHECKED_ROWS = 64


class Wrong(AssertionError):
    """A contender's result is not the truth."""


def tuple_of(result: Any) -> tuple[Any, ...]:
    """One tensor or several, as several."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def nbytes(tensors: Iterable[Any]) -> int:
    """Of those that are tensors."""
    return sum(int(x.nbytes) for x in tensors if isinstance(x, Tensor))


def normal(
    *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0, bias: bool = False
) -> Tensor:
    """Normal numbers, the same on every call.

    16-bit ones are multiples of 1/16 below 4, and a `bias` odd ones of 1/32, so that x + bias is exact: eager PyTorch
    rounds it, and would else be wrong beside a kink. No sum is then on one.
    """
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    if torch.finfo(dtype).bits == 16:
        numbers = numbers.mul_(16).round_().clamp_(-63, 62).add_(0.5 if bias else 0).div_(16)
    return numbers.to(dtype)


@dataclass(frozen=True)
class Trial:
    """A case as one contender computes it."""

    call: Callable[[], Any]  # what is timed
    once: Callable[[], tuple[Tensor | None, ...]]  # the same once, with inputs whose truth is known
    before: Callable[[], Any] | None = None  # puts back what a call destroys; not timed
    kept: Callable[[], Any] | None = None  # the forward pass, whose saved tensors are counted
    owned: tuple[Tensor, ...] = ()  # but these are there anyway: a model's parameters


@dataclass(frozen=True, eq=False)
class Case:
    """`fresh`, `warm` and `inplace` have an expression for each source that can do so: "eager", "fusedact", peers' own.

    fresh(*inputs) returns new tensors, warm(*inputs, out) writes into a tensor, inplace(*inputs) over the first input.
    """

    family: str
    name: str
    shape: str  # as --filter takes it
    dtype: torch.dtype
    make: Callable[[], tuple[Any, ...]]  # inputs, the same on every call
    fresh: Mapping[str, Expression]
    warm: Mapping[str, Expression] = field(default_factory=dict)
    inplace: Mapping[str, Expression] = field(default_factory=dict)
    modes: tuple[str, ...] = (FORWARD, BACKWARD)
    truth: Expression | None = None  # of float64 inputs; None: fresh["eager"]
    rows: tuple[int, ...] = (0,)  # inputs whose rows (dim 0) have nothing to do with each other; (): all rows matter
    leaves: tuple[int, ...] | None = None  # inputs that get a gradient; None: every floating point tensor
    slack: float = 1.0  # on the tolerance of the others, where they round on the way
    checked: bool = True  # False where results are random: then the family's tests must do
    bound_by_memory: bool = True  # so that a copy is its ceiling
    rounds: int = 1  # times the usual number of rounds, for contenders that are hardly apart

    def outputs(self, mode: str) -> tuple[str, ...]:
        """The places for results that `mode` has."""
        forward = mode == FORWARD
        warm = (WARM,) if mode == BACKWARD or (forward and self.warm) else ()
        inplace = (INPLACE,) if forward and self.inplace else ()
        return (FRESH, *warm, *inplace, COLD)

    def inputs(self, device: str) -> tuple[Any, ...]:
        """The tensors of this case on `device`."""
        return tuple(x.to(device) if isinstance(x, Tensor) else x for x in self.make())

    def expression(self, source: str, mode: str, output: str) -> Expression | None:
        """What `source` has for that mode and output, or None: it takes no part."""
        if output == INPLACE:
            return self.inplace.get(source)
        return (self.warm if output == WARM and mode == FORWARD else self.fresh).get(source)

    def grad_of(self, inputs: tuple[Any, ...]) -> list[int]:
        """Positions of the inputs that get a gradient."""
        if self.leaves is not None:
            return list(self.leaves)
        return [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]

    def trial(
        self,
        source: str,
        mode: str,
        output: str,
        inputs: tuple[Any, ...],
        through: Callable[[Expression], Expression] | None = None,
        cold: int = 1,
    ) -> Trial | None:
        """`source`'s expression in `mode`, ready to be timed; None if it has none.

        Args:
            inputs: what `inputs` gave; it is not written to.
            through: what compiles the expression; None: it runs as it is.
            cold: how many copies of the inputs take turns when output is "cold".
        """
        given = self.expression(source, mode, output)
        if given is None:
            # A compiler writes a result that is copied somewhere straight to where it goes.
            plain = self.fresh.get(source)
            if plain is None or through is None:
                return None
            given = _copied(plain, -1 if output == WARM else 0)
        expression = through(given) if through else given
        if output == INPLACE:
            return _in_place(expression, inputs)
        if output == WARM and mode == FORWARD:
            inputs = (*inputs, torch.empty_like(inputs[0]))
        runs = [self._run(expression, mode, copy) for copy in _copies(inputs, cold if output == COLD else 1)]
        turns = itertools.cycle(runs)
        rows = self.picked(inputs)
        return Trial(
            runs[0] if len(runs) == 1 else lambda: next(turns)(),
            lambda: tuple_of(self._run(expression, mode, inputs, rows)()),
            kept=self._run(expression, GRAD, inputs) if mode in (GRAD, BACKWARD, DOUBLE) else None,
        )

    def _run(
        self, expression: Expression, mode: str, inputs: tuple[Any, ...], rows: Tensor | None = None
    ) -> Callable[[], Any]:
        """expression(*inputs), and in other modes its gradients; their incoming ones are zero beside `rows`."""
        if mode in (FORWARD, INFERENCE):
            return functools.partial(expression, *inputs)
        leaves = self.grad_of(inputs)
        given = [x.detach().requires_grad_() if i in leaves else x for i, x in enumerate(inputs)]
        if mode == GRAD:
            return functools.partial(expression, *given)
        wanted = [given[i] for i in leaves]
        with torch.no_grad():
            shapes = tuple_of(expression(*inputs))
        grads = [_ones_and_twos(y, rows) for y in shapes]
        if mode == BACKWARD:
            return lambda: torch.autograd.grad(tuple_of(expression(*given)), wanted, grads)
        grads = [grad.requires_grad_() for grad in grads]
        seconds = [_ones_and_twos(leaf) for leaf in wanted]

        def there_and_back_twice() -> Any:
            first = torch.autograd.grad(tuple_of(expression(*given)), wanted, grads, create_graph=True)
            return torch.autograd.grad(first, (*wanted, *grads), seconds, allow_unused=True)

        return there_and_back_twice

    def _result_bytes(self, inputs: tuple[Any, ...]) -> int | None:
        for source in ("fusedact", "eager"):
            try:
                with torch.no_grad():
                    return nbytes(tuple_of(self.fresh[source](*inputs)))
            except Exception:  # whose fault it is has been told when it was checked
                continue
        return None

    def picked(self, inputs: tuple[Any, ...]) -> Tensor | None:
        """The rows that are checked, first and last among them; None: all."""
        x = inputs[0]
        if not self.rows or x.dim() < 2 or x.numel() <= CHECKED_WHOLE:
            return None
        count = max(2, min(CHECKED_ROWS, CHECKED_WHOLE // 2 // (x.numel() // len(x)), len(x)))
        return torch.linspace(0, len(x) - 1, count, dtype=torch.float64).round().long().to(x.device)

    def exact(self, mode: str, inputs: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        """The truth in `mode`, of float64 inputs; in every row, or in those of `picked`."""
        rows = self.picked(inputs)
        whole = [x[rows] if rows is not None and i in self.rows else x for i, x in enumerate(inputs)]
        double = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in whole)
        result = tuple_of(self._run(self.truth or self.fresh["eager"], mode, double)())
        return tuple(None if y is None else y.detach() for y in result)

    def check(
        self,
        who: str,
        results: tuple[Tensor | None, ...],
        truth: tuple[Tensor | None, ...],
        inputs: tuple[Any, ...],
        slack: float = 1.0,
    ) -> None:
        """Raise Wrong unless `results` is `truth` up to rounding."""
        rows = self.picked(inputs)
        limit = TOLERANCE[self.dtype] * slack
        for i, (got, expected) in enumerate(zip(results, truth, strict=True)):
            if expected is None:
                expected = torch.zeros((), dtype=torch.float64, device=inputs[0].device)
            got = torch.zeros_like(expected) if got is None else got.detach()
            if rows is not None and got.shape != expected.shape:
                got = got[rows]
            try:
                torch.testing.assert_close(
                    got.double(),
                    expected.expand_as(got),
                    rtol=limit,
                    atol=limit * float(expected.square().mean().sqrt()),
                    equal_nan=True,
                )
            except AssertionError as error:
                raise Wrong(f"{who}: result {i} is wrong\n{error}") from None

    def traffic(self, mode: str, inputs: tuple[Any, ...]) -> int | None:
        """The bytes that have to move: each tensor once per pass that needs it. What a ceiling is measured with."""
        results = self._result_bytes(inputs)
        if results is None:
            return None
        taken, leaves = nbytes(inputs), nbytes(inputs[i] for i in self.grad_of(inputs))
        forward, backward = taken + results, results + taken + leaves
        if mode == DOUBLE:  # reads the inputs, both incoming gradients; writes gradients of inputs and of the first
            return forward + backward + taken + 2 * results + 2 * leaves
        return forward + backward if mode == BACKWARD else forward


def _copied(expression: Expression, place: int) -> Expression:
    if place == 0:
        return lambda *inputs: inputs[0].copy_(expression(*inputs))
    return lambda *inputs: inputs[-1].copy_(expression(*inputs[:-1]))


def _in_place(expression: Expression, inputs: tuple[Any, ...]) -> Trial:
    x = inputs[0].clone()
    restore = functools.partial(x.copy_, inputs[0])
    call = functools.partial(expression, x, *inputs[1:])

    def once() -> tuple[Tensor]:
        restore()
        call()
        return (x.clone(),)

    return Trial(call, once, restore)


def _copies(inputs: tuple[Any, ...], count: int) -> list[tuple[Any, ...]]:
    more = [tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs) for _ in range(count - 1)]
    return [inputs, *more]


def _ones_and_twos(like: Tensor, rows: Tensor | None = None) -> Tensor:
    """An incoming gradient, the same in every row; zero beside `rows`."""
    grad = torch.empty_like(like)  # in like's order of memory
    grad.copy_(torch.arange(like.shape[-1] if like.dim() else 1, device=like.device) % 2 + 1)
    if rows is not None:
        grad = torch.zeros_like(grad).index_copy_(0, rows, grad[: len(rows)])
    return grad
