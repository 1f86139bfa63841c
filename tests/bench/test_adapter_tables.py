"""The tables of adapters made whole on a model of a few thousand weights: their rows, rates, seeds and resumption."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from micro import Letters, micro_llama

from labkit.bench import instruct, lora_cost, lora_plus, lora_rank, peft, qlora, record, tuned
from labkit.bench.lora_steps import Setting, Steps
from labkit.instructions import Instructions, Pair
from labkit.ledger import MIB
from labkit.scale import Scale

SCALE = Scale("tiny", "micro", 64, 24, batch_size=8, seq_len=16, epochs=1, learning_rate=3e-3)
NAMES = ("peft", "lora-rank", "lora-plus", "lora-cost", "qlora", "instruct")


class _Letters:
    """A tokenizer of letters, as a task of instructions needs one."""

    chat_template, eos_token_id, pad_token_id = "", 15, 0

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [1 + ord(c) % 14 for c in text[:6]]}


def instructions() -> Instructions:
    pairs = [Pair(f"say {a}{b}", f"{a}{b}") for a in "abcdefgh" for b in "uvwxyz"]
    parts = {"train": pairs[:24], "validation": pairs[24:30], "test": pairs[30:]}
    return Instructions(_Letters(), parts, seq_len=30, packing=True)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    base = micro_llama()
    task = Letters(SCALE.train_size, SCALE.eval_size)
    task.validation = task.train[:16]
    monkeypatch.setattr("labkit.bench.workers.clear", lambda device: None)
    asked = instructions()
    monkeypatch.setattr(tuned, "loaded", lambda scale, name="sentiment": (base, task if name == "sentiment" else asked))
    monkeypatch.setattr(tuned, "TIMED_STEPS", 3)
    before = [p.detach().clone() for p in base.parameters()]
    yield
    assert all(torch.equal(p, old) for p, old in zip(base.parameters(), before, strict=True)), "the base was trained"


@pytest.fixture
def watched(monkeypatch):
    """Every trial that runs."""
    seen, real = [], tuned.run
    monkeypatch.setattr(tuned, "run", lambda case: seen.append(case) or real(case))
    return seen


def test_every_row_has_units_or_none_and_the_tables_are_listed():
    for name in NAMES:
        assert name in record.names()
    for table in (peft, lora_rank, lora_plus, lora_cost, qlora, instruct):
        assert table.TITLE and all("source" in row for row in table.PUBLISHED)


def test_peft_has_one_row_a_method_at_its_best_rate_over_all_seeds(watched, monkeypatch):
    chosen = ("full", "lora", "dora", "qlora")
    monkeypatch.setattr(peft, "METHODS", {name: peft.METHODS[name] for name in chosen})
    rows = list(peft.rows(SCALE))
    assert [row["method"] for row in rows] == list(chosen)
    assert json.loads(json.dumps(rows)) == rows
    full, lora, dora, qlora = rows
    assert full["share"] == 1 and lora["share"] < dora["share"] < 1
    assert qlora["weights_mib"] < lora["weights_mib"] and qlora["activations_mib"] < lora["activations_mib"]
    assert lora["optimizer_states_mib"] < full["optimizer_states_mib"]
    timed = [trial for scale, trial in watched if scale.eval_size == SCALE.batch_size]
    assert [t.steps for t in timed] == [3] * 2 * len(chosen), "times come from short runs, twice each"
    for row in rows:
        kind, _, rates = peft.METHODS[row["method"]]
        own = [trial for scale, trial in watched if trial.kind == kind and scale == SCALE]
        assert sorted(t.learning_rate for t in own if t.part == "validation") == sorted(rates)
        final = [t for t in own if t.part == "test"]
        assert [t.seed for t in final] == [0, 1, 2] and {t.learning_rate for t in final} == {row["learning_rate"]}
    again = list(peft.rows(SCALE, rows[:3]))
    assert [row["method"] for row in again] == ["qlora"]
    assert again[0]["accuracy"] == qlora["accuracy"]


def test_the_rate_is_that_of_the_smallest_loss_on_the_validation_part(monkeypatch):
    trial = tuned.Trial("labkit.adapters.tuning:Lora", (("rank", 2),), 0.0)
    rates = (1e-4, 3e-2, 1e-9)
    losses = {
        rate: tuned.run((SCALE, replace(trial, learning_rate=rate, part="validation"))).evaluations[-1]["loss"]
        for rate in rates
    }
    [best] = tuned.best_rates(SCALE, [trial], [rates])
    assert losses[best] == min(losses.values()) and len(set(losses.values())) == 3
    whole = tuned.run((SCALE, replace(trial, learning_rate=best)))
    assert whole.evaluations[-1]["loss"] != losses[best], "the test part is another"


def test_lora_rank_has_every_rank_that_fits_with_one_scale(watched):
    rows = list(lora_rank.rows(SCALE))
    assert [(r["targets"], r["rank"]) for r in rows] == [(t, k) for t in lora_rank.TARGETS for k in (1, 2, 4, 8)]
    count = {(r["targets"], r["rank"]): r["trainable_params"] for r in rows}
    assert count["q", 4] == 4 * count["q", 1] and count["q", 1] == 2 * (32 + 32)
    assert count["all-linear", 1] > count["q,k,v,o", 1] > count["q,v", 1]
    settings = {dict(trial.settings)["lora_alpha"] / dict(trial.settings)["rank"] for _, trial in watched}
    assert settings == {2.0}
    rest = list(lora_rank.rows(SCALE, rows[:-2]))
    assert rest == rows[-2:]


def test_lora_plus_races_to_the_loss_of_plain_lora(watched, monkeypatch):
    monkeypatch.setattr(lora_plus, "RATIOS", (1, 8))
    monkeypatch.setattr(lora_plus, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(lora_plus, "WINDOW", 4)
    rows = list(lora_plus.rows(SCALE))
    assert [row["ratio"] for row in rows] == [1, 8]
    assert len({row["target_loss"] for row in rows}) == 1
    assert rows[0]["target_loss"] > 0 and len(watched) == 2 * 2 * 3
    for row in rows:
        assert row["steps_to_loss"] is None or 4 <= row["steps_to_loss"] <= SCALE.steps
        assert (row["steps_to_loss"] is None) == ("did not reach" in (row["note"] or ""))


def test_steps_to_a_loss_are_counted_on_means():
    losses = [4.0, 4.0, 0.0, 4.0, 4.0, 1.0, 1.0, 1.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora_plus, "WINDOW", 3)
        assert lora_plus.smooth(losses)[0] == pytest.approx(8 / 3)
        assert lora_plus.steps_to(losses, 1.0) == 8  # not at the lucky third step
        assert lora_plus.steps_to(losses, 0.5) is None


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_ours_and_pefts_steps_start_alike_and_lose_alike(method, dropout):
    setting = Setting("llama-2x64", method, "float32", "float32", 2, 16, targets="all-linear", dropout=dropout)
    ours, theirs = (Steps(replace(setting, method=name), "cpu") for name in (method, setting.peer))
    assert sum(p.numel() for p in ours.trained) == sum(p.numel() for p in theirs.trained)
    losses = ours.losses(6), theirs.losses(6)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and losses[0][-1] < losses[0][0]
    assert replace(setting, method=setting.peer).peer == method


def test_lora_cost_counts_by_formula_and_measures_in_pairs(monkeypatch):
    monkeypatch.setattr(lora_cost, "MODELS", {"tiny": ("llama-2x64",)})
    monkeypatch.setattr(lora_cost, "SIZES", {"llama-2x64": (2, 16)})
    monkeypatch.setattr(lora_cost, "FIRST", 3)
    rows = list(lora_cost.rows(SCALE))
    flops = {row["method"]: row for row in rows if row["part"] == "flops"}
    assert list(flops) == ["full", "lora", "dora", "lora formed"]
    for name in ("full", "lora", "dora"):
        assert flops[name]["flops_forward"] + flops[name]["flops_backward"] == flops[name]["predicted_flops"]
    assert flops["lora"]["flops_backward"] < flops["lora formed"]["flops_backward"]
    steps = [row for row in rows if row["part"] == "step"]
    assert [row["method"] for row in steps[1:]] == ["lora", "peft.lora"] * 3 + ["dora", "peft.dora"] * 3
    assert all(row["loss_difference"] < 1e-4 for row in steps[1:])
    for ours, theirs in zip(steps[1::2], steps[2::2], strict=True):
        less = ours["measured_mib"] - theirs["measured_mib"]
        assert less < 0 if ours["dropout"] or ours["method"] == "dora" else less <= 1 / MIB
    assert list(lora_cost.rows(SCALE, rows)) == []
    assert len(list(lora_cost.rows(SCALE, rows[:-2]))) == 2


def test_qlora_compares_bases_at_one_rate_on_two_tasks(watched):
    rows = list(qlora.rows(SCALE))
    assert [(row["task"], row["method"]) for row in rows] == [(t, m) for t in qlora.TASKS for m in qlora.METHODS]
    for task in qlora.TASKS:
        own = {row["method"]: row for row in rows if row["task"] == task}
        assert len({row["learning_rate"] for name, row in own.items() if name != "bf16"}) == 1
        weights = [own[name]["weights_mib"] for name in ("lora", "qlora int8", "qlora nf4", "qlora nf4+dq")]
        assert weights == sorted(weights, reverse=True) and len(set(weights)) == 3  # scales are few in so small a model
        assert own["lora"]["trainable_params"] == own["qlora nf4"]["trainable_params"]
    assert json.loads(json.dumps(rows)) == rows
    assert [row["method"] for row in qlora.rows(SCALE, rows[:-1])] == ["qlora nf4+dq"]
    assert {trial.seed for _, trial in watched if trial.part == "validation"} == {0}


def test_instruct_has_curves_of_every_seed(monkeypatch):
    monkeypatch.setattr(instruct, "EVERY", 2)
    rows = list(instruct.rows(SCALE))
    steps = 24 // 8
    assert [(r["method"], r["seed"], r["step"]) for r in rows] == [
        (method, seed, step) for method in instruct.METHODS for seed in (0, 1, 2) for step in (2, steps)
    ]
    assert all(row["train_loss"] > 0 and row["loss"] > 0 and 0 <= row["accuracy"] <= 1 for row in rows)


def test_instruct_goes_on_in_the_middle_of_a_curve(monkeypatch, watched):
    monkeypatch.setattr(instruct, "EVERY", 2)
    monkeypatch.setattr(instruct, "METHODS", {name: instruct.METHODS[name] for name in ("full", "lora")})
    rows = list(instruct.rows(SCALE))
    cut = len(rows) - 1  # the last seed of LoRA lacks its last point
    watched.clear()
    assert list(instruct.rows(SCALE, rows[:cut])) == rows[cut:]
    assert {trial.part for _, trial in watched} == {"test"} and len(watched) == 3, "one method, and its rate is known"
