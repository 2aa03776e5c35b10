"""bias_act with scale, dropout and residual: values, the mask's contract, derivatives, transforms, compilers.

The mask is compared with Philox written here in Python integers, which is held to published answers; everything else
with float64 formulas over `dropout_mask`.
"""

from __future__ import annotations

import copy
import functools
import io
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import DTYPES, ROWS, layouts, row_id, smooth_points
from test_ops import Seen, grads
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fusedact
from fusedact import _C, reference
from fusedact.registry import Activation

OPS = torch.ops.fusedact
rows = pytest.mark.parametrize("row", ROWS, ids=row_id)
floats = pytest.mark.parametrize("dtype", DTYPES, ids=str)
pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

EXACT = {"rtol": 1e-12, "atol": 1e-12}


# ---- Philox4x32-10 --------------------------------------------------------------------------------------------------


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Salmon et al. 2011, section 3.3: ten rounds over four words of 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & 0xFFFFFFFF, p0 >> 32 ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def test_philox_gives_the_published_answers() -> None:
    """The known answers that the paper's authors publish with their Random123."""
    ones = 0xFFFFFFFF
    assert philox((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox((ones,) * 4, (ones,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(*pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def word(seed: int, i: int) -> int:
    """The random word of element i, as a signed number: csrc/epilogue/kernels.h says which."""
    group, place = divmod(i, 64)
    counter, number = group * 16 + place % 32 // 2, place // 32 * 2 + place % 2
    words = philox((counter & 0xFFFFFFFF, counter >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    return words[number] - (words[number] >> 31 << 32)


def kept(p: float) -> int:
    """Of 2^32 words, how many keep their element."""
    return math.floor((1 - p) * 2**32 + 0.5)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 0x299F31D0A4093822, 2**63 - 1])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_mask_is_philox(seed: int, p: float) -> None:
    for dtype in (torch.float32, torch.float64):
        mask = OPS.dropout_mask(torch.tensor(seed), (1000,), p, dtype)
        factor = torch.tensor(2**32 / kept(p), dtype=torch.float64).to(dtype).item()
        wanted = [factor if word(seed, i) < kept(p) - 2**31 else 0.0 for i in range(1000)]
        assert mask.tolist() == wanted


# ---- the mask's contract --------------------------------------------------------------------------------------------


def mask(seed: Tensor, like: Tensor, p: float, dtype: torch.dtype | None = None) -> Tensor:
    return OPS.dropout_mask(
        seed, like.shape, p, dtype or (torch.float64 if like.dtype == torch.float64 else torch.float32)
    )


def epilogue(x: Tensor, bias: Tensor | None = None, name: str = "identity", **options: Any) -> Tensor:
    """The operator with a given seed."""
    kernel, scalars, _ = fusedact.registry.get(name).resolve()
    low, high = options.get("clamp", (None, None))
    return OPS.bias_act_epilogue(
        x, bias, options.get("weight"), options.get("scale"), options.get("residual"), options.get("seed"), kernel,
        scalars, options.get("dim", -1), options.get("gain", 1.0), low, high, options.get("p", 0.0),
    )  # fmt: skip


def composed(x: Tensor, bias: Tensor | None = None, name: str = "identity", **options: Any) -> Tensor:
    """The same in plain torch operators and x's dtype."""
    dim, seed = options.get("dim", -1), options.get("seed")
    v = x if options.get("scale") is None else x * reference.along(options["scale"], x, dim)
    params = {} if options.get("weight") is None else {"weight": options["weight"]}
    y = reference.bias_act(
        v, bias, name, dim=dim, gain=options.get("gain", 1.0), clamp=options.get("clamp"), dtype=x.dtype, **params
    )
    if seed is not None:
        y = y * mask(seed, x, options["p"]).to(x.dtype)
    return y if options.get("residual") is None else y + options["residual"]


def test_the_mask_does_not_depend_on_threads_blocks_strides_or_vectors() -> None:
    seed, p = torch.tensor(5), 0.3
    x = torch.ones(7, 9, 123, 151)  # rows of no round length, several threads' worth
    wanted = mask(seed, x, p)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(mask(seed, x, p), wanted)
        for name, view in layouts(x):
            assert torch.equal(epilogue(view, seed=seed, p=p), wanted), f"{name}, {threads} threads"
            leaf = view.detach().requires_grad_()
            for scale in (None, torch.ones(9)):
                y = epilogue(leaf, torch.zeros(9), dim=1, seed=seed, p=p, scale=scale)
                for grad in (x, x.contiguous(memory_format=torch.channels_last)):
                    assert torch.equal(torch.autograd.grad(y, leaf, grad, retain_graph=True)[0], wanted), name
    assert torch.equal(mask(seed, x[:2], p), wanted[:2])


@pytest.mark.parametrize("isa", ["default", "avx2", "avx512"])
def test_every_instruction_set_draws_the_same_mask(isa: str) -> None:
    isas = ("default", "avx2", "avx512")
    if isas.index(isa) >= isas.index(_C.capability()):
        pytest.skip(f"in use: {_C.capability()}")
    code = (
        "import torch, fusedact; x = torch.linspace(-3, 3, 1037);"
        "y = torch.ops.fusedact.bias_act_epilogue(x, None, None, None, x, torch.tensor(7), 'relu', (), -1, 1.0, None,"
        " None, 0.4); print(y.double().tolist())"
    )
    environment = {**os.environ, "FUSEDACT_CPU_CAPABILITY": isa}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    x = torch.linspace(-3, 3, 1037)
    assert done.stdout.strip() == str(
        epilogue(x, name="relu", residual=x, seed=torch.tensor(7), p=0.4).double().tolist()
    )


@pytest.mark.parametrize("p", [0.05, 0.5, 0.8])
def test_dropout_is_exact_in_expectation(p: float) -> None:
    """Five standard deviations: of the mean, and of products of elements a little, or a seed, apart."""
    n = 1 << 22
    m = OPS.dropout_mask(torch.tensor(11), (n,), p, torch.float64)
    keep = kept(p) / 2**32
    assert set(m.unique().tolist()) == {0.0, 1 / keep}
    assert keep * (1 / keep) == pytest.approx(1, rel=1e-15)
    sigma = math.sqrt((1 / keep - 1) / n)  # of the mean of m, whose expectation is 1
    assert abs(m.mean() - 1) < 5 * sigma
    centred = m - 1
    for distance in (1, 2, 31, 32, 64):
        assert abs((centred[distance:] * centred[:-distance]).mean()) < 5 * sigma * math.sqrt(1 / keep - 1)
    other = OPS.dropout_mask(torch.tensor(12), (n,), p, torch.float64) - 1
    assert abs((centred * other).mean()) < 5 * sigma * math.sqrt(1 / keep - 1)


def test_p_zero_one_and_between_two_multiples_of_its_resolution() -> None:
    x, r = torch.randn(300), torch.randn(300)
    for p, wanted in ((0.0, x + r), (2.0**-34, x + r), (1.0, r), (1 - 2.0**-34, r)):
        leaf = x.clone().requires_grad_()
        y = epilogue(leaf, residual=r, seed=torch.tensor(3), p=p)
        assert torch.equal(y, wanted)
        slope = 0.0 if torch.equal(wanted, r) else 1.0
        assert torch.equal(torch.autograd.grad(y.sum(), leaf)[0], torch.full_like(x, slope))
    assert fusedact.identity(x, dropout_p=1.0).eq(0).all()
    assert torch.equal(fusedact.gelu(x, dropout_p=0.7, training=False), fusedact.gelu(x))


def test_a_dropped_nan_stays_nan_as_in_torch() -> None:
    x = torch.tensor([math.nan, math.inf, 1.0])
    torch.testing.assert_close(
        fusedact.identity(x, dropout_p=1.0), nn.functional.dropout(x, 1.0), rtol=0, atol=0, equal_nan=True
    )


def test_the_mask_comes_from_torchs_generator() -> None:
    x = torch.ones(1000)
    drop = functools.partial(fusedact.identity, x, dropout_p=0.5)
    torch.manual_seed(3)
    first, second = drop(), drop()
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(drop(), first)
    own = [torch.Generator().manual_seed(9) for _ in range(2)]
    state = torch.get_rng_state()
    assert torch.equal(drop(generator=own[0]), drop(generator=own[1]))
    assert torch.equal(torch.get_rng_state(), state), "a generator was given, but torch's own was used"
    drop(training=False)
    fusedact.identity(x, residual=x)
    assert torch.equal(torch.get_rng_state(), state), "nothing is dropped, but a number was drawn"


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_replays_the_mask(reentrant: bool) -> None:
    x, bias = torch.randn(64, 33, requires_grad=True), torch.randn(33, requires_grad=True)

    def block(x: Tensor, bias: Tensor) -> Tensor:
        return fusedact.gelu(x, bias, dropout_p=0.4, residual=x).square()

    torch.manual_seed(1)
    wanted = torch.autograd.grad(block(x, bias).sum(), [x, bias])
    torch.manual_seed(1)
    checkpoint(block, x, bias, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close([x.grad, bias.grad], list(wanted), rtol=0, atol=0)


# ---- values ---------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {"scale": True},
    {"residual": True},
    {"p": 0.4},
    {"scale": True, "residual": True, "p": 0.4, "gain": 1.3},
    {"scale": True, "residual": True, "p": 0.1, "gain": 0.7, "clamp": (-0.6, 0.8)},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o))


def tensors(x: Tensor, dim: int, wanted: dict[str, Any]) -> dict[str, Any]:
    """Tensors in place of the Trues, and a seed."""
    made = dict(wanted, dim=dim)
    if wanted.get("scale"):
        made["scale"] = (torch.rand(x.size(dim) if x.dim() else 1) + 0.5).to(x.dtype)
    if wanted.get("residual"):
        made["residual"] = torch.randn(x.shape).to(x.dtype)
    if wanted.get("p"):
        made["seed"] = torch.tensor(42)
    return made


@options
@floats
def test_values_and_gradients(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Every dtype and layout against float64: one rounding in 16 bits, else one for each step."""
    for shape, dim in [((2, 3, 4, 5), 1), ((3, 70, 1, 9), 1), ((5, 2, 3, 41), -1), ((2, 2, 2, 600), 0)]:
        for name, x in layouts(torch.randn(shape).to(dtype)):
            made = tensors(x, dim, options)
            bias = torch.randn(shape[dim]).to(dtype)
            given = [x, bias, made.get("scale"), made.get("residual")]
            mine = [None if t is None else t.detach().requires_grad_() for t in given]
            theirs = [None if t is None else t.detach().double().requires_grad_() for t in given]

            def run(f: Any, t: list[Any], made: dict[str, Any] = made) -> Tensor:
                return f(t[0], t[1], "silu", **{**made, "scale": t[2], "residual": t[3]})

            y, wanted = run(epilogue, mine), run(composed, theirs)
            eps = torch.finfo(dtype).eps
            limit = {"rtol": 0.51 * eps, "atol": 4e-7} if eps > 1e-6 else {"rtol": 4 * eps, "atol": 8 * eps}
            assert y.dtype == dtype
            torch.testing.assert_close(y.double(), wanted, **limit, msg=lambda m, n=name: f"{n}: {m}")
            if name not in ("gapped", "sliced"):
                assert y.stride() == x.stride(), name
            grad = torch.randn(shape).to(dtype)
            edges = [i for i, t in enumerate(given) if t is not None]
            got = torch.autograd.grad(y, [mine[i] for i in edges], grad)
            exact = torch.autograd.grad(wanted, [theirs[i] for i in edges], grad.double())
            for g, e in zip(got, exact, strict=True):
                # Sums of up to 2400 terms; in float64 neither side is wider than what it sums.
                many = {"rtol": 0.51 * eps, "atol": 3e-5} if eps > 1e-6 else {"rtol": 0, "atol": max(3e-13, 300 * eps)}
                torch.testing.assert_close(g.double(), e, **many, msg=lambda m, n=name: f"{n}: {m}")


@rows
def test_every_row(row: Activation) -> None:
    """With float64 arithmetic, so that only the wiring can be wrong; and a tensor parameter with its gradient."""
    x = smooth_points(row, (6, 4))
    made = tensors(x, 1, OPTIONS[3])
    x = x / made["scale"]
    weight = torch.rand(4, dtype=torch.float64, requires_grad=True) if row.tensor_parameter else None
    name = row.tensor_parameter.name if row.tensor_parameter else ""
    params = {} if weight is None else {name: weight}

    def wanted(x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        y = reference.bias_act(x * scale, bias, row.name, dim=1, gain=1.3, **params)
        return y * mask(made["seed"], x, 0.4) + made["residual"]

    leaves = [
        x.detach().requires_grad_(),
        torch.zeros(4, dtype=torch.float64).requires_grad_(),
        made["scale"].requires_grad_(),
    ]
    made["weight"] = weight
    edges = leaves + ([] if weight is None else [weight])
    limits = {"rtol": 1e-10, "atol": 1e-11}
    y, truth = epilogue(leaves[0], leaves[1], row.name, **made), wanted(*leaves)
    torch.testing.assert_close(y, truth, **limits)
    grad = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, edges, grad), torch.autograd.grad(truth, edges, grad), **limits)


def test_random_rows() -> None:
    """RReLU's noise has one element for each of x."""
    x = -torch.ones(40, 6)
    y = fusedact.rrelu(x, lower=0.1, upper=0.3, training=True, residual=torch.ones(40, 6))
    assert y.min() >= 0.7
    assert y.max() <= 0.9
    assert y.std() > 0.01
    assert torch.equal(fusedact.rrelu(x, residual=x), x * (1 + (1 / 8 + 1 / 3) / 2))
    assert fusedact.rrelu(x, training=False, dropout_p=1.0).ne(0).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1,), ()], ids=str)
def test_small_shapes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    channels = shape[-1] if shape else 1
    scale, bias = torch.rand(channels, requires_grad=True), torch.rand(channels, requires_grad=True)
    y = fusedact.gelu(x, bias, scale=scale, residual=torch.ones(shape), dropout_p=0.5)
    assert y.shape == x.shape
    got = torch.autograd.grad(y.sum(), [x, bias, scale])
    assert [g.shape for g in got] == [x.shape, bias.shape, scale.shape]
    if x.numel() == 0:
        assert all(g.eq(0).all() for g in got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_vectors_beside_16_bits(dtype: torch.dtype) -> None:
    x = torch.randn(40, 70).to(dtype).requires_grad_()
    bias, scale = torch.randn(70, requires_grad=True), (torch.rand(70) + 0.5).requires_grad_()
    y = fusedact.silu(x, bias, scale=scale)
    wanted = nn.functional.silu(x.double() * scale.double() + bias.double())
    torch.testing.assert_close(y.double(), wanted, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6)
    got = torch.autograd.grad(y.sum(), [bias, scale])
    assert {g.dtype for g in got} == {torch.float32}
    torch.testing.assert_close(got, torch.autograd.grad(wanted.sum(), [bias, scale]), rtol=1e-5, atol=1e-5)


def test_sums_are_the_same_whatever_the_threads() -> None:
    for shape, dim in [((1031, 517), 1), ((7, 24, 5003), 1), ((200_011, 3), 1)]:
        x, r = torch.randn(shape), torch.randn(shape)
        vectors = [torch.randn(shape[dim]), torch.rand(shape[dim])]
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (x, *vectors)]
            y = epilogue(
                leaves[0], leaves[1], "gelu", scale=leaves[2], residual=r, seed=torch.tensor(1), p=0.2, dim=dim
            )
            results.append([y, *torch.autograd.grad(y, leaves, r)])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- derivatives ----------------------------------------------------------------------------------------------------


def problem(*names: str) -> tuple[Any, tuple[Tensor, ...]]:
    """A function of some tensors, smooth, with a fixed mask; and the tensors in float64."""
    generator = torch.Generator().manual_seed(2)
    shape = (3, 4)
    made = {
        "x": torch.randn(shape, generator=generator, dtype=torch.float64),
        "bias": torch.randn(4, generator=generator, dtype=torch.float64),
        "scale": torch.rand(4, generator=generator, dtype=torch.float64) + 0.5,
        "residual": torch.randn(shape, generator=generator, dtype=torch.float64),
    }

    def function(*tensors: Tensor, name: str = "silu", **options: Any) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        return epilogue(given.pop("x"), given.pop("bias", None), name, **given, seed=torch.tensor(8), p=0.4, **options)

    return function, tuple(made[n].requires_grad_() for n in names)


EDGES = [("x",), ("x", "bias"), ("x", "scale"), ("x", "bias", "scale", "residual")]
edges = pytest.mark.parametrize("edges", EDGES, ids="+".join)


@edges
@pytest.mark.parametrize("name", ["silu", "identity"])
def test_gradcheck(edges: tuple[str, ...], name: str) -> None:
    function, inputs = problem(*edges)
    function = functools.partial(function, name=name, gain=1.5)
    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, inputs, **modes)
    assert gradgradcheck(function, inputs, check_batched_grad=True, check_fwd_over_rev=True)


def test_gradcheck_with_a_tensor_parameter() -> None:
    x = smooth_points(fusedact.registry.get("prelu"), (5, 4)).requires_grad_()
    scale, weight = (torch.ones(4, dtype=torch.float64).requires_grad_() for _ in range(2))

    def function(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        return epilogue(x, None, "prelu", scale=scale, weight=weight, seed=torch.tensor(8), p=0.4)

    assert gradcheck(function, (x, scale, weight), check_forward_ad=True)
    assert gradgradcheck(function, (x, scale, weight))


def test_third_derivative() -> None:
    function, (x, bias, scale) = problem("x", "bias", "scale")

    def third(f: Any) -> Tensor:
        y = f(x, bias, scale)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), scale, create_graph=True)
        return y

    plain = functools.partial(composed, name="silu", seed=torch.tensor(8), p=0.4)
    torch.testing.assert_close(third(function), third(lambda x, b, s: plain(x, b, scale=s)), rtol=1e-9, atol=1e-9)


