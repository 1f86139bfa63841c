"""labkit.scale: the size that fits the machine, and what is said when none does."""

from __future__ import annotations

import dataclasses

import pytest
from machines import machine

from labkit.errors import LabError, ScaleError, UnknownNameError
from labkit.machine import GB, Gpu, Machine
from labkit.scale import SCALES, Scale


def with_gpu(gigabytes: float, capability=(8, 6)) -> Machine:
    return machine(gpus=(Gpu("a GPU", int(gigabytes * GB), capability),))


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv("LABKIT_SCALE", raising=False)


@pytest.mark.parametrize(
    ("here", "name", "device", "dtype"),
    [
        (machine(), "tiny", "cpu", "float32"),
        (with_gpu(4), "tiny", "cuda", "float32"),
        (with_gpu(8), "small", "cuda", "bfloat16"),
        (with_gpu(16, (7, 5)), "small", "cuda", "float32"),
        (with_gpu(80, (9, 0)), "small", "cuda", "bfloat16"),
    ],
)
def test_the_machine_chooses(here, name, device, dtype):
    scale = Scale.here(here)
    assert (scale.name, scale.device, scale.dtype) == (name, device, dtype)
    assert scale.why


def test_the_current_machine_is_asked_by_default():
    with Machine.override(with_gpu(12)):
        assert Scale.here().name == "small"
    with Machine.override(machine()):
        assert Scale.here().name == "tiny"


def test_the_courses_test_sets_have_their_sizes():
    tiny = Scale.here(machine())
    assert (tiny.train_size, tiny.eval_size, tiny.model) == (1000, 1500, "tiny")
    assert tiny.steps == tiny.epochs * 63 and tiny.batch_size == 16
    assert {scale.eval_size for scale in SCALES.values()} == {1500}


def test_the_variable_overrides_the_machine_and_an_argument_overrides_both(monkeypatch):
    monkeypatch.setenv("LABKIT_SCALE", " Tiny ")
    assert Scale.here(with_gpu(80)).name == "tiny"
    assert Scale.here(with_gpu(80), name="full").name == "full"
    assert Scale.here(with_gpu(80), name="full").dtype == "bfloat16"


def test_full_is_never_chosen_by_itself():
    assert Scale.here(with_gpu(192, (10, 0))).name == "small"


def test_small_on_a_cpu_is_allowed_smaller_and_warned_about(monkeypatch):
    monkeypatch.setenv("LABKIT_SCALE", "small")
    scale = Scale.here(machine())
    assert (scale.model, scale.device, scale.dtype) == ("smollm2-135m", "cpu", "float32")
    assert "minutes" in scale.why
    assert scale.steps < SCALES["small"].steps


@pytest.mark.parametrize("name", ["tyni", "SMAL", "huge", "0"])
def test_an_unknown_scale_names_the_three(monkeypatch, name):
    monkeypatch.setenv("LABKIT_SCALE", name)
    with pytest.raises(UnknownNameError) as caught:
        Scale.here(machine())
    assert all(scale in str(caught.value) for scale in ("tiny", "small", "full"))
    assert isinstance(caught.value, LabError)
    if name != "huge" and name != "0":
        assert "Did you mean" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "here", "remedy"),
    [
        ("small", with_gpu(6), "LABKIT_SCALE=tiny"),
        ("full", with_gpu(6), "LABKIT_SCALE=tiny"),
        ("full", with_gpu(16), "LABKIT_SCALE=small"),
        ("full", machine(), "LABKIT_SCALE=tiny"),
    ],
)
def test_a_scale_too_large_says_what_fits(name, here, remedy):
    with pytest.raises(ScaleError) as caught:
        Scale.here(here, name=name)
    assert remedy in caught.value.remedy
    assert str(here.gpus[0]) in caught.value.cause if here.gpus else "no GPU" in caught.value.cause
    # The remedy works.
    fitting = remedy.partition("=")[2]
    assert Scale.here(here, name=fitting).name == fitting


def test_a_scale_is_one_printable_line_and_cannot_be_changed():
    scale = Scale.here(machine())
    assert "\n" not in str(scale) and scale.why in str(scale)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scale.batch_size = 1  # type: ignore[misc]
