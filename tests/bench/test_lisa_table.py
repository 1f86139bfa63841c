"""Table `lisa` made whole on a model of a few thousand weights: rates, seeds, bytes through switches, resumption."""

from __future__ import annotations

import json

import pytest
from test_adapter_tables import SCALE, small, watched  # noqa: F401  (fixtures)

from labkit.bench import lisa, record


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(lisa, "SWITCHES", 6)


def test_the_table_is_whole_and_goes_on(watched):  # noqa: F811
    assert "lisa" in record.names()
    rows = list(lisa.rows(SCALE))
    assert json.loads(json.dumps(rows)) == rows
    runs = [row for row in rows if row["part"] == "run"]
    assert [(r["task"], r["method"]) for r in runs] == [(t, m) for t in lisa.TASKS for m in ("vanilla", *lisa.METHODS)]
    for task in lisa.TASKS:
        own = {row["method"]: row for row in runs if row["task"] == task}
        assert own["vanilla"]["trainable_params"] == 0 and "accuracy_std" not in own["vanilla"]
        assert own["lisa kept"]["learning_rate"] == own["lisa"]["learning_rate"]
        for name, (_, _, rates) in lisa.METHODS.items():
            assert own[name]["learning_rate"] in (rates or lisa.METHODS["lisa"][2])
        states = {name: own[name]["optimizer_states_mib"] for name in lisa.METHODS}
        assert states["badam"] < states["lisa"] <= states["full"] and states["lora"] < states["full"]
        assert own["galore"]["gradients_mib"] < own["badam"]["gradients_mib"] < own["full"]["gradients_mib"]
    _check_trials(watched)
    again = list(lisa.rows(SCALE, [row for row in rows if (row["part"], row["method"]) != ("run", "lisa kept")]))
    assert [(r["task"], r["method"]) for r in again] == [(t, "lisa kept") for t in lisa.TASKS]
    assert [r["accuracy"] for r in again] == [r["accuracy"] for r in runs if r["method"] == "lisa kept"]
    assert list(lisa.rows(SCALE, rows)) == []


def _check_trials(watched):  # noqa: F811
    """Rates on the validation part, results on the test part over three seeds."""
    for task in lisa.TASKS:
        own = [trial for scale, trial in watched if scale == SCALE and trial.task == task]
        tried = {(t.kind, t.settings, t.learning_rate) for t in own if t.part == "validation"}
        assert len(tried) == sum(len(rates) for _, _, rates in lisa.METHODS.values())
        for kind, settings, _ in lisa.METHODS.values():
            final = [t for t in own if t.part == "test" and (t.kind, dict(t.settings)) == (kind, settings)]
            assert [t.seed for t in final] == [0, 1, 2]


def test_bytes_through_switches_are_flat_when_freed_and_grow_when_kept():
    rows = [row for name in lisa.THROUGH for row in lisa.through_switches(SCALE, name)]
    held = {name: [r for r in rows if r["method"] == name] for name in lisa.THROUGH}
    assert all([r["step"] for r in own] == [1, 2, 3, 4, 5, 6] for own in held.values())
    # A model of two layers, both of which LISA has awake; so one layer and the bytes in whole numbers.
    assert len({r["optimizer_states_mib"] for r in held["badam"]}) == 1
    assert all(r["allocated_mib"] is None for r in rows)


def test_states_that_are_kept_pile_up_and_those_on_the_host_are_there(monkeypatch):
    for states in ("freed", "host", "kept"):
        kind, settings = lisa.THROUGH[f"lisa {states}"]
        monkeypatch.setitem(lisa.THROUGH, f"lisa {states}", (kind, {**settings, "layers": 1}))
    held = {name: list(lisa.through_switches(SCALE, name)) for name in lisa.THROUGH if name.startswith("lisa")}
    states = {name: [r["optimizer_states_mib"] for r in own] for name, own in held.items()}
    assert len(set(states["lisa freed"])) == 1 and states["lisa host"] == states["lisa freed"]
    assert states["lisa kept"][-1] > states["lisa kept"][0] == states["lisa freed"][0]
    host = [r["host_mib"] for r in held["lisa host"]]
    assert host[0] == 0 < host[-1] and not any(r["host_mib"] for r in held["lisa kept"])
    gradients = {r["gradients_mib"] for own in held.values() for r in own}
    assert len(gradients) == 1


def test_a_run_s_states_are_the_most_that_it_held(monkeypatch):
    for name, states in (("lisa", "freed"), ("lisa kept", "kept")):
        kind, _, rates = lisa.METHODS[name]
        monkeypatch.setitem(lisa.METHODS, name, (kind, {"layers": 1, "period": 1, "states": states}, rates))
    rows = list(lisa._trained(SCALE, "sentiment", ["lisa", "lisa kept"], {}, None))
    held = {row["method"]: row["optimizer_states_mib"] for row in rows}
    both = {row["method"]: row["optimizer_states_mib"] for row in lisa._trained(SCALE, "sentiment", ["full"], {}, None)}
    assert held["lisa"] < held["lisa kept"] == both["full"]


def test_seeds_draw_other_layers():
    from labkit.bench.tuned import Trial

    made = [Trial(lisa.METHODS["lisa"][0], (), 1e-3, seed=seed).method(SCALE) for seed in (0, 1, 2)]
    assert len({tuple(method.rehearsed(8, 100)) for method in made}) == 3


def test_published_figures_are_those_of_the_lecture():
    assert len(lisa.PUBLISHED) == 15 and all("2403.17919" in row["source"] for row in lisa.PUBLISHED)
    found = {(row["model"], row["method"]): row for row in lisa.PUBLISHED}
    assert found["Mistral-7B", "vanilla"]["WinoGrande, 5-shot"] == 79.24
    assert found["Llama-2-7B", "lisa"]["MMLU, 5-shot"] == 46.21
