"""The operators as the dispatcher sees them: opcheck, Meta, compile, export, AOTInductor, autocast, modes."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DTYPES, ROWS, call, layouts, row_id
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import fusedact
from fusedact.registry import Activation

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
OPS = torch.ops.fusedact
CHEAP = ("test_schema", "test_autograd_registration", "test_faketensor")


def settings(row: Activation, save: str = "auto", **options: Any) -> tuple[Any, ...]:
    """The arguments of an operator after input, bias and weight."""
    _, scalars, _ = row.resolve(None)
    return (row.name, scalars, 1, options.get("gain", 1.0), options.get("low"), options.get("high"), save)


def tensors(row: Activation, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
    x, bias = torch.randn(3, 4, dtype=dtype, requires_grad=True), torch.randn(4, dtype=dtype, requires_grad=True)
    return x, bias, torch.rand(4, dtype=dtype, requires_grad=True) if row.tensor_parameter else None


# ---- opcheck --------------------------------------------------------------------------------------------------------


@rows
def test_opcheck_forward(row: Activation) -> None:
    x, bias, weight = tensors(row)
    for save in ("auto", *row.saves):
        torch.library.opcheck(OPS.bias_act.default, (x, bias, None, *settings(row, save)), test_utils=CHEAP)
    torch.library.opcheck(OPS.bias_act.default, (x, None, weight, *settings(row)), test_utils=CHEAP)
    with torch.no_grad():
        plain = x.detach().clone()
        torch.library.opcheck(OPS.bias_act_.default, (plain, bias.detach(), None, *settings(row)), test_utils=CHEAP)
        torch.library.opcheck(
            OPS.bias_act.out,
            (plain, bias.detach(), None, *settings(row)),
            {"out": torch.empty_like(plain)},
            test_utils=CHEAP,
        )


@rows
def test_opcheck_backward(row: Activation) -> None:
    x, bias, weight = tensors(row)
    grad, u = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    for save in row.saves:
        saved = x
        if save == "output":
            saved = call(row, x, bias).detach().requires_grad_()
        if save == "mask":
            with torch.no_grad():
                saved = OPS.bias_act_mask(x, bias, None, *settings(row)[:-1])[1]
        arguments = (grad, saved, bias, None, *settings(row, save), True, False)
        torch.library.opcheck(OPS.bias_act_backward.default, arguments, test_utils=CHEAP)
        if save != "mask":
            arguments = (u, grad, saved, bias, *settings(row, save), save == "input")
            torch.library.opcheck(OPS.bias_act_double_backward.default, arguments, test_utils=CHEAP)
    if weight is not None:
        arguments = (grad, x, bias, weight, *settings(row, "input"), True, True)
        torch.library.opcheck(OPS.bias_act_backward.default, arguments, test_utils=CHEAP)
    if "mask" in row.saves:
        with torch.no_grad():
            torch.library.opcheck(
                OPS.bias_act_mask.default,
                (x.detach(), bias.detach(), None, *settings(row)[:-1]),
                test_utils=("test_schema", "test_faketensor"),
            )


WHOLE = [("gelu", "auto"), ("sigmoid", "output"), ("leaky_relu", "mask"), ("prelu", "auto")]


@pytest.mark.parametrize(("name", "save"), WHOLE)
def test_opcheck_with_aot_dispatch(name: str, save: str) -> None:
    """The expensive check too, static and dynamic, for one row of each kind of saved tensor."""
    row = fusedact.registry.get(name)
    x, bias, weight = tensors(row)
    torch.library.opcheck(OPS.bias_act.default, (x, bias, weight, *settings(row, save)))
    y = torch.randn(3, 4)
    torch.library.opcheck(OPS.bias_act_.default, (y, bias.detach(), None, *settings(row, save)))


def test_every_operator_is_checked() -> None:
    """Here is a list of all operators; a new one must be added, and to the tests above."""
    named = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fusedact::")}
    known = {"bias_act", "bias_act.out", "bias_act_", "bias_act_mask"}
    known |= {"bias_act_backward", "bias_act_backward.mask", "bias_act_double_backward"}
    known |= {"bias_act_epilogue", "bias_act_epilogue_backward", "dropout_mask"}  # test_epilogue.py
    known |= {"batch_norm_act", "batch_norm_act_backward"}  # test_batch_norm.py
    known |= {"gated_act", "gated_act_backward"}  # test_gated.py
    known |= {"linear_act", "linear_act_saving", "linear_act_backward"}  # test_linear.py
    known |= {"softmax", "softmax_backward"}  # test_softmax.py
    known |= {"maxout", "maxout_backward"}  # test_maxout.py
    known |= {"lstm_cell_act", "lstm_cell_act_backward", "gru_cell_act", "gru_cell_act_backward"}  # test_cells.py
    known |= {"statistics_", "bias_act_statistics", "bias_act_backward_statistics"}  # test_statistics.py
    known |= {"linear_act_statistics", "linear_act_backward_statistics"}  # test_statistics.py
    assert named == {f"fusedact::{name}" for name in known}


# ---- Meta and fake tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_gives_shape_dtype_and_strides(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5).to(dtype)
    for name, view in layouts(x):
        real = call("gelu", view, torch.zeros(3, dtype=dtype), dim=1)
        meta = call("gelu", view.to("meta"), torch.zeros(3, dtype=dtype, device="meta"), dim=1)
        same = (meta.shape, meta.dtype) == (real.shape, real.dtype)
        assert meta.device.type == "meta"
        assert same, name
        fake_mode = torch._subclasses.FakeTensorMode()
        with fake_mode:
            fake = call("gelu", fake_mode.from_tensor(view), dim=1)
        assert fake.stride() == real.stride(), f"{name}: fake {fake.stride()}, real {real.stride()}"


# ---- compile, export ------------------------------------------------------------------------------------------------


def grads(f: Callable[..., Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    leaves = tuple(t.detach().clone().requires_grad_() for t in leaves)
    y = f(*leaves)
    return (y, *torch.autograd.grad(y.sin().sum(), leaves))


@rows
@pytest.mark.usefixtures("operators_stay")
def test_compile_fullgraph(row: Activation) -> None:
    """aot_eager: the graph, its fake tensors and its autograd, without a C++ compiler's minute per function."""
    function = getattr(fusedact, row.name)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x, bias, _ = tensors(row)
    torch.testing.assert_close(grads(compiled, x, bias), grads(function, x, bias), rtol=0, atol=0)
    torch.testing.assert_close(compiled(x.detach()), function(x.detach()), rtol=0, atol=0)


