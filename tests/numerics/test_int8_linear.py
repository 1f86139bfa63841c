"""Absmax int8 and LLM.int8(): against definitions, against bitsandbytes, and at the edges."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from labkit.errors import LabError, UnknownNameError
from labkit.ledger import saved_for_backward
from labkit.numerics.quantize import QuantizeError
from labkit.numerics.quantize.int8 import (
    GROUPS,
    Linear8bit,
    int8_matmul,
    outlier_columns,
    quantize_absmax,
    scaled_matmul,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(scope="module")
def library():
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return pytest.importorskip("bitsandbytes")


# --- absmax -----------------------------------------------------------------------------------------------------------


def test_codes_and_values_of_a_tensor_by_hand():
    stored = quantize_absmax(torch.tensor([0.0, 1.0, -2.54, 0.005, 0.0149, 0.03]))
    assert stored.codes.tolist() == [0, 50, -127, 0, 1, 2]
    assert stored.absmax.tolist() == pytest.approx([2.54])
    assert stored.dequantize().tolist() == pytest.approx([0, 1.0, -2.54, 0, 0.02, 0.04])


def test_ties_go_to_even_as_in_bitsandbytes():
    assert quantize_absmax(torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5])).codes.tolist() == [127, 0, 2, 2, 0]


@pytest.mark.parametrize("per", GROUPS)
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 64), (3, 4, 50)])
def test_no_value_is_off_by_more_than_half_a_step_of_its_group(per, shape):
    x = normal(*shape)
    stored = quantize_absmax(x, per, 16)
    flat = x.flatten()
    groups = {"tensor": [flat], "row": list(x.reshape(-1, shape[-1])), "block": flat.split(16)}[per]
    assert stored.absmax.flatten().tolist() == [g.abs().max().item() for g in groups]
    bound = torch.cat([g.abs().max().expand(len(g)) for g in groups]) / 254
    assert ((stored.dequantize().flatten() - flat).abs() <= bound * (1 + 1e-5)).all()
    assert stored.bytes == x.numel() + 4 * len(groups)
    assert stored.codes.abs().max() == 127


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=70), st.sampled_from(GROUPS))
def test_any_finite_tensor_comes_back_finite_and_near(values, per):
    x = torch.tensor(values)
    back = quantize_absmax(x, per, 8).dequantize()
    assert back.isfinite().all()
    assert ((back - x).abs().double() <= x.abs().max().double() / 254 * (1 + 1e-5) + 1e-36).all()


def test_quantizing_again_changes_nothing():
    once = quantize_absmax(normal(9, 40), "row")
    again = quantize_absmax(once.dequantize(), "row")
    assert torch.equal(once.codes, again.codes)


def test_zeros_and_what_float32_cannot_invert_become_zero():
    for x in (torch.zeros(4, 4), torch.full((4, 4), 1e-40)):
        stored = quantize_absmax(x, "row")
        assert not stored.codes.any() and not stored.dequantize().any()


def test_the_dtype_is_kept_and_can_be_chosen():
    stored = quantize_absmax(normal(4, 8, dtype=torch.bfloat16))
    assert stored.dequantize().dtype == torch.bfloat16
    assert stored.dequantize(torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.empty(0, 3), "nothing to quantize"),
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.tensor([1.0, float("-inf")]), "infinity"),
        (torch.tensor([1, 2]), "floating-point"),
    ],
)
def test_what_has_no_code_is_refused(x, said):
    for per in GROUPS:
        with pytest.raises(QuantizeError, match=said):
            quantize_absmax(x, per)


def test_unknown_groups_and_empty_blocks_are_refused():
    with pytest.raises(UnknownNameError, match="'row'"):
        quantize_absmax(torch.ones(3), "rows")
    with pytest.raises(QuantizeError, match="0 values"):
        quantize_absmax(torch.ones(3), "block", 0)


# --- the integer product ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 7), (33, 1024, 8), (4, 5000, 6)])
def test_the_integer_product_is_exact(m, k, n):
    draw = torch.Generator().manual_seed(m)
    a, b = (torch.randint(-127, 128, (rows, k), generator=draw, dtype=torch.int8) for rows in (m, n))
    assert torch.equal(int8_matmul(a, b), (a.long() @ b.long().t()).int())


def test_the_integer_product_is_exact_at_its_largest_and_under_autocast():
    a, b = torch.full((2, 3000), 127, dtype=torch.int8), torch.full((1, 3000), -127, dtype=torch.int8)
    b[0, 0] = -126  # the sum is odd and beyond 2^24: one float32 sum would round it
    assert int8_matmul(a, b).tolist() == [[-127 * 127 * 3000 + 127]] * 2
    layer, x = Linear8bit(normal(16, 3000)), normal(2, 3000, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer(x)
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, layer(x.bfloat16()))


def test_the_integer_product_refuses_other_dtypes_and_shapes():
    good = torch.zeros(2, 3, dtype=torch.int8)
    for bad in (torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int8), torch.zeros(3, dtype=torch.int8)):
        with pytest.raises(QuantizeError, match="integer product"):
            int8_matmul(good, bad)


# --- LLM.int8() -------------------------------------------------------------------------------------------------------


def with_outliers(rows: int = 40, features: int = 96) -> torch.Tensor:
    x = normal(rows, features, seed=3)
    x[:, 11] *= 20
    x[5, 70] = -6.0  # exactly at the threshold counts as an outlier
    return x


def test_outlier_columns_are_those_at_or_beyond_the_threshold():
    x = with_outliers()
    assert outlier_columns(x).tolist() == [11, 70]
    assert outlier_columns(x.view(5, 8, 96)).tolist() == [11, 70]
    assert outlier_columns(x, 1000.0).tolist() == []


def test_the_product_is_the_sum_of_its_two_parts():
    x, w = with_outliers(), normal(24, 96, seed=4)
    stored = quantize_absmax(w, "row")
    columns = outlier_columns(x)
    inner = quantize_absmax(x.masked_fill(x.abs() >= 6, 0.0), "row")
    codes = inner.codes.clone()
    codes[:, columns] = 0
    eight = (codes.double() * inner.absmax[:, None] / 127) @ stored.dequantize(torch.float64).t()
    sixteen = x[:, columns].double() @ stored.dequantize(torch.float64)[:, columns].t()
    torch.testing.assert_close(scaled_matmul(x, stored).double(), eight + sixteen, rtol=1e-5, atol=1e-4)


def test_the_decomposition_is_what_saves_the_quiet_columns():
    x, w = with_outliers(), normal(24, 96, seed=4)
    exact = x @ w.t()
    layers = {t: Linear8bit(w, threshold=t) for t in (6.0, None)}
    error = {t: (layer(x) - exact).abs().mean() for t, layer in layers.items()}
    weights_only = (x @ layers[6.0].weight.dequantize().t() - exact).abs().mean()
    assert error[None] > 2 * error[6.0]
    assert error[6.0] < 1.5 * weights_only


def test_one_constant_a_tensor_is_worse_than_one_a_row():
    x, w = normal(40, 96) * torch.logspace(-2, 0, 40)[:, None], normal(24, 96, seed=4)
    exact = x @ w.t()

    def error(per: str) -> torch.Tensor:
        return ((Linear8bit(w, threshold=None, per=per)(x) - exact).norm(dim=1) / exact.norm(dim=1)).mean()

    assert error("tensor") > 3 * error("row")


def test_a_threshold_below_everything_multiplies_in_full_precision():
    x, w = normal(8, 32), normal(16, 32, seed=1)
    layer = Linear8bit(w, threshold=1e-9)
    torch.testing.assert_close(layer(x), x @ layer.weight.dequantize().t())


def test_the_gradient_to_the_input_is_that_of_the_dequantized_weight():
    x, w, b = with_outliers().requires_grad_(), normal(24, 96, seed=4), normal(24)
    layer = Linear8bit(w, b)
    layer.bias.requires_grad_(True)
    with saved_for_backward(layer) as saved:
        out = layer(x.view(5, 8, 96))
    pull = normal(5, 8, 24, seed=9)
    out.backward(pull)
    torch.testing.assert_close(x.grad, pull.view(40, 24) @ layer.weight.dequantize())
    torch.testing.assert_close(layer.bias.grad, pull.view(40, 24).sum(0))
    assert saved["activations"] == 0, "nothing but the codes may be kept for the backward pass"


@pytest.mark.parametrize("shape", [(32,), (3, 32), (2, 3, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes_are_those_of_a_linear_layer(shape, dtype):
    layer = Linear8bit.of(torch.nn.Linear(32, 16).to(dtype))
    out = layer(normal(*shape, dtype=dtype))
    assert out.shape == (*shape[:-1], 16) and out.dtype == dtype


def test_moving_to_another_dtype_leaves_codes_and_constants():
    layer = Linear8bit(normal(16, 32), normal(16))
    before = layer.weight.dequantize()
    layer.to(torch.bfloat16)
    assert layer.absmax.dtype == torch.float32 and layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.weight.dequantize(), before)


def test_bytes_are_those_of_the_buffers_and_the_state_survives_saving(tmp_path):
    layer = Linear8bit(normal(16, 32))
    assert layer.weight.bytes == sum(b.nbytes for b in layer.buffers()) == 16 * 32 + 16 * 4
    assert layer.weight.bits_per_parameter == 8 + 32 / 32
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = Linear8bit(torch.ones(16, 32))
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert torch.equal(other(normal(3, 32)), layer(normal(3, 32)))


def test_bad_layers_and_inputs_are_refused():
    layer = Linear8bit(normal(16, 32))
    for make in (
        lambda: Linear8bit(normal(4)),
        lambda: Linear8bit(normal(4, 4), per="block"),
        lambda: Linear8bit(normal(4, 4), threshold=0.0),
        lambda: Linear8bit(torch.full((4, 4), float("nan"))),
        lambda: layer(torch.empty(0, 32)),
        lambda: layer(normal(2, 31)),
        lambda: layer(torch.full((1, 32), float("inf"))),
        lambda: scaled_matmul(normal(2, 32), quantize_absmax(normal(16, 32), "block")),
    ):
        with pytest.raises(LabError):
            make()


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_and_constants_equal_bitsandbytes(library, dtype):
    w = normal(48, 96, dtype=dtype)
    codes, constants, _ = library.functional.int8_vectorwise_quant(w.to(torch.float16))
    stored = quantize_absmax(w, "row")
    assert torch.equal(stored.codes, codes) and torch.equal(stored.absmax, constants)
    theirs = library.functional.int8_vectorwise_dequant(codes, constants)
    torch.testing.assert_close(stored.dequantize(torch.float32), theirs, rtol=2**-22, atol=0)


@pytest.mark.parametrize("threshold", [None, 6.0])
def test_the_layer_equals_linear8bitlt(library, threshold):
    """In eval mode; in train mode on a CPU bitsandbytes leaves the decomposition out."""
    x, w, b = with_outliers().half(), normal(24, 96, seed=4, dtype=torch.float16), normal(24, dtype=torch.float16)
    theirs = library.nn.Linear8bitLt(96, 24, has_fp16_weights=False, threshold=threshold or 0.0)
    theirs.weight.data, theirs.bias.data = w.clone(), b.clone()
    theirs = theirs.to("cpu").eval()
    ours = Linear8bit(w, b, threshold)
    got, expected = ours(x), theirs(x.clone())
    # one unit in the last place of fp16 (of a part, up to 16): the two constants (see the module) differ
    torch.testing.assert_close(got, expected, rtol=2**-10, atol=2**-6)
    assert torch.equal(ours.codes, theirs.weight.data)
    plain = F.linear(x.float(), w.float(), b.float())
    assert (got - expected).abs().max() < 0.2 * (got - plain).abs().max()


def test_the_gradient_equals_linear8bitlt(library):
    x, w = with_outliers().half(), normal(24, 96, seed=4, dtype=torch.float16)
    theirs = library.nn.Linear8bitLt(96, 24, bias=False, has_fp16_weights=False, threshold=6.0)
    theirs.weight.data = w.clone()
    theirs = theirs.to("cpu").eval()
    pull, gradients = normal(40, 24, dtype=torch.float16), []
    for layer in (theirs, Linear8bit(w)):
        leaf = x.clone().requires_grad_()
        layer(leaf).backward(pull)
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=2**-9, atol=2**-7)
