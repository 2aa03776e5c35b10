"""What only a CUDA device can show: the operators there, for every row and dtype, beside the CPU's results.

Without a device all of this is skipped, with the reason; test_ptx.py runs the kernels themselves without one. The
compiled functors are the same and nothing is contracted, so the bits must be the CPU's: only cos and sin are the
machine's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, ROWS, WEIGHTED, bound, call, kinks, policies, row_id
from test_accuracy import hold, points, truths
from torch import Tensor

import fusedact
from fusedact import _C
from fusedact.registry import Activation

if _C.cuda() is None:
    WHY_NOT = "this build of fusedact has no CUDA kernels"
elif not torch.cuda.is_available():
    WHY_NOT = "no CUDA device is there"
else:
    WHY_NOT = ""
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
OWN = ("cos", "sin")  # the machine's, not ours


def same(got: Tensor, cpu: Tensor) -> None:
    """Assert the same bits, NaN for NaN; in 16 bits neighbours, for the CPU computes those by shorter formulas."""
    got = got.cpu()
    assert got.dtype == cpu.dtype
    assert got.shape == cpu.shape
    assert got.stride() == cpu.stride()
    equal = (got == cpu) & (got.signbit() == cpu.signbit()) | got.isnan() & cpu.isnan()
    if got.dtype in (torch.bfloat16, torch.float16):
        equal |= (got.contiguous().view(torch.int16).int() - cpu.contiguous().view(torch.int16).int()).abs() <= 1
    assert equal.all(), f"{int((~equal).sum())} of {got.numel()} differ"


def inputs(dtype: torch.dtype) -> Tensor:
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    return torch.cat([points(), special]).to(dtype)


@dtypes
@rows
def test_values_and_derivatives(row: Activation, dtype: torch.dtype) -> None:
    for save in policies(row):
        results = []
        for device in ("cpu", "cuda"):
            x = inputs(dtype).to(device).requires_grad_()
            y = call(row, x, save=save)
            (first,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
            second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.zeros_like(x)
            results.append([t.detach() for t in (y, first, second)])
        if row.name not in OWN and _C.capability() != "default":
            for cpu, cuda in zip(*results, strict=True):
                same(cuda, cpu)
            continue
        x = inputs(dtype)
        plain = x.isfinite()
        for edge in kinks(row):
            plain &= x != edge
        got = {order: result.cpu()[plain] for order, result in enumerate(results[1])}
        if dtype != torch.float64:
            hold(row, x[plain], got, truths(row, x[plain], {}), bound(row, dtype))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3),
    "sliced": lambda x: x[:, :, ::2, 1:],
    "expanded": lambda x: x[:1].expand(5, *x.shape[1:]),
    "unaligned": lambda x: x.flatten()[1:-2].view(-1, 1, 1, 1),
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("layout", LAYOUTS)
@dtypes
def test_layouts_and_bias(dtype: torch.dtype, layout: str, dim: int) -> None:
    base = torch.randn(7, 6, 5, 9).to(dtype)
    x = LAYOUTS[layout](base)
    bias, grad = torch.randn(x.shape[dim]).to(dtype), torch.randn(x.shape).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        on = LAYOUTS[layout](base.to(device)).requires_grad_()
        b = bias.to(device).requires_grad_()
        y = call("silu", on, b, dim=dim)
        results.append([y.detach(), *torch.autograd.grad(y, (on, b), grad.to(device))])
    same(results[1][0], results[0][0])
    same(results[1][1], results[0][1])
    torch.testing.assert_close(results[1][2].cpu(), results[0][2])  # two orders of summation


def test_sums_have_the_same_bits_each_time() -> None:
    x, grad = torch.randn(2, 4096, 300, device="cuda").unbind()
    bias = torch.randn(300, device="cuda", requires_grad=True)
    sums = [torch.autograd.grad(call("gelu", x, bias), bias, grad)[0] for _ in range(5)]
    assert all(torch.equal(sums[0], s) for s in sums[1:])


@rows
def test_gradcheck(row: Activation) -> None:
    x = (torch.randn(3, 5, dtype=torch.float64, device="cuda") + 0.05).requires_grad_()
    bias = torch.randn(5, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: call(row, x, b), (x, bias))
    assert torch.autograd.gradgradcheck(lambda x, b: call(row, x, b), (x, bias))


@pytest.mark.parametrize("row", [r for r in WEIGHTED if r.learns], ids=row_id)
def test_learnt_parameters(row: Activation) -> None:
    x = torch.randn(6, 8, dtype=torch.float64, device="cuda", requires_grad=True)
    weight = torch.rand(8, dtype=torch.float64, device="cuda", requires_grad=True)
    name = row.tensor_parameter.name
    assert torch.autograd.gradcheck(lambda x, w: call(row, x, **{name: w}), (x, weight))


def test_opcheck() -> None:
    x = torch.randn(4, 6, device="cuda", requires_grad=True)
    bias = torch.randn(6, device="cuda", requires_grad=True)
    args = (x, bias, None, "gelu", (), -1, 1.0, None, None, "auto")
    torch.library.opcheck(torch.ops.fusedact.bias_act.default, args)


def test_compile() -> None:
    x, bias = torch.randn(8, 16, device="cuda"), torch.randn(16, device="cuda")
    same(torch.compile(lambda x, b: fusedact.gelu(x, b), fullgraph=True)(x, bias), fusedact.gelu(x.cpu(), bias.cpu()))


def test_cuda_graph() -> None:
    """Captured once, replayed on other values, sums and their workspace included."""
    x = torch.randn(512, 96, device="cuda", requires_grad=True)
    bias = torch.randn(96, device="cuda", requires_grad=True)
    grad = torch.randn_like(x)

    def step() -> tuple[Tensor, ...]:
        y = fusedact.gelu(x, bias)
        return y, *torch.autograd.grad(y, (x, bias), grad)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_nothing_waits_for_the_device() -> None:
    x = torch.randn(512, 96, device="cuda", requires_grad=True)
    bias = torch.randn(96, device="cuda", requires_grad=True)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fusedact.gelu(x, bias).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_the_current_stream_is_used() -> None:
    x = torch.zeros(1 << 24, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(10_000_000)  # what is queued behind it must see ones
        x.fill_(1.0)
        y = fusedact.relu(x)
    side.synchronize()
    assert (y == 1).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device, or none")
def test_a_device_that_is_not_current() -> None:
    x = torch.randn(64, 8, device="cuda:1")
    same(fusedact.gelu(x), fusedact.gelu(x.cpu()))


def test_devices_are_not_mixed() -> None:
    x, bias = torch.randn(4, 8, device="cuda"), torch.randn(8)
    with pytest.raises(ValueError, match=r"bias is on cpu, but x is on cuda:0: move one with \.to\(\)"):
        fusedact.gelu(x, bias)
    with pytest.raises(ValueError, match=r"bias is on cuda:0, but x is on cpu"):
        fusedact.gelu(x.cpu(), bias.cuda())


@pytest.mark.slow(reason="more than 2^31 elements, 9 GB on the device")
def test_more_than_32_bits_of_elements() -> None:
    n = (1 << 31) + 4099
    x = torch.randn(n, dtype=torch.bfloat16, device="cuda")
    y = fusedact.relu(x)
    for part in (slice(0, 4096), slice((1 << 31) - 4096, n)):
        same(y[part], fusedact.relu(x[part].cpu()))
    channels = x[: n // 3 * 3].view(-1, 3)
    bias = torch.tensor([0.5, -1.0, 2.0], dtype=torch.bfloat16, device="cuda")
    y = fusedact.relu(channels, bias)
    same(y[-2000:], fusedact.relu(channels[-2000:].cpu(), bias.cpu()))


# ---- the operators around an activation -----------------------------------------------------------------------------


def gradients(y: Tensor | tuple[Tensor, ...], inputs: list[Tensor], seed: int) -> list[Tensor]:
    """The results and the gradients of a random function of them: the same one on every device."""
    outputs = y if isinstance(y, tuple) else (y,)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype).to(o.device) for o in outputs]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, inputs, grads)]


Block = Callable[..., "Tensor | tuple[Tensor, ...]"]
# A function of tensors, their shapes, and how many of its results (outputs, then gradients) have the CPU's bits.
BLOCKS: dict[str, tuple[Block, list[tuple[int, ...]], int]] = {
    "gated, two tensors": (lambda x, v: fusedact.gated_act((x, v), activation="silu"), [(33, 70), (33, 70)], 3),
    "gated, halves": (lambda x, b: fusedact.gated_act(x, b, activation="gelu"), [(33, 140), (140,)], 2),
    "gated, interleaved": (
        lambda x, b: fusedact.gated_act(
            x, b, activation="silu", layout="interleaved", limit=7.0, alpha=1.702, offset=1.0
        ),
        [(33, 128), (128,)],
        2,
    ),
    "gated, images": (lambda x: fusedact.gated_act(x, activation="sigmoid", dim=1), [(3, 6, 7, 9)], 2),
    "scale and residual": (
        lambda x, b, s, r: fusedact.gelu(x, b, scale=s, residual=r),
        [(33, 70), (70,), (70,), (33, 70)],
        2,
    ),
    "softmax": (lambda x, b: fusedact.softmax(x, b), [(33, 70), (70,)], 0),
    "log_softmax": (lambda x, b: fusedact.log_softmax(x, b, dim=1), [(3, 20, 49), (20,)], 0),
    "maxout": (lambda x, b: fusedact.maxout(x, b, pieces=4), [(33, 64), (64,)], 2),
    "lstm": (lambda g, c, b: fusedact.lstm_cell_act(g, c, b), [(33, 280), (33, 70), (280,)], 4),
    "gru": (lambda i, r, h: fusedact.gru_cell_act(i, r, h), [(33, 210), (33, 210), (33, 70)], 4),
    "linear_act": (lambda x, w, b: fusedact.linear_act(x, w, b, activation="gelu"), [(33, 64), (70, 64), (70,)], 0),
}


@pytest.mark.parametrize("block", BLOCKS)
@dtypes
def test_blocks(dtype: torch.dtype, block: str) -> None:
    function, sizes, exact = BLOCKS[block]
    given = [torch.randn(size, dtype=torch.float64).to(dtype) for size in sizes]
    results = []
    for device in ("cpu", "cuda"):
        inputs = [t.to(device).requires_grad_() for t in given]
        results.append(gradients(function(*inputs), inputs, seed=0))
    for number, (cpu, cuda) in enumerate(zip(*results, strict=True)):
        if number < exact and _C.capability() != "default":
            same(cuda, cpu)
        else:
            torch.testing.assert_close(cuda.cpu(), cpu)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_gradcheck(block: str) -> None:
    function, sizes, _ = BLOCKS[block]
    inputs = [torch.randn(size, dtype=torch.float64, device="cuda", requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@dtypes
def test_a_product_that_adds_the_bias_itself(dtype: torch.dtype) -> None:
    """The bias alone is cuBLASLt's; whatever follows it is not, for NaN must come through."""
    x, w, b = (torch.randn(size, device="cuda").to(dtype) for size in ((33, 64), (72, 64), (72,)))
    assert torch.equal(fusedact.linear_act(x, w, b, "identity"), torch.nn.functional.linear(x, w, b))
    x[3, 2] = b[5] = torch.nan
    wanted = torch.zeros(33, 72, dtype=torch.bool, device="cuda")
    wanted[3], wanted[:, 5] = True, True
    for name in ("identity", "relu", "gelu_tanh"):
        y = fusedact.linear_act(x, w, b, name)
        assert torch.equal(y.isnan(), wanted)


