"""Figures of lesson 17: their lines are the planner's, their bars the table's, and what is missing is said."""

from __future__ import annotations

import pytest
from inside import assert_titles_and_names_inside

from labkit.errors import LabError
from labkit.planner import gpus_of, plan
from labkit.show import capstone

MODELS = ("opt-1.3b", "opt-13b", "opt-30b", "opt-66b", "opt-175b")


@pytest.fixture(scope="module")
def rows():
    return capstone.ladder(MODELS, "h100", 2, 4, 1024)


def training(method, **values):
    """A row as the table has it, with made numbers."""
    row = {"model": "smollm2-135m", "method": method, "world_size": 2, "dtype": "bfloat16", "batch": 16, "steps": 9}
    made = {"peak_allocated_mib": 2048.0, "step_ms": 50.0, "accuracy": 0.8, "joules_per_step": 30.0}
    return {**row, "trainable_params": 5, "accuracy_before": None, **made, **values}


def test_the_ladder_is_the_plan(rows):
    assert len(rows) == 3 * len(MODELS)
    found = plan("opt-30b", "h100", 4, 1024, gpus=2)
    plain, _again = (o for o in found.options if o.way.name == "torch.fsdp2+peft.lora")
    row = next(r for r in rows if r["model"] == "opt-30b" and r["recipe"] == "torch.fsdp2+peft.lora")
    assert plain.fits and row["peak"] == plain.peak.total and not row["checkpointed"]
    row = next(r for r in rows if r["model"] == "opt-66b" and r["recipe"] == "torch.fsdp2+peft.lora")
    assert row["fits"] and row["checkpointed"]  # only so
    assert capstone.largest(rows) == {
        "torch.ddp": "opt-1.3b",
        "torch.fsdp2": "opt-1.3b",
        "torch.fsdp2+peft.lora": "opt-66b",
    }
    none = [{**r, "fits": False} for r in rows]
    assert set(capstone.largest(none).values()) == {"–"}


def test_the_ladder_is_drawn(rows):
    row = {"method": "torch.fsdp2+peft.lora", "model": "opt-30b", "checkpointed": False, "peak_allocated_mib": 34000.0}
    other = {**row, "model": "opt-66b"}  # the line has it checkpointed
    measured = [row, other]
    fig = capstone.ladder_figure(rows, measured)
    ax = fig.axes[0]
    lines = {line.get_label(): line for line in ax.lines}
    ours = [r["peak"] / 2**30 for r in rows if r["recipe"] == "torch.fsdp2+peft.lora"]
    assert list(lines["sharded + LoRA"].get_ydata()) == ours
    assert list(lines["sharded + LoRA, measured"].get_ydata()) == [34000 / 1024]
    assert ax.get_title(loc="left").startswith("Largest that fits: opt-1.3b whole")
    assert "GiB" in ax.get_ylabel() and "10⁹" in ax.get_xlabel()
    assert_titles_and_names_inside(fig)
    words = capstone.ladder_words(rows, measured)
    assert "Measured, sharded + LoRA: opt-30b 33.2." in words and "opt-66b with LoRA" in words


def test_recipes_are_means_over_seeds_on_the_most_ranks():
    table = [training("torch.ddp", accuracy=0.7), training("torch.ddp", accuracy=0.8), training("torch.fsdp2")]
    table += [training("torch.ddp", world_size=1, accuracy=0.1), training("torch.fsdp2", steps=0, accuracy=None)]
    found = capstone.trainings(table)
    assert [row["method"] for row in found] == ["torch.ddp", "torch.fsdp2"]
    assert found[0]["accuracy"] == pytest.approx(0.75) and found[0]["seeds"] == 2
    assert capstone.trainings(table, 1)[0]["accuracy"] == 0.1
    with pytest.raises(LabError, match="labkit bench capstone"):
        capstone.trainings([])


def test_the_recipes_are_drawn():
    found = capstone.trainings(
        [training("torch.ddp"), training("torch.fsdp2+peft.lora", peak_allocated_mib=512.0, step_ms=70.0)]
    )
    fig = capstone.recipes_figure(found)
    heights = [[bar.get_height() for bar in ax.patches] for ax in fig.axes]
    assert heights == [[2.0, 0.5], [50.0, 70.0], [80.0, 80.0], [30.0, 30.0]]
    assert fig.get_suptitle().startswith("Sharded + LoRA: the least memory; everything on each GPU: the")
    assert "sharded + LoRA: memory a GPU (GiB) 0.5, a step (ms) 70" in capstone.recipes_words(found)
    unknown = capstone.trainings([training("torch.ddp", joules_per_step=None)])
    assert "energy a step (J) not measured" in capstone.recipes_words(unknown)
    assert "energy" not in capstone._cheapest(unknown)
    assert [len(ax.patches) for ax in capstone.recipes_figure(unknown).axes] == [1, 1, 1, 0]


def test_steps_by_size():
    step = training("torch.ddp", steps=0, model="opt-1.3b", predicted_mib=2000.0, tokens_per_s=1000.0)
    refused = {**step, "peak_allocated_mib": None, "model": "opt-13b"}
    shown, units, left = capstone.by_size([training("torch.ddp"), step, refused])
    assert left == ["everything on each GPU, opt-13b: 2 GiB predicted"] and set(units) <= set(shown[0])
    [row] = shown
    assert (row["model"], row["apart"], row["measured"]) == ("opt-1.3b", "+2.4%", 2.0)
    assert row["energy"] == 600.0  # 30 J for 50 tokens


def test_the_gpus_of_a_machine():
    from labkit.machine import Gpu, Machine

    assert gpus_of(Machine.here()) == ("8GB", 2) or Machine.here().gpus
    two = tuple(Gpu("H100", size * 2**30, (9, 0)) for size in (80, 79))

    class Fake:
        gpus = two

    assert gpus_of(Fake()) == (f"{79 * 1024}MB", 2) and plan("opt-1.3b", *gpus_of(Fake())[:1]).usable > 70 * 2**30
