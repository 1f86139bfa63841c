"""The tables `quantization` and `adam8bit`: bytes counted as stored, the library's layers, curves compared."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from labkit.bench import adam8bit as adam
from labkit.bench import quantization as bench
from labkit.bench.record import names
from labkit.ledger import MIB, Ledger
from labkit.numerics.quantize import Linear4bit
from labkit.numerics.quantize.evaluate import RECIPES
from labkit.run import Run
from labkit.scale import SCALES

OUT, IN = 96, 128
COUNT = OUT * IN


def dense(bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(IN, OUT, bias=bias, dtype=dtype)


def model() -> torch.nn.Module:
    """Two linear layers that are quantized, and a head that is not."""
    torch.manual_seed(4)
    return torch.nn.ModuleDict({"up": dense(), "down": dense(), "lm_head": torch.nn.Linear(8, 4, bias=False)})


def test_a_dense_layer_stores_its_parameters_and_a_shared_one_counts_once():
    assert bench.stored_bytes(dense(bias=True)) == 2 * (COUNT + OUT)
    shared = torch.nn.ModuleList([dense()] * 2)
    shared.append(torch.nn.Linear(IN, OUT, bias=False))
    shared[2].weight = shared[0].weight
    assert bench.stored_bytes(shared) == 2 * COUNT


BLOCKS = COUNT // 64
EXPLICIT = {
    "int8-tensor": COUNT + 4,
    "int8-row": COUNT + 4 * OUT,
    "llm.int8": COUNT + 4 * OUT,
    "int4": COUNT // 2 + 4 * BLOCKS,
    "fp4": COUNT // 2 + 4 * BLOCKS,
    "nf4": COUNT // 2 + 4 * BLOCKS,
    "nf4+dq": COUNT // 2 + BLOCKS + 4 * math.ceil(BLOCKS / 256) + 4,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_our_layers_store_what_the_formula_says(recipe):
    assert bench.stored_bytes(RECIPES[recipe](dense())) == EXPLICIT[recipe]


@pytest.mark.parametrize("recipe", ["int8", "fp4", "nf4", "nf4+dq"])
def test_the_librarys_layers_are_counted_with_the_constants_beside_their_parameters(recipe):
    pytest.importorskip("bitsandbytes")
    layer = bench.library_recipes()[f"bitsandbytes.{recipe}"](dense())
    expected = EXPLICIT["llm.int8" if recipe == "int8" else recipe]
    assert bench.stored_bytes(layer) == expected
    assert sum(p.nbytes for p in layer.parameters()) < expected, "the constants are what must not be forgotten"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("recipe", ["int8", "fp4", "nf4", "nf4+dq"])
def test_the_librarys_layers_compute_what_ours_do(recipe, bias):
    pytest.importorskip("bitsandbytes")
    layer = dense(bias)
    theirs = bench.library_recipes()[f"bitsandbytes.{recipe}"](layer)
    ours = RECIPES["llm.int8" if recipe == "int8" else recipe](layer)
    x = torch.randn(20, IN, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[:, 5] *= 20  # an outlier column: a layer without the decomposition would be far off
    with torch.no_grad():
        exact, a, b = layer(x).float(), ours(x).float(), theirs(x.clone()).float()
    assert (a - b).norm() < 0.35 * (a - exact).norm()
    assert not theirs.training and not any(p.requires_grad for p in theirs.parameters() if p is theirs.weight)


def test_library_recipes_are_none_without_the_library(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench.library_recipes() == {}
    assert set(adam._methods(SCALES["tiny"])) == {"adamw", "adam8bit"}


def test_a_copy_is_quantized_its_layers_counted_and_the_original_left():
    original = model()
    before = {name: p.clone() for name, p in original.named_parameters()}
    smaller, held, count = bench._with(original, RECIPES["nf4"])
    assert count == 2 * COUNT and held == 2 * EXPLICIT["nf4"]
    assert isinstance(smaller["up"], Linear4bit) and type(smaller["lm_head"]) is torch.nn.Linear
    assert all(torch.equal(p, before[name]) for name, p in original.named_parameters())
    _, held, count = bench._with(original, None)
    assert 8 * held / count == 16


def test_kernel_times_are_missing_with_a_reason_on_a_cpu():
    missing = bench._times("nf4+dq", "cpu")
    assert "GPU" in missing.pop("note") and set(missing.values()) == {None}
    assert set(bench._times("int4", "cuda").values()) == {None}, "only the recipe that the library times as well"


def test_published_figures_have_sources_and_the_tables_their_names():
    assert {row["method"] for row in bench.PUBLISHED} >= {"BF16", "QLoRA Int8", "QLoRA FP4", "QLoRA NF4 + DQ"}
    for row in [*bench.PUBLISHED, *adam.PUBLISHED]:
        assert "arXiv" in row["source"]
    lecture = next(row for row in bench.PUBLISHED if row["method"] == "QLoRA FP4")
    assert list(lecture.values())[1:7] == [88.6, 40.3, 42.4, 47.5, 55.6, 60.9]
    assert {"quantization", "adam8bit"} <= set(names())


# --- adam8bit ---------------------------------------------------------------------------------------------------------


def test_curves_are_compared_with_the_spread_of_the_reference_seeds():
    reference = [[1.0, 2.0, 3.0], [1.2, 2.2, 3.0]]  # mean 1.1, 2.1, 3.0; spread 0.2, 0.2, 0
    mine = [[1.1, 2.1, 3.1], [1.1, 2.3, 3.3]]  # mean 1.1, 2.2, 3.2: gaps 0, 0.1, 0.2
    facts = adam._compared(mine, reference)
    assert facts["curve"] == [1.1, 2.2, 3.2]
    assert (facts["curve_low"], facts["curve_high"]) == ([1.1, 2.1, 3.1], [1.1, 2.3, 3.3])
    assert (facts["gap_nats"], facts["spread_nats"]) == (0.2, 0.0), "the spread is that of the worst step"
    assert facts["within_spread"] == round(2 / 3, 4)
    near = adam._compared([[1.15, 2.1, 3.0]] * 2, reference)
    assert (near["gap_nats"], near["spread_nats"], near["within_spread"]) == (0.05, 0.2, 1.0)


def test_the_reference_has_no_gap_and_its_mean_spread():
    reference = [[1.0, 2.0], [1.2, 2.4], [1.1, 2.0]]
    facts = adam._compared(reference, reference)
    assert facts["gap_nats"] is None and facts["within_spread"] is None
    assert facts["spread_nats"] == pytest.approx((0.2 + 0.4) / 2)


def made(accuracy: float, end: float) -> Run:
    ledger = Ledger({"optimizer_states": 2 * MIB}, {"optimizer_states": 3 * MIB})
    run = Run("full", "tiny", "sentiment", losses=[9.0] * 20 + [end] * 10, ledger=ledger)
    run.evaluations.append({"step": 30, "accuracy": accuracy, "loss": end + 0.1})
    run.step_seconds, run.trainable_params = [9.0, 9.0], 7
    return run


def test_a_row_is_the_mean_over_seeds_with_predicted_and_measured_bytes():
    alone = made(0.1, 7.0)
    alone.step_seconds, alone.ledger.peak_allocated = [0.5, 0.1, 0.1], 5 * MIB
    row = adam._row(alone, [made(0.8, 0.3), made(0.9, 0.5)])
    assert (row["loss"], row["eval_loss"], row["accuracy"]) == (0.4, 0.5, 0.85)
    assert row["accuracy_std"] == round(statistics.stdev([0.8, 0.9]), 4)
    assert (row["optimizer_states_mib"], row["predicted_mib"]) == (3.0, 2.0)
    assert (row["peak_allocated_mib"], row["step_ms"]) == (5.0, 100.0), "of the run that had the machine to itself"
    alone.ledger.peak_allocated = None
    assert adam._row(alone, [made(0.8, 0.3)] * 2)["peak_allocated_mib"] is None


def test_the_librarys_optimizer_is_a_method_of_the_same_training():
    optim = pytest.importorskip("bitsandbytes").optim
    methods = {name: make() for name, make in adam._methods(SCALES["tiny"]).items()}
    assert [m.name for m in methods.values()] == ["full", "adam8bit", "bitsandbytes.AdamW8bit"]
    weights = [torch.nn.Parameter(torch.randn(80, 80))]
    built = methods["bitsandbytes.AdamW8bit"].build_optimizer(weights)
    assert isinstance(built, optim.AdamW8bit)
    group = built.param_groups[0]
    ours = methods["adam8bit"].build_optimizer(weights).param_groups[0]
    assert [group[k] for k in ("lr", "betas", "eps", "weight_decay")] == [
        ours[k] for k in ("lr", "betas", "eps", "weight_decay")
    ]


def test_every_column_of_a_row_that_is_a_quantity_has_its_unit():
    row = {**adam._row(made(0.8, 0.3), [made(0.9, 0.5)] * 2), **adam._compared([[1.0], [2.0]], [[1.0], [2.0]])}
    plain = {"trainable_params"}
    assert set(row) - plain <= set(adam.UNITS)
    assert set(bench._times("nf4+dq", "cpu")) - {"note"} <= set(bench.UNITS)