def test_the_gradient_of_the_residual_is_no_copy() -> None:
    x, r = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    seen: list[Tensor] = []
    y = fusedact.gelu(x, residual=r, dropout_p=0.5)
    y.register_hook(lambda g: seen.append(g))
    (grad,) = torch.autograd.grad(y, r, torch.ones(5))
    assert grad.data_ptr() == seen[0].data_ptr()


def test_what_is_saved() -> None:
    """The identity needs the seed alone, others the input; nobody the mask, the output or the residual."""
    packed: list[Tensor] = []
    x, b, r = torch.randn(50, 20, requires_grad=True), torch.randn(20, requires_grad=True), torch.randn(50, 20)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        fusedact.identity(x, b, residual=r, dropout_p=0.5)
        assert sum(t.numel() for t in packed) <= 1
        packed.clear()
        fusedact.gelu(x, b, residual=r, dropout_p=0.5)
    assert sorted(t.numel() for t in packed) == [1, 20, 1000]


def test_writing_over_a_saved_tensor_is_detected() -> None:
    for i in range(3):
        made = [torch.randn(4, 3, requires_grad=True), torch.randn(3), torch.rand(3)]
        held = [t * 1 for t in made]
        y = fusedact.gelu(held[0], held[1], scale=held[2])
        with torch.no_grad():
            held[i].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_the_node_has_a_name() -> None:
    y = fusedact.gelu(torch.randn(3, requires_grad=True), residual=torch.zeros(3))
    assert type(y.grad_fn).__name__ == "BiasActEpilogueBackward0"


