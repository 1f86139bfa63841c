"""The numbers of the literature, the cache of generation, sharding, and the file for Perfetto."""

import json
from dataclasses import replace

import pytest
import torch
from decoders import llama, opt, wide_llama
from transformers import AutoModelForCausalLM

from labkit import published
from labkit.errors import LabError
from labkit.ledger.case import Case
from labkit.ledger.perfetto import MIB, export
from labkit.ledger.predict import gradients, kv_cache, predict, standing
from labkit.ledger.shapes import Architecture
from labkit.memory.step import trace
from labkit.parallel.zero_formula import bytes_by_category

BIG = Architecture.of(published.config("llama-65b"))


def bytes_a_parameter(**options) -> float:
    case = Case(BIG, 1, 8, **options)
    return (sum(standing(case, 1).values()) - 64 + gradients(case, 1)) / BIG.parameters


def test_bytes_a_parameter():
    assert bytes_a_parameter() == pytest.approx(16, abs=1e-3)
    assert bytes_a_parameter(weights="bfloat16") == pytest.approx(8, abs=1e-3)
    assert bytes_a_parameter(weights="bfloat16", master=True) == pytest.approx(18, abs=1e-3)
    assert bytes_a_parameter(optimizer="adamw8bit") == pytest.approx(4 + 4 + 2 + 8 / 256, abs=1e-3)
    assert bytes_a_parameter(optimizer="sgd") == pytest.approx(8, abs=1e-3)
    # 16-bit weights and gradients, fp32 master weights and moments: QLoRA's "more than 780 GB" is at least 12 N.
    assert 780e9 < 12 * BIG.parameters < 790e9


def test_stages_shard_what_they_say():
    alone = standing(Case(BIG, 1, 8, weights="bfloat16", master=True))
    for stage in (0, 1, 2, 3):
        case = Case(BIG, 1, 8, weights="bfloat16", master=True, stage=stage, world_size=8)
        found = standing(case)
        for name, first in (("optimizer_states", 1), ("master_weights", 1), ("weights", 3)):
            assert found[name] == -(-alone[name] // (8 if stage >= first else 1)), (stage, name)
        if stage:  # without stages gradients become fp32 all at once
            formula = bytes_by_category(stage, BIG.parameters, 8)
            assert gradients(case) == pytest.approx(formula["gradients"], rel=1e-4)


def test_torchs_fully_shard_holds_masters_only_and_adapters_four_times():
    """16 Ψ/N for all weights, 2 Ψ/N and 16 ψ/N for adapters; and weights that are gathered while a block computes."""
    case = Case(BIG, 1, 8, weights="bfloat16", master=True, stage=3, world_size=8, fsdp=True)
    found = standing(case) | {"gradients": gradients(case)}
    assert sum(found.values()) == pytest.approx(16 * BIG.parameters / 8, rel=1e-3) and "weights" not in found
    adapters = case.with_(train="lora", master=False)
    found = standing(adapters) | {"gradients": gradients(adapters)}
    trained = sum(adapters.trained)
    assert sum(found.values()) == pytest.approx((2 * BIG.parameters + 16 * trained) / 8, rel=1e-3)
    gathered = max(m.bytes.get("temporary", 0) for m in predict(adapters).moments)
    block, rest = (2 * sum(w.numel for w in part) for part in (BIG.block, BIG.outside))
    assert rest + 2 * block < gathered < rest + 2.1 * block
    with pytest.raises(LabError, match="stage 3"):
        Case(BIG, 1, 8, fsdp=True)


@pytest.mark.parametrize("kind", [llama, opt])
def test_the_cache_of_generation_to_the_last_byte(kind):
    config = kind(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(2, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
    assert kv_cache(Architecture.of(config), 2, 7, 4) == held


def test_moments_rise_through_forward_and_fall_through_backward():
    case = Case(Architecture.of(wide_llama()), 4, 128)
    seen = [m.bytes.get("activations", 0) for m in predict(case).moments]
    places = [m.place for m in predict(case).moments]
    top = places.index("backward")
    assert seen[:top] == sorted(seen[:top]) and seen[top:] == sorted(seen[top:], reverse=True)
    assert places[0] == "start" and places[-1] == "end"
    assert predict(case).moments[0].bytes == predict(case).moments[-1].bytes


def test_a_trace_becomes_counters_for_perfetto(tmp_path):
    config = llama()
    seen = trace(Case(Architecture.of(config), 2, 8, device="cpu"), config)
    events = json.loads(export(seen, tmp_path / "step.json").read_text())["traceEvents"]
    counters = [event for event in events if event["ph"] == "C"]
    assert len(counters) == len(seen.moments)
    assert max(sum(e["args"].values()) for e in counters) == pytest.approx(seen.peak.total / MIB, abs=0.01)
    assert [e["name"] for e in events if e["ph"] == "i"] == ["start", "forward", "backward", "update", "end"]


@pytest.mark.parametrize("table", ["capstone", "zero"])
def test_recorded_peaks_of_data_parallelism(table):
    """What two GPUs measured: buckets stand through the forward pass as well."""
    from labkit.bench import capstone, record

    rows = [row for row in record.read(table).rows if row["method"] in ("ddp", "torch.ddp") and not row.get("seed")]
    rows = [row for row in rows if row["peak_allocated_mib"] and row["model"].startswith("opt")]
    assert len(rows) >= 2
    for row in rows:
        ranks = row["world_size"]
        plan = replace(capstone.PLANS["small"], share=row["batch"] // ranks)
        case = capstone.case_of(row["model"], "torch.ddp", ranks, plan, "cuda", checkpointed=False)
        assert predict(case).peak.total / 2**20 == pytest.approx(row["peak_allocated_mib"], rel=0.01)
