"""The registry: one row per activation, and the checks of a row's parameters.

A row holds every fact that Python needs: names, what it replaces in torch, parameters with their legal ranges, the
formula, kinks, the float64 reference and the accuracy bound. Functions, modules, stubs, documentation, tests and
benchmarks derive from the rows. Knows nothing of kernels: whether an activation can save its output or a mask is
asked of the extension (`_C.activations()`), by name.
"""

from __future__ import annotations

import difflib
import functools
import math
import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

Value: TypeAlias = "float | Tensor"
Limits: TypeAlias = "float | tuple[float | None, float | None] | None"
Resolved: TypeAlias = "tuple[str, tuple[float, ...], Tensor | None]"


@dataclass(frozen=True)
class Parameter:
    """A keyword of an activation: a number, or, with `choices`, one of a few values that select the kernel."""

    name: str
    default: Any
    meaning: str
    legal: Callable[[float], bool] = math.isfinite
    reason: str = "must be finite"  # completes "`name` ..."
    error: type[Exception] = ValueError
    choices: Mapping[Any, str] | None = None  # value -> name of the row whose kernel computes it
    tensor: bool = False  # may be a tensor of 1 or C elements, and then learns
    open: float | None = None  # what None stands for, if None is allowed
    samples: tuple[Any, ...] = ()  # legal values other than the default, for tests


@dataclass(frozen=True)
class Bound:
    """How far a result may be from the true value: in ulp of its dtype, or for derivatives near a root, absolute."""

    forward: float = 2.0
    derivative: float = 4.0
    second: float = 4.0
    near_root: float = 2e-7  # enough for a derivative within 0.1 of one of its roots, if its ulp bound is missed
    from_output: float = 1.0  # of a derivative taken from the saved output, in eps times the largest |f'|


CONTRACT: Mapping[str, Bound] = {
    "float32": Bound(),
    "float64": Bound(4.0, 4.0, 4.0, 2e-15),
    "bfloat16": Bound(0.51, 0.51, 0.51),
    "float16": Bound(0.51, 0.51, 0.51),
}


@dataclass(frozen=True)
class Activation:
    """One row. `name` is also the kernel's name, the function's name in `fusedact`, and the key of `get`."""

    name: str
    formula: str  # a Python expression in x and the parameters; evaluated by the accuracy sweep with mpmath
    source: str  # where the formula comes from
    module: str  # class in fusedact.nn, and in torch.nn where torch has it
    reference: Callable[..., Tensor]  # (v, *scalars): differentiable twice, without cancellation in float64
    replaces: str | None = None  # the torch function of the same meaning
    aliases: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    rules: tuple[tuple[Callable[..., bool], str], ...] = ()  # over all parameters: (holds, message when it does not)
    kinks: Callable[..., tuple[float, ...]] = lambda *scalars: ()  # where f or f' is not smooth
    scalars: Callable[..., tuple[float, ...]] | None = None  # parameters -> the kernel's; None: as they stand
    noise: Callable[..., Tensor | None] | None = None  # (x, **parameters) -> a random tensor parameter
    init: str = "relu"  # the nonlinearity that torch.nn.init.calculate_gain should take it for
    learns: bool = False  # the module learns the tensor parameter unless told otherwise
    # dtype -> bound, where it is not CONTRACT's; of float32 as measured on every float (docs/accuracy.md)
    bounds: Mapping[str, Bound] = field(default_factory=dict)

    def bound(self, dtype: torch.dtype) -> Bound:
        """The accuracy bound for `dtype`: the row's own, or the contract's."""
        key = str(dtype).removeprefix("torch.")
        return self.bounds.get(key, CONTRACT[key])

    @functools.cached_property
    def tensor_parameter(self) -> Parameter | None:
        """The parameter that may be a tensor, or None."""
        return next((p for p in self.parameters if p.tensor), None)

    @property
    def torch_module(self) -> type[torch.nn.Module] | None:
        """The class of torch.nn that the module of this row replaces, or None."""
        return getattr(torch.nn, self.module, None)

    @property
    def torch_function(self) -> Callable[..., Tensor] | None:
        """The function of torch that this row replaces, or None."""
        if self.replaces is None:
            return None
        return functools.reduce(getattr, self.replaces.split(".")[1:], torch)  # type: ignore[return-value]

    @property
    def saves(self) -> tuple[str, ...]:
        """What backward can read, of "input", "output" and "mask": the extension's facts."""
        facts = _kernels()[self.name]
        return tuple(kind for kind in ("input", "output", "mask") if kind == "input" or facts[kind])

    def defaults(self) -> dict[str, Any]:
        """Parameter names with their defaults."""
        return {p.name: p.default for p in self.parameters}

    def saturation(self, *scalars: float) -> tuple[tuple[float, float], ...]:
        """The zones (low, high), ends included, in which |f'| < SATURATED and next to nothing is learned.

        Found in the reference, not written down by hand. A root that f' merely crosses (GELU's at -0.75) is no zone;
        a zone that reaches as far as this looks, a million to either side, is taken to reach to infinity.

        Args:
            scalars: the kernel's, as `resolve` returns them; none for the defaults.
        """
        return _flat(self.name, scalars or self._plain[1])

    @functools.cached_property
    def _plain(self) -> Resolved:
        """What every parameter's default stands for."""
        return *_check(self, {}), None

    def resolve(self, input: Tensor | None = None, /, **params: Any) -> Resolved:
        """Check `params` and turn them into what the operator takes: kernel name, scalars, tensor parameter.

        `input` is read by rows with a random tensor parameter only (rrelu in training), for its shape and dtype.

        Raises:
            TypeError: an unknown parameter, or one of the wrong type; all reasons in one message.
            ValueError: a parameter out of its legal range (ZeroDivisionError for celu's alpha, as in torch).
        """
        if not params and self.noise is None:
            return self._plain
        weight: Tensor | None = None
        tensor = self.tensor_parameter
        if tensor is not None and isinstance(params.get(tensor.name), Tensor):
            given = params[tensor.name]
            weight = given.reshape(1) if given.dim() == 0 else given
            params = {**params, tensor.name: tensor.default}
        if torch.compiler.is_dynamo_compiling():
            kernel, scalars = _check(self, params)
        else:
            try:
                kernel, scalars = _checked(self.name, tuple(params.items()))
            except TypeError:  # unhashable, or wrong: the check says which
                kernel, scalars = _check(self, params)
        if self.noise is not None and input is not None:
            weight = self.noise(input, **{**self.defaults(), **params})
        return kernel, scalars, weight