@dtypes
def test_dropout_has_the_cpus_mask(dtype: torch.dtype) -> None:
    x, seed = torch.randn(33, 70).to(dtype), torch.tensor(1234567890123)
    call = ("gelu", (), -1, 1.0, None, None, 0.3)
    for layout in LAYOUTS.values():
        a = layout(x.view(33, 7, 5, 2))
        cpu = torch.ops.fusedact.bias_act_epilogue(a, None, None, None, None, seed, *call)
        on = layout(x.cuda().view(33, 7, 5, 2))
        same(torch.ops.fusedact.bias_act_epilogue(on, None, None, None, None, seed.cuda(), *call), cpu)


def test_dropout_draws_anew_in_a_cuda_graph() -> None:
    x = torch.ones(64, 256, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, Tensor]:
        y = fusedact.relu(x, dropout_p=0.5)
        return y, torch.autograd.grad(y.sum(), x)[0]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grad = step()
    masks = []
    for _ in range(3):
        graph.replay()
        assert torch.equal(y, grad)  # backward drew forward's mask
        masks.append(y.detach().clone())
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])


@pytest.mark.parametrize("training", [False, True])
@dtypes
def test_batch_norm_act(dtype: torch.dtype, training: bool) -> None:
    results = []
    x = torch.randn(8, 6, 5, 9).to(dtype)
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        layer = fusedact.nn.BatchNormAct2d(6, activation="silu").to(device, dtype).train(training)
        on = x.to(device).requires_grad_()
        results.append(gradients(layer(on), [on, *layer.parameters()], seed=1))
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu)


def test_blocks_do_not_wait_for_the_device() -> None:
    x = torch.randn(64, 128, device="cuda", requires_grad=True)
    bias = torch.randn(128, device="cuda", requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for y in (
            fusedact.gated_act(x, bias, activation="silu"),
            fusedact.gelu(x, bias, dropout_p=0.1, residual=x.detach()),
            fusedact.softmax(x, bias),
            fusedact.maxout(x, bias),
        ):
            y.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
