"""Emulated products against fp64 rounded once, against torch's own 16-bit kernels, and nothing else touched."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from labkit.numerics.formats import spacing
from labkit.numerics.products import EmulatedProducts, products_in
from labkit.numerics.rounding import round_nearest

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
FORMATS = tuple(DTYPES)


def drawn(*shape: int, fmt: str, seed: int = 0, size: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size).to(DTYPES[fmt])


def exact(x: torch.Tensor, fmt: str) -> torch.Tensor:
    """The operand as the tensor core reads it, in fp64."""
    return (round_nearest(x, "tf32") if fmt == "tf32" else x).double()


def assert_rounded_once(found: torch.Tensor, reference: torch.Tensor, fmt: str, magnitude: torch.Tensor) -> None:
    """Within half a unit in the last place of the format, and what fp32 sums of such magnitudes are off."""
    assert found.dtype == DTYPES[fmt]
    unit = spacing(reference, "fp32" if fmt == "tf32" else fmt) / 2
    wrong = (found.double() - reference).abs() > unit * 1.0001 + magnitude * 2.0**-22
    assert not bool(wrong.any()), (found.double() - reference)[wrong]


PRODUCTS = {
    "mm": (lambda a, b, c: a @ b, (6, 40), (40, 5)),
    "bmm": (lambda a, b, c: a @ b, (3, 6, 40), (3, 40, 5)),
    "matmul": (lambda a, b, c: a @ b, (2, 3, 6, 40), (40, 5)),
    "linear": (lambda a, b, c: F.linear(a, b.t()), (2, 6, 40), (40, 5)),
    "mv": (lambda a, b, c: a @ b[:, 0], (6, 40), (40, 5)),
    "dot": (lambda a, b, c: a[0] @ b[:, 0], (6, 40), (40, 5)),
    "einsum": (lambda a, b, c: torch.einsum("ij,jk->ki", a, b), (6, 40), (40, 5)),
    "addmm": (lambda a, b, c: torch.addmm(c, a, b), (6, 40), (40, 5)),
    "addmm, scaled": (lambda a, b, c: torch.addmm(c, a, b, beta=0.5, alpha=-2.0), (6, 40), (40, 5)),
    "baddbmm": (lambda a, b, c: torch.baddbmm(c, a, b), (3, 6, 40), (3, 40, 5)),
    "addbmm": (lambda a, b, c: torch.addbmm(c, a, b), (3, 6, 40), (3, 40, 5)),
    "addmv": (lambda a, b, c: torch.addmv(c[:1].expand(6), a, b[:, 0]), (6, 40), (40, 5)),
}


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_fp64_rounded_once(name, fmt, inference):
    call, left, right = PRODUCTS[name]
    a, b, c = drawn(*left, fmt=fmt), drawn(*right, fmt=fmt, seed=1), drawn(5, fmt=fmt, seed=2, size=3.0)
    with torch.inference_mode(inference), EmulatedProducts(fmt):
        found = call(a, b, c)
    wide = exact(a, fmt), exact(b, fmt), c.double()  # a bias is no operand
    assert_rounded_once(found, call(*wide), fmt, call(*(x.abs() for x in wide)).abs() + 3)
    assert not torch.equal(found, call(a.float(), b.float(), c.float())), "as if nothing had been rounded"


@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_torchs_own_16_bit_kernels_agree_to_rounding(name, fmt):
    call, left, right = PRODUCTS[name]
    a, b, c = drawn(*left, fmt=fmt), drawn(*right, fmt=fmt, seed=1), drawn(5, fmt=fmt, seed=2)
    own = call(a, b, c)
    with EmulatedProducts(fmt):
        found = call(a, b, c)
    # Some of its kernels round between the product and the bias, or between the parts of a sum.
    magnitude = call(a.double().abs(), b.double().abs(), c.double().abs()).abs() + 1
    eps = torch.finfo(DTYPES[fmt]).eps
    assert bool(((found.double() - own.double()).abs() <= 2 * eps * magnitude).all())


def test_a_sum_is_kept_in_fp32_and_not_in_16_bits():
    ones = torch.ones(1, 4096, dtype=torch.bfloat16)
    with EmulatedProducts("bf16"):
        assert (ones @ ones.t()).item() == 4096  # added up in bf16 it would stay at 256
    large = torch.tensor([[60000.0, 60000.0, -60000.0]], dtype=torch.float16)
    with EmulatedProducts("fp16"):
        assert (large @ torch.ones(3, 1, dtype=torch.float16)).item() == 60000.0
        assert (large[:, :2] @ torch.ones(2, 1, dtype=torch.float16)).item() == torch.inf
        tiny = torch.full((1, 9), 2.0**-14, dtype=torch.float16)
        assert (tiny[:, :8] @ tiny[:, :8].t()).item() == 0.0  # 2^-25, half of the smallest subnormal
        assert (tiny @ tiny.t()).item() == 2.0**-24  # each of the nine products underflows alone


def attention(q, k, v, mask, causal):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def by_hand(q, k, v, mask, causal):
    """Attention in the dtype of its arguments, with every step differentiable."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