def _check(row: Activation, params: Mapping[str, Any]) -> tuple[str, tuple[float, ...]]:
    """Kernel and scalars for `params`, or every reason against them in one exception."""
    known = {p.name: p for p in row.parameters}
    wrong_type: list[str] = []
    out_of_range: list[tuple[type[Exception], str]] = []
    values: dict[str, Any] = {}
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            takes = f"it takes {', '.join(known)}" if known else "it takes no parameter"
            hint = f"; did you mean {near[0]}?" if near else ""
            wrong_type.append(f"{row.name} has no parameter {name} ({takes}){hint}")
    kernel = row.name
    for p in row.parameters:
        value = params.get(p.name, p.default)
        if value is None and p.open is not None:
            value = p.open
        if p.choices is not None:
            if not isinstance(value, type(p.default)):
                wrong_type.append(f"{row.name}: {p.name} must be {_one_of(p.choices)}, but got {_show(value)}")
            elif value not in p.choices:
                out_of_range.append((p.error, f"{row.name}: {p.name} must be {_one_of(p.choices)}, but got {value!r}"))
            else:
                kernel = p.choices[value]
                values[p.name] = value
        elif isinstance(value, Tensor) or not isinstance(value, numbers.Real):
            tensor = row.tensor_parameter
            hint = ""
            if isinstance(value, Tensor):
                may = ", ".join(f"{a.name}'s {a.tensor_parameter.name}" for a in ROWS if a.tensor_parameter)
                hint = f"; tensors are possible for {may}" if tensor is None else f"; {tensor.name} may be a tensor"
            wrong_type.append(f"{row.name}: {p.name} must be a number, but got {_show(value)}{hint}")
        elif not (value == p.open or p.legal(float(value))):
            out_of_range.append((p.error, f"{row.name}: {p.name} {p.reason}, but got {value}"))
        else:
            values[p.name] = float(value)
    if wrong_type:
        raise TypeError("; ".join([*wrong_type, *(reason for _, reason in out_of_range)]))
    if not out_of_range:
        for holds, message in row.rules:
            if not holds(**values):
                out_of_range.append((ValueError, f"{row.name}: {message}, but got {_listed(values)}"))
    if out_of_range:
        raise out_of_range[0][0]("; ".join(reason for _, reason in out_of_range))
    if row.scalars is not None:
        return kernel, row.scalars(**values)
    return kernel, tuple(values[p.name] for p in row.parameters if p.choices is None)


@functools.lru_cache(maxsize=1024)
def _checked(name: str, params: tuple[tuple[str, Any], ...]) -> tuple[str, tuple[float, ...]]:
    return _check(_BY_NAME[name], dict(params))