@rows
@pytest.mark.usefixtures("operators_stay")
def test_compile_with_parameters(row: Activation) -> None:
    params = {p.name: p.samples[0] for p in row.parameters[:1] if p.samples}
    if not params:
        pytest.skip("it has no parameter")
    function = functools.partial(fusedact.bias_act, activation=row.name, gain=1.5, clamp=(-1.0, 2.0), **params)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x, bias, _ = tensors(row)
    torch.testing.assert_close(grads(compiled, x, bias), grads(function, x, bias), rtol=0, atol=0)


@pytest.mark.usefixtures("operators_stay")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["gelu", "relu", "prelu"])
def test_compile_with_inductor(name: str, dynamic: bool) -> None:
    def function(x: Tensor, bias: Tensor) -> Tensor:
        return fusedact.bias_act(x * 2, bias, name, dim=1) + 1

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for n in (3, 5):
        x, bias = torch.randn(n, 4), torch.randn(4)
        torch.testing.assert_close(grads(compiled, x, bias), grads(function, x, bias), rtol=1e-6, atol=1e-6)


def test_dynamic_shapes_do_not_recompile() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fusedact.silu, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for n in (3, 7, 12, 40):
        x = torch.randn(n, 6)
        torch.testing.assert_close(compiled(x, torch.ones(6)), fusedact.silu(x, torch.ones(6)), rtol=0, atol=0)
        counts.append(counter.frame_count)
    assert counts[1:] == counts[:1] * 3, f"compiled again for another size: {counts}"


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("name", "atol"), [("gelu", 1e-6), ("quick_gelu", 0.0)])  # torch's own gelu, and an operator
def test_compile_in_place_and_out(name: str, atol: float, backend: str) -> None:
    torch._dynamo.reset()
    activate = getattr(fusedact, name)

    @torch.compile(fullgraph=True, backend=backend)
    def function(x: Tensor, given: Tensor, out: Tensor, bias: Tensor) -> Tensor:
        y = x * 2
        activate(y, bias, inplace=True)  # a temporary
        activate(given[:, 1:], bias, inplace=True)  # part of an argument
        activate(y, bias, out=out)
        return y

    x, bias = torch.randn(3, 4), torch.randn(4)
    given, out = torch.randn(3, 5), torch.empty(3, 4)
    once = activate(x * 2, bias)
    wanted = (once, torch.cat([given[:, :1], activate(given[:, 1:], bias)], 1), activate(once, bias))
    with torch.no_grad():
        got = function(x, given, out, bias)
    torch.testing.assert_close((got, given, out), wanted, rtol=0, atol=atol)

    x.requires_grad_()

    @torch.compile(fullgraph=True, backend=backend)
    def differentiable(x: Tensor, bias: Tensor) -> Tensor:
        y = x * 2
        activate(y, bias, inplace=True)
        return y

    (slope,) = torch.autograd.grad(differentiable(x, bias).sum(), x)
    (slope_wanted,) = torch.autograd.grad(activate(x * 2, bias).sum(), x)
    torch.testing.assert_close(slope, slope_wanted, rtol=0, atol=2 * atol)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = fusedact.nn.Linear(6, 5, activation="gelu")
        self.act = fusedact.nn.PReLU(5)
        self.last = fusedact.nn.BiasAct(5, "leaky_relu", negative_slope=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.hidden(x)))