MASKS = {
    "none": (None, False),
    "causal": (None, True),
    "bool": (torch.ones(1, 1, 9, 9, dtype=torch.bool).tril(1), False),
    "float": (torch.linspace(-3, 0, 81).view(1, 1, 9, 9), False),
}


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_attention_equals_fp64_to_rounding_of_its_output(fmt, mask, inference):
    chosen, causal = MASKS[mask]
    chosen = chosen.to(DTYPES[fmt]) if mask == "float" else chosen
    q, k, v = (drawn(2, 3, 9, 16, fmt=fmt, seed=s, size=2.0) for s in range(3))
    with torch.inference_mode(inference), EmulatedProducts(fmt):
        found = attention(q, k, v, chosen, causal)
    wide = [exact(x, fmt) for x in (q, k, v)]
    reference = by_hand(*wide, chosen.double() if mask == "float" else chosen, causal)
    assert_rounded_once(found, reference, fmt, torch.tensor(8.0))


def gradients_of(call, tensors, seed_like):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = call(*leaves)
    out.backward(seed_like.to(out.dtype))
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("name", ["mm", "bmm", "linear", "addmm", "baddbmm"])
def test_gradients_of_products_are_fp64_rounded_once(name, fmt):
    call, left, right = PRODUCTS[name]
    tensors = [drawn(*left, fmt=fmt), drawn(*right, fmt=fmt, seed=1), drawn(*left[:-1], 5, fmt=fmt, seed=2)]
    used = tensors if name.endswith(("addmm", "baddbmm")) else tensors[:2]
    fill = (lambda *t: call(*t)) if len(used) == 3 else (lambda *t: call(*t, None))
    upstream = drawn(*left[:-1], 5, fmt=fmt, seed=3)
    with EmulatedProducts(fmt):
        found = gradients_of(fill, used, upstream)
    wide = [exact(t, fmt) for t in used[:2]] + [t.double() for t in used[2:]]
    reference = gradients_of(fill, wide, exact(upstream, fmt))
    magnitude = gradients_of(fill, [w.abs() for w in wide], exact(upstream, fmt).abs())
    for place, (mine, theirs, size) in enumerate(zip(found, reference, magnitude, strict=True)):
        # The bias gets the upstream gradient itself, which no product has read.
        assert_rounded_once(mine, upstream.double() if place == 2 else theirs, fmt, size)