def bounds(clamp: Limits) -> tuple[float | None, float | None]:
    """The two sides of `clamp`, or an exception that says what clamp may be."""
    if clamp is None:
        return None, None
    sides: Any = (-clamp, clamp) if isinstance(clamp, (int, float)) else clamp
    if not isinstance(sides, (tuple, list)) or len(sides) != 2:
        raise TypeError(f"clamp must be None, a number c for [-c, c], or (low, high), but got {clamp!r}")
    low, high = sides
    for side in (low, high):
        if side is not None and (not isinstance(side, numbers.Real) or math.isnan(side)):
            raise TypeError(f"clamp's sides must be numbers, or None for an open one, but got {clamp!r}")
    if low is not None and high is not None and low > high:
        raise ValueError(f"clamp's low side must not be above its high side, but got {clamp!r}")
    return (None if low is None else float(low), None if high is None else float(high))


def _show(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"


def _one_of(choices: Mapping[Any, str]) -> str:
    return " or ".join(repr(c) for c in choices)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


SATURATED = 1e-3  # an |f'| below it: what arrives is scaled by less than a thousandth
_CROSSING = 0.02  # a flat zone no wider than this is a root of f'


@functools.lru_cache(maxsize=256)
def _flat(name: str, scalars: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    row = _BY_NAME[name]

    def flat(v: Tensor) -> Tensor:
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            (slope,) = torch.autograd.grad(row.reference(v, *scalars).sum(), v, materialize_grads=True)
        return slope.abs() < SATURATED

    # Points 0.001 apart at 0 and ever wider beyond, to a million; the kinks, where a zone may end; then bisection.
    grid = torch.linspace(-14.6, 14.6, 29_201, dtype=torch.float64).sinh()
    x = torch.cat([grid, torch.tensor(row.kinks(*scalars), dtype=torch.float64)]).sort().values
    inside = torch.nn.functional.pad(flat(x), (1, 1)).int().diff()
    zones = []
    for first, last in zip((inside == 1).nonzero().flatten(), (inside == -1).nonzero().flatten() - 1, strict=True):
        if x[last] - x[first] <= _CROSSING:
            continue
        ends = [x[first], x[last]]
        for end, index, beyond in ((0, first, first - 1), (1, last, last + 1)):
            if not 0 <= beyond < len(x):
                ends[end] = torch.tensor(math.copysign(math.inf, x[index]))
                continue
            out = x[beyond]
            for _ in range(60):
                middle = (ends[end] + out) / 2
                if flat(middle):
                    ends[end] = middle
                else:
                    out = middle
        zones.append((float(ends[0]), float(ends[1])))
    return tuple(zones)


@functools.lru_cache(maxsize=1024)
def saves_output(kernel: str, scalars: tuple[float, ...]) -> bool:
    """Whether backward can do with the output alone; it may depend on the scalars (leaky_relu: only a positive slope).

    The extension knows, and says so by refusing; no mode that watches or fakes tensors has a part in it.
    """
    from torch.utils._python_dispatch import _disable_current_modes

    from fusedact import _C

    with _disable_current_modes():
        try:
            _C.bias_act(torch.ones(1, device="cpu"), None, None, kernel, scalars, -1, 1.0, None, None, "output")
        except ValueError:
            return False
    return True


@functools.cache
def _kernels() -> dict[str, dict[str, Any]]:
    from fusedact import _C

    return {facts["name"]: facts for facts in _C.activations()}


# Pieces of the references. Autograd multiplies the gradient of the branch that `where` did not take by zero, and
# 0 * inf is NaN: so each branch sees its own elements only, and a harmless number elsewhere.


def _split(
    here: Tensor, v: Tensor, then: Callable[[Tensor], Tensor], otherwise: Callable[[Tensor], Tensor], safe: float = 0.0
) -> Tensor:
    harmless = torch.full_like(v, safe)
    return torch.where(here, then(torch.where(here, v, harmless)), otherwise(torch.where(here, harmless, v)))


def _expm1(v: Tensor) -> Tensor:
    # torch differentiates expm1 as result + 1, which cancels for negative v; exp(v) - 1 does not below -0.5
    return _split(v < -0.5, v, lambda v: v.exp() - 1, torch.expm1)


def _sigmoid(v: Tensor) -> Tensor:
    # not torch.sigmoid, whose derivative y (1 - y) cancels for positive v
    return _split(v < 0, v, lambda v: v.exp() / (1 + v.exp()), lambda v: 1 / (1 + (-v).exp()))


def _tanh(v: Tensor) -> Tensor:
    # not torch.tanh, whose derivative 1 - y^2 cancels away from 0
    def positive(v: Tensor) -> Tensor:
        m = _expm1(-2 * v)
        return -m / (2 + m)

    return _split(v < 0, v, lambda v: -positive(-v), positive)


def _softplus(v: Tensor) -> Tensor:
    return _split(v > 0, v, lambda v: v + (-v).exp().log1p(), lambda v: v.exp().log1p())


def _normal_cdf(v: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-v * math.sqrt(0.5))


def _mish(v: Tensor) -> Tensor:
    def negative(v: Tensor) -> Tensor:  # tanh(log1p(e)) = e (e + 2) / (e (e + 2) + 2)
        n = v.exp() * (v.exp() + 2)
        return v * (n / (n + 2))

    def positive(v: Tensor) -> Tensor:  # the same with q = 1 / e, as 1 - w, so that w keeps its digits
        q = (-v).exp()
        return v * (1 - 2 * q * q / (1 + 2 * q + 2 * q * q))

    return _split(v < 0, v, negative, positive)


_TANH_SERIES = (1 / 3, -2 / 15, 17 / 315, -62 / 2835, 1382 / 155925, -21844 / 6081075, 929569 / 638512875)


def _tanhshrink(v: Tensor) -> Tensor:
    def near_zero(v: Tensor) -> Tensor:  # v - tanh(v) cancels there
        square = v * v
        return v * square * functools.reduce(lambda sum, c: sum * square + c, reversed(_TANH_SERIES), 0 * v)

    return _split(v.abs() < 0.1, v, near_zero, lambda v: v - _tanh(v), safe=0.0)


def _softsign(v: Tensor) -> Tensor:
    # at infinity inf / inf, as in torch; elsewhere beyond 1 a form whose derivative does not cancel
    return _split(
        (v.abs() < 1) | v.isinf(), v, lambda v: v / (1 + v.abs()), lambda v: v.sign() - v.sign() / (1 + v.abs()), 1.0
    )


def _elu(v: Tensor, alpha: float, scale: float = 1.0, rate: float = 1.0) -> Tensor:
    # at 0 the slope is the left one, and the curvature 0
    def right(v: Tensor) -> Tensor:
        return torch.where(v == 0, scale * alpha * rate * v, scale * v)

    return _split(v < 0, v, lambda v: scale * alpha * _expm1(v * rate), right)


def _inside(v: Tensor, low: float, high: float) -> Tensor:
    # clamp whose derivative is 0 at both edges, and 1 at NaN
    return torch.where((v <= low) | (v >= high), v.detach().clamp(low, high), v)


def _hardsigmoid(v: Tensor) -> Tensor:
    line = (v + 3) / 6
    return torch.where((v > -3) & (v < 3), line, line.detach().clamp(0, 1))  # the derivative at NaN is 0


def _hardswish(v: Tensor) -> Tensor:
    def rest(v: Tensor) -> Tensor:
        return _split(v < 3, v, lambda v: v * (v + 3) / 6, lambda v: v)

    return _split(v <= -3, v, lambda v: v * 0, rest)


def _hard_mish(v: Tensor) -> Tensor:
    # at -2 the slope is the right one and the curvature 0; the derivative at NaN is 0
    def rest(v: Tensor) -> Tensor:
        return _split(v < 0, v, bend, lambda v: torch.where(v.isnan(), v.detach(), v))

    def bend(v: Tensor) -> Tensor:
        return torch.where(v == -2, -v - 2, v * (v + 2) / 2)

    return _split(v < -2, v, lambda v: v * 0, rest)


def _signed_sqrt(v: Tensor) -> Tensor:
    return _split(v < 0, v, lambda v: -(-v).sqrt(), torch.sqrt, safe=-1.0)


def _leaky(v: Tensor, slope: Value) -> Tensor:
    return _split(v > 0, v, lambda v: v, lambda v: slope * v)


def _uniform(x: Tensor, lower: float, upper: float, training: bool) -> Tensor | None:
    if not training:
        return None
    wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    return torch.empty_like(x, dtype=wide, requires_grad=False).uniform_(lower, upper)


def _number(name: str, default: float, meaning: str, *samples: float, **more: Any) -> Parameter:
    return Parameter(name, default, meaning, samples=samples, **more)


def _not_nan(value: float) -> bool:
    return not math.isnan(value)


_NN = "https://docs.pytorch.org/docs/stable/generated/torch.nn."
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
_NOT_NAN: dict[str, Any] = {"legal": _not_nan, "reason": "must not be NaN"}
_NOT_ZERO: dict[str, Any] = {"legal": lambda v: math.isfinite(v) and v != 0, "reason": "must be finite and not 0"}
_POSITIVE: dict[str, Any] = {"legal": lambda v: math.isfinite(v) and v > 0, "reason": "must be finite and positive"}

ROWS: tuple[Activation, ...] = (
    Activation(
        name="identity",
        aliases=("linear",),
        formula="x",
        source=_NN + "Identity.html",
        module="Identity",
        reference=lambda v: v * 1,
        init="linear",
    ),
    Activation(
        name="relu",
        formula="x if x > 0 else 0",
        source="Nair, Hinton 2010, Rectified Linear Units Improve Restricted Boltzmann Machines",
        module="ReLU",
        replaces="torch.nn.functional.relu",
        kinks=lambda: (0.0,),
        reference=torch.relu,
    ),
    Activation(
        name="relu6",
        formula="min(max(x, 0), 6)",
        source="Krizhevsky 2010, Convolutional Deep Belief Networks on CIFAR-10",
        module="ReLU6",
        replaces="torch.nn.functional.relu6",
        kinks=lambda: (0.0, 6.0),
        reference=lambda v: _inside(v, 0.0, 6.0),
    ),
    Activation(
        name="leaky_relu",
        aliases=("lrelu",),
        formula="x if x > 0 else negative_slope * x",
        source="Maas et al. 2013, Rectifier Nonlinearities Improve Neural Network Acoustic Models",
        module="LeakyReLU",
        replaces="torch.nn.functional.leaky_relu",
        parameters=(_number("negative_slope", 0.01, "slope for x <= 0", 0.2, -0.5, 0.0),),
        kinks=lambda negative_slope: (0.0,),
        reference=_leaky,
        init="leaky_relu",
    ),
    Activation(
        name="prelu",
        formula="x if x > 0 else weight * x",
        source="He et al. 2015, arXiv:1502.01852",
        module="PReLU",
        replaces="torch.nn.functional.prelu",
        parameters=(_number("weight", 0.25, "slope for x <= 0; a tensor of 1 or C elements learns", 0.1, tensor=True),),
        kinks=lambda weight: (0.0,),
        reference=_leaky,
        init="leaky_relu",
        learns=True,
    ),
    Activation(
        name="rrelu",
        formula="x if x > 0 else (lower + upper) / 2 * x",
        source="Xu et al. 2015, arXiv:1505.00853",
        module="RReLU",
        replaces="torch.nn.functional.rrelu",
        parameters=(
            _number("lower", 1 / 8, "least slope for x <= 0", 0.1),
            _number("upper", 1 / 3, "largest slope for x <= 0", 0.5),
            Parameter("training", False, "draw the slope of each element", choices={False: "rrelu", True: "rrelu"}),
        ),
        rules=((lambda lower, upper, training: lower <= upper, "lower must not be above upper"),),
        scalars=lambda lower, upper, training: ((lower + upper) / 2,),
        noise=_uniform,
        kinks=lambda slope: (0.0,),
        reference=_leaky,
        init="leaky_relu",
    ),
    Activation(
        name="elu",
        formula="x if x > 0 else alpha * expm1(x)",
        source="Clevert et al. 2015, arXiv:1511.07289",
        module="ELU",
        replaces="torch.nn.functional.elu",
        parameters=(_number("alpha", 1.0, "minus the limit at -inf", 0.5, -0.3),),
        kinks=lambda alpha: (0.0,),
        reference=_elu,
    ),
    Activation(
        name="celu",
        formula="x if x > 0 else alpha * expm1(x / alpha)",
        source="Barron 2017, arXiv:1704.07483",
        module="CELU",
        replaces="torch.nn.functional.celu",
        parameters=(
            _number("alpha", 1.0, "minus the limit at -inf", 0.5, 2.0, **{**_NOT_ZERO, "error": ZeroDivisionError}),
        ),
        kinks=lambda alpha: (0.0,),
        reference=lambda v, alpha: _elu(v, alpha, 1.0, 1.0 / alpha),
    ),
    Activation(
        name="selu",
        formula=f"{_SELU_SCALE} * (x if x > 0 else {_SELU_ALPHA} * expm1(x))",
        source="Klambauer et al. 2017, arXiv:1706.02515",
        module="SELU",
        replaces="torch.nn.functional.selu",
        kinks=lambda: (0.0,),
        reference=lambda v: _elu(v, _SELU_ALPHA, _SELU_SCALE),
        init="selu",
    ),
    Activation(
        name="gelu",
        formula="x * erfc(-x / sqrt(2)) / 2",
        source="Hendrycks, Gimpel 2016, arXiv:1606.08415",
        module="GELU",
        replaces="torch.nn.functional.gelu",
        parameters=(
            Parameter(
                "approximate",
                "none",
                "'tanh' computes gelu_tanh",
                choices={"none": "gelu", "tanh": "gelu_tanh"},
                samples=("tanh",),
            ),
        ),
        reference=lambda v: v * _normal_cdf(v),
        bounds={"float64": Bound(4.0, 4.0, 16.0, 2e-15)},  # the second derivative of the tanh form
    ),
    Activation(
        name="gelu_tanh",
        aliases=("gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        formula="x / (1 + exp(-2 * sqrt(2 / pi) * (x + 0.044715 * x**3)))",
        source="Hendrycks, Gimpel 2016, arXiv:1606.08415",
        module="GELUTanh",
        reference=lambda v: v * _sigmoid(2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)),
        bounds={"float64": Bound(4.0, 4.0, 16.0, 2e-15)},
    ),
    Activation(
        name="quick_gelu",
        formula="x / (1 + exp(-1.702 * x))",
        source="Hendrycks, Gimpel 2016, arXiv:1606.08415; Radford et al. 2021, arXiv:2103.00020",
        module="QuickGELU",
        reference=lambda v: v * _sigmoid(1.702 * v),
        bounds={"float64": Bound(4.0, 4.0, 10.0, 2e-15)},
    ),
    Activation(
        name="silu",
        aliases=("swish1",),
        formula="x / (1 + exp(-x))",
        source="Elfwing et al. 2017, arXiv:1702.03118",
        module="SiLU",
        replaces="torch.nn.functional.silu",
        reference=lambda v: v * _sigmoid(v),
        bounds={"float64": Bound(4.0, 4.0, 8.0, 2e-15)},
    ),
    Activation(
        name="swish",
        formula="x / (1 + exp(-beta * x))",
        source="Ramachandran et al. 2017, arXiv:1710.05941",
        module="Swish",
        parameters=(_number("beta", 1.0, "steepness; a tensor of 1 or C elements learns", 1.5, -0.7, tensor=True),),
        reference=lambda v, beta: v * _sigmoid(beta * v),
        bounds={"float64": Bound(4.0, 4.0, 8.0, 2e-15)},
    ),
    Activation(
        name="mish",
        formula="x * tanh(log1p(exp(x)))",
        source="Misra 2019, arXiv:1908.08681",
        module="Mish",
        replaces="torch.nn.functional.mish",
        reference=_mish,
        bounds={"float64": Bound(4.0, 4.0, 16.0, 2e-15)},
    ),
    Activation(
        name="softplus",
        aliases=("soft_plus",),
        formula="x if beta * x > threshold else log1p(exp(beta * x)) / beta",
        source=_NN + "Softplus.html",
        module="Softplus",
        replaces="torch.nn.functional.softplus",
        parameters=(
            _number("beta", 1.0, "sharpness", 2.0, 0.5, **_NOT_ZERO),
            _number("threshold", 20.0, "linear where beta * x is above it", 5.0, **_NOT_NAN),
        ),
        kinks=lambda beta, threshold: (threshold / beta,),
        reference=lambda v, beta, threshold: _split(
            beta * v > threshold, v, lambda v: v, lambda v: _softplus(beta * v) / beta
        ),
    ),
    Activation(
        name="sigmoid",
        aliases=("logistic",),
        formula="1 / (1 + exp(-x))",
        source=_NN + "Sigmoid.html",
        module="Sigmoid",
        replaces="torch.sigmoid",
        reference=_sigmoid,
        init="sigmoid",
        bounds={"float32": Bound(from_output=1.5)},
    ),
    Activation(
        name="logsigmoid",
        aliases=("log_sigmoid",),
        formula="-log1p(exp(-x))",
        source=_NN + "LogSigmoid.html",
        module="LogSigmoid",
        replaces="torch.nn.functional.logsigmoid",
        reference=lambda v: -_softplus(-v),
        init="sigmoid",
    ),
    Activation(
        name="tanh",
        formula="tanh(x)",
        source=_NN + "Tanh.html",
        module="Tanh",
        replaces="torch.tanh",
        reference=_tanh,
        init="tanh",
        bounds={"float32": Bound(from_output=1.25)},
    ),
    Activation(
        name="tanhshrink",
        aliases=("tanh_shrink",),
        formula="x - tanh(x)",
        source=_NN + "Tanhshrink.html",
        module="Tanhshrink",
        replaces="torch.nn.functional.tanhshrink",
        reference=_tanhshrink,
        init="linear",
    ),
    Activation(
        name="softsign",
        aliases=("soft_sign",),
        formula="x / (1 + abs(x))",
        source="Turian et al. 2009; " + _NN + "Softsign.html",
        module="Softsign",
        replaces="torch.nn.functional.softsign",
        reference=_softsign,
        init="tanh",
    ),
    Activation(
        name="hardtanh",
        aliases=("hard_tanh",),
        formula="min(max(x, min_val), max_val)",
        source=_NN + "Hardtanh.html; derivative 0 at both edges",
        module="Hardtanh",
        replaces="torch.nn.functional.hardtanh",
        parameters=(
            _number("min_val", -1.0, "least result", -2.0, **_NOT_NAN),
            _number("max_val", 1.0, "largest result", 0.5, **_NOT_NAN),
        ),
        rules=((lambda min_val, max_val: min_val <= max_val, "min_val must not be above max_val"),),
        kinks=lambda min_val, max_val: (min_val, max_val),
        reference=_inside,
        init="tanh",
    ),
    Activation(
        name="clamp",
        aliases=("clip",),
        formula="max if x > max else min if x < min else x",
        source="https://docs.pytorch.org/docs/stable/generated/torch.clamp.html; derivative 1 at both edges",
        module="Clamp",
        replaces="torch.clamp",
        parameters=(
            _number("min", -1.0, "least result, or None", -2.0, open=-math.inf, **_NOT_NAN),
            _number("max", 1.0, "largest result, or None", 0.5, open=math.inf, **_NOT_NAN),
        ),
        rules=((lambda min, max: min <= max, "min must not be above max"),),
        kinks=lambda min, max: tuple(edge for edge in (min, max) if math.isfinite(edge)),
        reference=torch.clamp,
        init="tanh",
    ),
    Activation(
        name="hardsigmoid",
        aliases=("hard_sigmoid",),
        formula="min(max(x + 3, 0), 6) / 6",
        source="Howard et al. 2019, arXiv:1905.02244",
        module="Hardsigmoid",
        replaces="torch.nn.functional.hardsigmoid",
        kinks=lambda: (-3.0, 3.0),
        reference=_hardsigmoid,
        init="sigmoid",
    ),
    Activation(
        name="hardswish",
        aliases=("hard_swish",),
        formula="x * min(max(x + 3, 0), 6) / 6",
        source="Howard et al. 2019, arXiv:1905.02244",
        module="Hardswish",
        replaces="torch.nn.functional.hardswish",
        kinks=lambda: (-3.0, 3.0),
        reference=_hardswish,
    ),
    Activation(
        name="hardshrink",
        aliases=("hard_shrink",),
        formula="x if abs(x) > lambd else 0",
        source=_NN + "Hardshrink.html",
        module="Hardshrink",
        replaces="torch.nn.functional.hardshrink",
        parameters=(_number("lambd", 0.5, "half the width of the zero", 0.1, 1.0, -0.5, **_NOT_NAN),),
        kinks=lambda lambd: (-lambd, lambd),
        reference=lambda v, lambd: torch.where(v.abs() <= lambd, 0.0, v),
        init="linear",
    ),
    Activation(
        name="softshrink",
        aliases=("soft_shrink",),
        formula="x - lambd if x > lambd else x + lambd if x < -lambd else 0",
        source=_NN + "Softshrink.html",
        module="Softshrink",
        replaces="torch.nn.functional.softshrink",
        parameters=(
            _number("lambd", 0.5, "half the width of the zero", 0.1, legal=lambda v: v >= 0, reason="must be >= 0"),
        ),
        kinks=lambda lambd: (-lambd, lambd),
        reference=lambda v, lambd: torch.where(v.abs() <= lambd, 0.0, v - v.sign() * lambd),
        init="linear",
    ),
    Activation(
        name="threshold",
        formula="x if x > threshold else value",
        source=_NN + "Threshold.html",
        module="Threshold",
        replaces="torch.nn.functional.threshold",
        parameters=(
            _number("threshold", 0.0, "x above it passes", 0.2, **_NOT_NAN),
            _number("value", 0.0, "the result elsewhere", -0.5, **_NOT_NAN),
        ),
        kinks=lambda threshold, value: (threshold,),
        reference=lambda v, threshold, value: torch.where(v <= threshold, value, v),
    ),
    Activation(
        name="fatrelu",
        formula="x if x > threshold else 0",
        source="Kurtz et al. 2020, Inducing and Exploiting Activation Sparsity for Fast Inference on DNNs",
        module="FATReLU",
        parameters=(_number("threshold", 0.0, "x above it passes", 0.2, **_NOT_NAN),),
        kinks=lambda threshold: (threshold,),
        reference=lambda v, threshold: torch.where(v <= threshold, 0.0, v),
    ),
    Activation(
        name="squared_relu",
        aliases=("relu2", "srelu", "sqrelu"),
        formula="x * x if x > 0 else 0",
        source="So et al. 2021, arXiv:2109.08668",
        module="SquaredReLU",
        kinks=lambda: (0.0,),
        reference=lambda v: torch.relu(v).square(),
    ),
    Activation(
        name="hard_mish",
        formula="x * min(max(x + 2, 0), 2) / 2",
        source="timm, hard_mish, after github.com/digantamisra98/H-Mish",
        module="HardMish",
        kinks=lambda: (-2.0, 0.0),
        reference=_hard_mish,
    ),
    Activation(
        name="softcap",
        formula="cap * tanh(x / cap)",
        source="Bello et al. 2016, arXiv:1611.09940; Gemma 2, arXiv:2408.00118",
        module="Softcap",
        parameters=(_number("cap", 30.0, "the limit", 2.0, 0.5, **_POSITIVE),),
        reference=lambda v, cap: cap * _tanh(v / cap),
        init="tanh",
    ),
    Activation(
        name="situ",
        formula="beta * tanh(x / beta) / (1 + exp(-x))",
        source="the gate of SiTU-GLU, as in TransformerEngine",
        module="SiTU",
        parameters=(_number("beta", 4.0, "the limit", 1.0, 2.0, **_POSITIVE),),
        reference=lambda v, beta: beta * _tanh(v / beta) * _sigmoid(v),
        bounds={"float64": Bound(4.0, 12.0, 16.0, 2e-15)},
    ),
    Activation(
        name="elup1",
        aliases=("elu_plus_one",),
        formula="x + 1 if x > 0 else exp(x)",
        source="Katharopoulos et al. 2020, arXiv:2006.16236",
        module="ELUPlusOne",
        kinks=lambda: (0.0,),
        reference=lambda v: _split(v < 0, v, torch.exp, lambda v: v + 1),
    ),
    Activation(
        name="square",
        aliases=("squared",),
        formula="x * x",
        source="https://docs.pytorch.org/docs/stable/generated/torch.square.html",
        module="Square",
        replaces="torch.square",
        reference=torch.square,
        init="linear",
    ),
    Activation(
        name="signed_sqrt",
        formula="sqrt(x) if x > 0 else -sqrt(-x)",
        source="Lin et al. 2015, Bilinear CNN Models, arXiv:1504.07889",
        module="SignedSqrt",
        kinks=lambda: (0.0,),
        reference=_signed_sqrt,
        init="linear",
    ),
    Activation(
        name="cos",
        formula="cos(x)",
        source="https://docs.pytorch.org/docs/stable/generated/torch.cos.html",
        module="Cos",
        replaces="torch.cos",
        reference=torch.cos,
        init="linear",
    ),
    Activation(
        name="sin",
        formula="sin(x)",
        source="Sitzmann et al. 2020, arXiv:2006.09661",
        module="Sin",
        replaces="torch.sin",
        reference=torch.sin,
        init="linear",
    ),
)

_BY_NAME: dict[str, Activation] = {row.name: row for row in ROWS}

for _row in ROWS:  # computed now: torch.compile cannot trace the lock of a cached property
    _row.tensor_parameter  # noqa: B018
    _row._plain  # noqa: B018


def _key(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


@functools.cache
def _spellings() -> dict[str, Activation]:
    """Every spelling, without case and underscores; a name wins over an alias, an alias over a class name."""
    table: dict[str, Activation] = {}
    for names in (lambda r: (r.module,), lambda r: r.aliases, lambda r: (r.name,)):
        table.update({_key(name): row for row in ROWS for name in names(row)})
    return table


def activations() -> list[str]:
    """The names of all activations, in the registry's order."""
    return [row.name for row in ROWS]


def get(name: str) -> Activation:
    """The row of an activation, by its name, an alias, or its class in torch.nn (`"LeakyReLU"`).

    Raises:
        TypeError: `name` is not a string. A Python callable is not an activation here: compose it by hand.
        ValueError: no row has that name; the message lists the near ones.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"activation must be a name from fusedact.activations(), but got {name!r}; "
            "a function of your own is not fused: call it on input + bias instead"
        )
    row = _BY_NAME.get(name)
    if row is None:
        row = _spellings().get(_key(name))
    if row is None:
        close = difflib.get_close_matches(_key(name), _spellings(), n=4, cutoff=0.5)
        near = list(dict.fromkeys(_spellings()[key].name for key in close))
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no activation is called {name!r}; {hint}fusedact.activations() lists all {len(ROWS)}")
    return row