# ---- torch.func -----------------------------------------------------------------------------------------------------


def test_vmap_follows_torchs_rules_of_randomness() -> None:
    x = torch.ones(6, 200)
    drop = functools.partial(fusedact.identity, dropout_p=0.5)
    with pytest.raises(RuntimeError, match="random"):
        torch.vmap(drop)(x)
    same = torch.vmap(drop, randomness="same")(x)
    different = torch.vmap(drop, randomness="different")(x)
    assert all(torch.equal(row, same[0]) for row in same)
    assert all(not torch.equal(different[i], different[j]) for i in range(6) for j in range(i))
    assert set(different.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("where", ["x", "bias", "scale", "residual", "all"])
def test_vmap_over_each_tensor(where: str) -> None:
    function, inputs = problem("x", "bias", "scale", "residual")
    inputs = tuple(t.detach() for t in inputs)
    names = ("x", "bias", "scale", "residual")
    chosen = [where in (name, "all") for name in names]
    batched = tuple(torch.stack([t, t + 0.5, t * 2]) if c else t for t, c in zip(inputs, chosen, strict=True))
    dims = tuple(0 if c else None for c in chosen)
    one = [tuple(t[i] if c else t for t, c in zip(batched, chosen, strict=True)) for i in range(3)]
    torch.testing.assert_close(torch.vmap(function, dims)(*batched), torch.stack([function(*o) for o in one]), **EXACT)
    every = (0, 1, 2, 3)
    jacobians = torch.vmap(torch.func.jacrev(function, every), dims)(*batched)
    for i, o in enumerate(one):
        for got, wanted in zip(jacobians, torch.func.jacfwd(function, every)(*o), strict=True):
            torch.testing.assert_close(got[i], wanted, **EXACT)


def test_per_sample_gradients_see_their_own_masks() -> None:
    """The mask of backward is that of forward, under vmap too: a gradient is 0 where, and only where, the output is."""
    x = torch.ones(5, 300)

    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        y = fusedact.identity(x, dropout_p=0.5)
        return y.sum(), y

    grad, y = torch.vmap(torch.func.grad(loss, has_aux=True), randomness="different")(x)
    assert torch.equal(grad, y)
    assert not torch.equal(y[0], y[1])


def test_hessian() -> None:
    function, inputs = problem("x", "scale")
    plain = functools.partial(composed, name="silu", seed=torch.tensor(8), p=0.4)
    x, scale = (t.detach() for t in inputs)
    mine = torch.func.hessian(lambda s: function(x, s).sum())(scale)
    theirs = torch.func.hessian(lambda s: plain(x, scale=s).sum())(scale)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


# ---- the dispatcher and compilers -----------------------------------------------------------------------------------


def test_opcheck() -> None:
    x, r = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    vector, seed = torch.rand(4, requires_grad=True), torch.tensor(3)
    rest = ("silu", (), -1, 1.5, None, None, 0.5)
    for arguments in [
        (x, vector, None, vector, r, seed, *rest),
        (x, None, None, None, r, None, *rest),
        (x, vector, None, None, None, seed, "identity", *rest[1:]),
    ]:
        torch.library.opcheck(OPS.bias_act_epilogue.default, arguments)
    cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
    asked = (True, False, True)
    arguments = (r, x, vector, None, vector, seed, *rest, *asked)
    torch.library.opcheck(OPS.bias_act_epilogue_backward.default, arguments, test_utils=cheap)
    torch.library.opcheck(OPS.dropout_mask.default, (seed, (3, 4), 0.5, torch.float32), test_utils=cheap)


def test_meta_gives_shape_dtype_and_strides() -> None:
    for name, view in layouts(torch.randn(2, 3, 4, 5)):
        scale = torch.ones(3)
        real = fusedact.gelu(view, scale=scale, dim=1, dropout_p=0.5)
        meta = fusedact.gelu(view.to("meta"), scale=scale.to("meta"), dim=1, dropout_p=0.5)
        assert (meta.shape, meta.dtype, meta.device.type) == (real.shape, real.dtype, "meta")
        with torch._subclasses.FakeTensorMode() as mode:
            fake = fusedact.gelu(mode.from_tensor(view), scale=mode.from_tensor(scale), dim=1)
        assert fake.stride() == real.stride(), name


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph(backend: str) -> None:
    def function(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return fusedact.gelu(x, bias, scale=bias * 2, residual=residual, gain=1.5, clamp=(-1.0, 1.0))

    torch._dynamo.reset()
    inputs = torch.randn(5, 4), torch.rand(4), torch.randn(5, 4)
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=True)
    torch.testing.assert_close(grads(compiled, *inputs), grads(function, *inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_dropout(backend: str) -> None:
    """A new mask each call, reproducible, and the one of forward in backward."""

    def function(x: Tensor) -> Tensor:
        return fusedact.identity(x, dropout_p=0.5)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    x = torch.ones(500, requires_grad=True)
    torch.manual_seed(4)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], first)
    assert torch.equal(torch.autograd.grad(second.sum(), x)[0], second)
    torch.manual_seed(4)
    assert torch.equal(compiled(x), first)
    if backend == "aot_eager":
        torch.manual_seed(4)
        assert torch.equal(function(x), first)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6, bias=False)
        self.end = fusedact.nn.BiasAct(6, "identity", dim=-1, dropout_p=0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.linear(x), x)