@pytest.mark.parametrize("mask", ["none", "causal", "bool"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_gradients_of_attention_equal_fp64_to_rounding(fmt, mask):
    chosen, causal = MASKS[mask]
    tensors = [drawn(2, 3, 9, 16, fmt=fmt, seed=s) for s in range(3)]
    upstream = drawn(2, 3, 9, 16, fmt=fmt, seed=3)
    with EmulatedProducts(fmt):
        found = gradients_of(lambda *t: attention(*t, chosen, causal), tensors, upstream)
    wide = [exact(t, fmt) for t in tensors]
    reference = gradients_of(lambda *t: by_hand(*t, chosen, causal), wide, exact(upstream, fmt))
    eps = 2.0**-22 if fmt == "tf32" else torch.finfo(DTYPES[fmt]).eps
    for mine, theirs in zip(found, reference, strict=True):
        assert mine.dtype == DTYPES[fmt]
        # Its backward reads the output as it was rounded, so that an error of one rounding comes in there.
        torch.testing.assert_close(mine.double(), theirs, rtol=eps, atol=8 * eps)


@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
def test_torchs_own_attention_agrees_to_rounding(fmt):
    tensors = [drawn(2, 3, 9, 16, fmt=fmt, seed=s) for s in range(3)]
    upstream = drawn(2, 3, 9, 16, fmt=fmt, seed=3)
    own = gradients_of(lambda *t: attention(*t, None, True), tensors, upstream)
    with EmulatedProducts(fmt):
        found = gradients_of(lambda *t: attention(*t, None, True), tensors, upstream)
    for mine, theirs in zip(found, own, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2**-6, atol=0.1 if fmt == "bf16" else 0.02)


def test_in_tf32_a_mask_of_the_lowest_number_does_not_become_infinite():
    """Rounded to tf32, fp32's lowest number is minus infinity, and a row of nothing else is NaN."""
    q = drawn(1, 1, 4, 8, fmt="tf32")
    mask = torch.full((1, 1, 4, 4), torch.finfo(torch.float32).min)
    with EmulatedProducts("tf32"):
        assert bool(attention(q, q, q, mask, False).isfinite().all())


def test_values_that_are_read_are_not_changed():
    for fmt in FORMATS:
        a, b = drawn(4, 4, fmt=fmt), drawn(4, 4, fmt=fmt, seed=1)
        before = a.clone(), b.clone()
        with EmulatedProducts(fmt):
            a @ b
        assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.parametrize("fmt", FORMATS)
def test_other_operations_and_formats_are_torchs_own(fmt):
    x = drawn(6, 6, fmt=fmt)
    others = {torch.float64, *DTYPES.values(), torch.float32} - {DTYPES[fmt]}
    calls = [
        torch.exp, torch.relu, lambda t: t.softmax(-1), lambda t: t.sum(), lambda t: t * t, lambda t: t.norm(),
        lambda t: F.layer_norm(t, (6,)), lambda t: t.cumsum(0), lambda t: t.to(torch.float32), lambda t: t[:2].t(),
        lambda t: F.embedding(torch.tensor([0, 3]), t), lambda t: F.silu(t), lambda t: t.float().mean(),
    ]  # fmt: skip
    for inference in (False, True):
        with torch.inference_mode(inference):
            for call in calls:
                plain = call(x)
                with EmulatedProducts(fmt):
                    inside = call(x)
                assert inside.dtype == plain.dtype and torch.equal(inside, plain)
            for dtype in others:
                y = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
                plain = y @ y
                with EmulatedProducts(fmt):
                    assert torch.equal(y @ y, plain)


def test_integers_are_multiplied_as_ever():
    whole = torch.arange(9).view(3, 3)
    for fmt in FORMATS:
        with EmulatedProducts(fmt):
            assert torch.equal(whole @ whole, torch.tensor([[15, 18, 21], [42, 54, 66], [69, 90, 111]]))


def test_a_result_tensor_that_is_given_is_filled():
    a, b = drawn(4, 5, fmt="fp16"), drawn(5, 3, fmt="fp16", seed=1)
    out, added = torch.zeros(4, 3, dtype=torch.float16), torch.zeros(4, 3, dtype=torch.float16)
    with EmulatedProducts("fp16"):
        torch.mm(a, b, out=out)
        added.addmm_(a, b)
        torch.testing.assert_close(out, a @ b)
    assert torch.equal(out, added) and out.abs().sum() > 0


def test_what_torch_refuses_is_refused():
    half, single = drawn(4, 4, fmt="fp16"), drawn(4, 4, fmt="tf32")
    for fmt in FORMATS:
        for call in (
            lambda: half @ single,
            lambda: single @ half,
            lambda: torch.addmm(single, half, half),
            lambda: half @ half[:3],
        ):
            with EmulatedProducts(fmt), pytest.raises(RuntimeError):
                call()


def test_autocast_products_are_emulated_too():
    layer, x = torch.nn.Linear(40, 6), torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    with products_in("fp16", "cpu"), torch.autocast("cpu", torch.float16):
        found = layer(x)
    assert found.dtype == torch.float16
    reference = x.half().double() @ layer.weight.half().double().t() + layer.bias.half().double()
    assert_rounded_once(found, reference, "fp16", torch.tensor(4.0))


def test_the_mode_ends_with_its_block_even_after_an_error():
    a = drawn(40, 40, fmt="tf32")
    plain = a @ a
    with pytest.raises(ZeroDivisionError), products_in("tf32", "cpu"):
        assert not torch.equal(a @ a, plain)
        1 / 0  # noqa: B018
    assert torch.equal(a @ a, plain)
