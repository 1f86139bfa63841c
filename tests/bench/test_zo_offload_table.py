"""The table `zo-offload`, made whole on models of a few thousand weights."""

from __future__ import annotations

import json

import pytest
import torch

from labkit import models, published
from labkit.bench import zo_offload, zo_offload_steps
from labkit.bench.zo_offload_steps import Setting
from labkit.scale import Scale
from labkit.zeroth.offload.load import frame

SCALE = Scale("tiny", "micro", 64, 24, batch_size=8, seq_len=16, epochs=1, learning_rate=3e-3)


def test_every_row_is_measured_and_zo_offload_is_mezo():
    rows = list(zo_offload.rows(SCALE))
    assert json.loads(json.dumps(rows)) == rows and all(row["note"] == "" for row in rows)
    assert all(row["step_ms"] > 0 and row["loss"] == row["losses"][-1] for row in rows)
    main = [r for r in rows if (r["model"], r["batch"], r["dtype"]) == ("llama-3x64", 1, "float32")]
    plain = [r for r in main if r["method"] == "zo-offload" and not r["transfer"]]
    mezo = next(r for r in main if r["method"] == "mezo")
    assert {r["write_back"] for r in plain} == {1, 2} and len({(r["parts"], r["slots"]) for r in plain}) > 3
    for row in plain:
        assert row["losses"][:4] == mezo["losses"][:4] and len(set(row["losses"])) > 1
        assert row["predicted_ms"] > 0 and row["blocks_gib"] <= row["host_gib"]
    coded = [r for r in main if r["transfer"] == "int8" and r["method"] == "zo-offload"]
    assert [(r["renew"], r["moves"]) for r in coded] == [*((k, k + 1) for k, *_ in zo_offload.RENEWED), (0, 1), (0, 4)]
    assert all(r["losses"][0] != mezo["losses"][0] for r in coded)
    assert all(r["losses"][0] == pytest.approx(mezo["losses"][0], abs=1e-2) for r in coded)
    whole = {r["parts"]: r["blocks_gib"] for r in plain}
    for row in coded:  # in fp32, coded blocks take a little more than a quarter
        assert 0.25 < row["blocks_gib"] / whole[row["parts"]] - bool(row["renew"]) < 0.4
    assert {r["transfer"] for r in main if r["method"] == "zo-offload-lora"} == {"int8", "nf4", ""}
    assert [r["cap_gb"] for r in rows if r["cap_gb"]] == [zo_offload.CAP_GB]
    again = list(zo_offload.rows(SCALE, rows[1:]))
    assert [r["method"] for r in again] == ["mezo"]


def test_what_has_no_room_says_so(monkeypatch):
    monkeypatch.setenv("LABKIT_HOST_GIB", "0.00001")
    row = zo_offload_steps.row_of(Setting("llama-2x64", "zo-offload", "float32", 1, 16, "", 1, 1, 2), "cpu", 1)
    assert row["step_ms"] is None and "host memory" in row["note"]


def test_the_plan_has_the_posters_grid_and_what_the_issue_is_about_comes_first():
    every = list(zo_offload.settings(zo_offload._GPU))
    assert len(every) == len(set(every))
    first = every[:12]
    assert {(s.model, s.batch) for s in first} == {("opt-13b", 1), ("opt-13b", 8), ("opt-30b", 1)}
    assert {s.model for s in every} == {*published.OPT, "opt-350m"}
    for model in zo_offload._SMALL:
        assert {(s.method, s.dtype) for s in every if s.model == model} == {
            (m, d) for m in ("mezo", "zo-offload") for d in ("float16", "float32")
        }
    assert {s.batch for s in every if s.model == "opt-13b"} == {1, 2, 4, 8}
    posters = {(r["model"], r["method"], r["dtype"]): r for r in zo_offload.PUBLISHED}
    assert posters["opt-175b", "zo-offload", "float16"]["memory_mb"] == 24667
    assert posters["opt-13b", "mezo", "float16"]["tokens_per_s"] == 1406 and len(posters) == 36


def test_opt_350m_is_the_one_that_normalizes_late():
    config = zo_offload_steps.configuration_of("opt-350m")
    model = frame(config, torch.float16, "meta")
    assert models.parameters(model) == 331_196_416  # of facebook/opt-350m
    assert type(model.model.decoder.layers[0]).__name__ == "OPTDecoderLayer" and not config.do_layer_norm_before