def test_module() -> None:
    block, x = Block(), torch.randn(4, 6)
    assert "dropout_p=0.25" in repr(block)
    nn.init.normal_(block.end.bias)
    torch.manual_seed(0)
    y = block(x)
    wanted = (block.linear(x) + block.end.bias) / 0.75
    kept = (y - x).abs() > 1e-6
    torch.testing.assert_close(y, torch.where(kept, wanted + x, x), rtol=1e-6, atol=1e-6)
    assert 0 < kept.sum() < 24
    block.eval()
    torch.testing.assert_close(block(x), block.linear(x) + block.end.bias + x)
    assert copy.deepcopy(block)(x).equal(block(x))


@pytest.mark.parametrize("training", [False, True])
def test_export(training: bool) -> None:
    block, x = Block().train(training), torch.randn(4, 6)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    assert any("bias_act_epilogue" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again, x = torch.export.load(file).module(), torch.randn(9, 6)
    torch.manual_seed(1)
    y = again(x)
    torch.manual_seed(1)
    torch.testing.assert_close(y, block(x))


def test_fx_traces_the_draw() -> None:
    traced = torch.fx.symbolic_trace(Block())
    assert not traced(torch.ones(2, 6)).equal(traced(torch.ones(2, 6)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """A 16-bit product, float32 vectors and a float32 residual meet in float32, as torch's own addition has it."""
    block, x = Block(), torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = block(x)
        assert y.dtype == torch.float32
        product = block.linear(x)
        z = fusedact.gelu(product, torch.randn(6), scale=torch.rand(6), residual=x.to(dtype))
        assert z.dtype == dtype
    (y.sum() + z.float().sum()).backward()
    assert x.grad.dtype == block.linear.weight.grad.dtype == block.end.bias.grad.dtype == torch.float32


def test_without_these_arguments_it_is_the_same_operator_as_before() -> None:
    x = torch.randn(3, 4)
    with Seen() as seen:
        fusedact.bias_act(x, None, "gelu", scale=None, dropout_p=0.0, training=True, residual=None)
        fusedact.gelu(x)
    assert seen.names == ["fusedact.bias_act.default"] * 2
    with Seen() as seen:
        fusedact.gelu(x.requires_grad_(), residual=x, dropout_p=0.5).sum().backward()
    assert "fusedact.bias_act_epilogue.default" in seen.names
    assert "fusedact.bias_act_epilogue_backward.default" in seen.names


def test_modes_and_subclasses() -> None:
    class Named(Tensor):
        pass

    y = fusedact.gelu(torch.randn(3).as_subclass(Named), residual=torch.zeros(3), dropout_p=0.5)
    assert type(y) is Named
    y = fusedact.gelu(torch.randn(3), residual=torch.zeros(3).as_subclass(Named))
    assert type(y) is Named


# ---- errors ---------------------------------------------------------------------------------------------------------

x = torch.zeros(8, 128, 32)
gelu = fusedact.gelu
ERRORS: list[tuple[Any, type[Exception], list[str]]] = [
    (lambda: gelu(x, dropout_p=1.5), ValueError, ["dropout_p is 1.5", r"\[0, 1\]"]),
    (lambda: gelu(x, dropout_p=-0.1), ValueError, ["dropout_p is -0.1", r"\[0, 1\]"]),
    (lambda: gelu(x, dropout_p=math.nan), ValueError, ["dropout_p is nan", r"\[0, 1\]"]),
    (lambda: gelu(x, dropout_p=2.0, training=False), ValueError, ["dropout_p is 2", r"\[0, 1\]"]),
    (lambda: gelu(x, dropout_p="a"), TypeError, ["dropout_p must be", "'a'"]),
    (lambda: gelu(x, scale=torch.ones(64), dim=1), ValueError, ["scale has 64 elements", "128 channels", "dim 1"]),
    (lambda: gelu(x, scale=torch.ones(1, 32)), ValueError, [r"scale has shape \[1, 32\]", "one dim"]),
    (lambda: gelu(x, scale=torch.ones(32).double()), TypeError, ["scale is float64", "float32"]),
    (lambda: gelu(x, scale=2.0), TypeError, ["scale must be", "Tensor", "2.0"]),
    (lambda: gelu(x, scale=torch.ones(32, device="meta")), ValueError, ["scale is on meta", r"\.to\("]),
    (lambda: gelu(x, residual=x[0]), ValueError, [r"residual has shape \[128, 32\]", r"\[8, 128, 32\]", "expand_as"]),
    (lambda: gelu(x, residual=x.bfloat16()), TypeError, ["residual is bfloat16", "float32", r"\.to\("]),
    (lambda: gelu(x, residual=1.0), TypeError, ["residual must be", "Tensor"]),
    (lambda: gelu([1.0], residual=x), TypeError, ["input must be", "Tensor"]),
    (lambda: gelu([1.0], dropout_p=0.5), TypeError, ["input must be", "Tensor"]),
    (lambda: gelu(x, residual=x, inplace=True), TypeError, ["inplace", "residual"]),
    (lambda: gelu(x, dropout_p=0.5, out=x), TypeError, ["out=", "dropout_p"]),
    (lambda: gelu(x, residual=x, save="mask"), ValueError, ["save='mask'", "save='auto'"]),
    (
        lambda: gelu(x, torch.ones(3), scale=torch.ones(5), residual=x[0], dropout_p=2.0, dim=1),
        ValueError,
        ["4 problems", "bias has 3", "scale has 5", "residual has shape", "dropout_p is 2"],
    ),
    (
        lambda: epilogue(x, seed=torch.tensor([1]), p=0.5),
        TypeError,
        [r"seed is int64 of shape \[1\]", "without dims"],
    ),
    (lambda: OPS.dropout_mask(torch.tensor(1.0), (3,), 0.5, torch.half), TypeError, ["2 problems", "seed", "dtype"]),
    (lambda: fusedact.nn.BiasAct(4, dropout_p=1.5), ValueError, ["dropout_p", "1.5", r"\[0, 1\]"]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: "+".join(e[2])[:50])
def test_errors(error: tuple[Any, type[Exception], list[str]]) -> None:
    make, exception, patterns = error
    with pytest.raises(exception) as raised:
        make()
    for pattern in patterns:
        raised.match(pattern)