def test_export_and_its_round_trip() -> None:
    net, x = Net().eval(), torch.randn(3, 6)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    assert any("fusedact.bias_act" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for n in (3, 9):
        x = torch.randn(n, 6)
        torch.testing.assert_close(again(x), net(x))


def test_aot_inductor(tmp_path) -> None:
    net, x = Net().eval(), torch.randn(3, 6)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        loaded = torch._inductor.aoti_load_package(package)
        torch.testing.assert_close(loaded(x), net(x))


# ---- autocast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@rows
def test_autocast(row: Activation, dtype: torch.dtype) -> None:
    """A 16-bit product meets a float32 bias: no error, a 16-bit result; gradients have their leaves' dtypes."""
    needs = {"threshold": 0.0, "value": 0.0} if row.module == "Threshold" else {}
    layer = fusedact.nn.Linear(6, 5, activation=row.name, **needs).eval()
    x = torch.randn(3, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    product = torch.nn.functional.linear(x.to(dtype), layer.weight.to(dtype))
    wanted = fusedact.reference.bias_act(product, layer.bias, row.name)
    torch.testing.assert_close(y, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_leaves_float32_alone_as_torch_does() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.randn(3)
        assert fusedact.gelu(x).dtype == torch.nn.functional.gelu(x).dtype == torch.float32
        mixed = fusedact.gelu(x.bfloat16(), torch.randn(3))
        assert mixed.dtype == torch.bfloat16


def test_autocast_with_a_learned_parameter() -> None:
    act = fusedact.nn.PReLU(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = act(torch.randn(3, 5).bfloat16().requires_grad_())
    y.sum().backward()
    assert act.weight.grad.dtype == torch.float32


# ---- modes and subclasses -------------------------------------------------------------------------------------------


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_forward_and_backward() -> None:
    """No short cut past the dispatcher: profilers, functionalization and FSDP stand there."""
    x = torch.randn(3, 4, requires_grad=True)
    with Seen() as seen:
        fusedact.gelu(x, torch.randn(4)).sum().backward()
        fusedact.gelu(torch.randn(3), inplace=True)
        fusedact.gelu(torch.randn(3), out=torch.empty(3))
    names = " ".join(seen.names)
    for op in ("bias_act.default", "bias_act_backward.default", "bias_act_.default", "bias_act.out"):
        assert f"fusedact.{op}" in names, f"{op} was not seen; seen: {seen.names}"


def test_a_tensor_subclass_keeps_its_type() -> None:
    class Named(Tensor):
        pass

    y = fusedact.gelu(torch.randn(3).as_subclass(Named))
    assert type(y) is Named


def test_a_torch_function_mode_sees_the_call() -> None:
    seen: list[Any] = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        fusedact.gelu(torch.zeros(3))
    assert any("bias_act" in str(f) for f in seen), "F.gelu is seen by a TorchFunctionMode; fusedact.gelu is not"


def test_profiler_names_the_operator() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fusedact.gelu(torch.randn(3))
    assert any(event.key == "fusedact::bias_act" for event in profile.key_averages())
