"""Every lab's tests accept the reference solution and reject each wrong answer that looks right."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

from labkit.grading import Lab, Score, grade_all, stubs
from labkit.paths import LESSONS

from .others import OTHERS as MORE

REFERENCE, STUBS = "(reference)", "(stubs)"
FIELDS = {"exercise", "code", "loses", "why"}


def _modules() -> list[ModuleType]:
    names = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name.startswith("lab")]
    return [importlib.import_module(f"{__package__}.{name}") for name in sorted(names)]


MODULES = {module.LAB: module for module in _modules()}
OTHERS = [(lab, name) for lab, m in MODULES.items() for name in getattr(m, "RIGHT", {}) | MORE.get(lab, {})]
CASES = [(lab, name) for lab, module in MODULES.items() for name in module.MUTANTS]


@functools.cache
def lab_of(lab: str) -> Lab:
    return Lab.read(LESSONS / lab / "lab.ipynb")


@functools.cache
def scores(lab: str) -> dict[str, Score]:
    """All variants of one lab, run once: one import of torch, and only the cells that points need.

    Reference, stubs and both halves run all of these; the others run the cells that read what they change. The whole
    lab runs in tests/notebooks and, under nbgrader, in tests/grading.
    """
    wrong = {name: (spec["exercise"], spec["code"]) for name, spec in MODULES[lab].MUTANTS.items()}
    whole = {REFERENCE: {}, STUBS: stubs(lab_of(lab))}
    whole |= {half: dict(wrong[name] for name in names) for half, names in halves(lab).items()}
    others = {name: {exercise: code} for name, (exercise, code) in (wrong | right(lab)).items()}
    return grade_all(lab_of(lab), whole | others, only_needed=True, only_affected=others)


def halves(lab: str) -> dict[str, list[str]]:
    """The first wrong answer to every other exercise, by half: each half leaves the other half's exercises right."""
    first: dict[str, str] = {}
    for name, spec in MODULES[lab].MUTANTS.items():
        first.setdefault(spec["exercise"], name)
    names = list(first.values())
    return {"(half)": names[::2], "(other half)": names[1::2]} if names[1:] else {"(half)": names}


def right(lab: str) -> dict[str, tuple[str, str]]:
    """Other answers that are right, by name: exercise and code."""
    return getattr(MODULES[lab], "RIGHT", {}) | MORE.get(lab, {})


def test_every_lab_has_mutants():
    labs = {path.parent.name for path in LESSONS.glob("*/lab.ipynb")}
    assert labs == set(MODULES), "each lessons/NN-slug/lab.ipynb needs a module tests/mutants/labNN.py"


@pytest.mark.parametrize("lab", MODULES)
def test_mutants_are_complete(lab):
    """At least five mutants, one or more for every exercise, and another right answer."""
    mutants = MODULES[lab].MUTANTS
    assert len(mutants) >= 5 and right(lab)
    for name, spec in mutants.items():
        assert FIELDS <= set(spec) <= FIELDS | {"at_least"}, name
        assert spec["loses"], f"{name} loses nothing"
        assert spec["why"].strip(), f"{name} does not say what is wrong with it"
        lab_of(lab).exercise(spec["exercise"])
    exercises = {item.id for item in lab_of(lab).exercises}
    assert {spec["exercise"] for spec in mutants.values()} == exercises, "an exercise without a mutant"


@pytest.mark.parametrize("lab", MODULES)
def test_the_reference_earns_every_point(lab):
    score = scores(lab)[REFERENCE]
    assert not score.errors, score.errors
    assert score.points == score.max_points == lab_of(lab).auto_points > 0


@pytest.mark.parametrize(("lab", "name"), OTHERS, ids=[f"{lab}-{name}" for lab, name in OTHERS])
def test_another_right_answer_keeps_its_points(lab, name):
    assert name not in MODULES[lab].MUTANTS
    assert not scores(lab)[name].lost, f"{name} is right:\n{scores(lab)[name]}"


@pytest.mark.parametrize("lab", MODULES)
def test_the_stub_earns_nothing_and_says_where_to_write(lab):
    score = scores(lab)[STUBS]
    assert score.points == 0, str(score)
    for exercise in lab_of(lab).exercises:
        for cell in exercise.tests:
            error = score.cells[cell.grade_id].error
            # The error must lead to the line that the student has to replace, not to some later NameError.
            assert error.startswith("NotImplementedError"), f"{cell.grade_id}: {error}"
            assert "raise NotImplementedError()" in error, f"{cell.grade_id}: {error}"


@pytest.mark.parametrize(("lab", "name"), CASES, ids=[f"{lab}-{name}" for lab, name in CASES])
def test_a_wrong_answer_loses_its_points(lab, name):
    spec, score = MODULES[lab].MUTANTS[name], scores(lab)[name]
    expected, lost = set(spec["loses"]), set(score.lost)
    assert expected <= lost, f"{name} ({spec['why']}) keeps the points of {sorted(expected - lost)}"
    if not spec.get("at_least"):
        assert lost == expected, f"{name} also loses {sorted(lost - expected)}:\n{score}"


@pytest.mark.parametrize("lab", MODULES)
def test_wrong_answers_reach_no_other_exercise(lab):
    """Not even by what a test does and no name tells: with all cells run, right exercises keep their points."""
    for half, names in halves(lab).items():
        specs, lost = [MODULES[lab].MUTANTS[name] for name in names], set(scores(lab)[half].lost)
        expected = {grade_id for spec in specs for grade_id in spec["loses"]}
        assert expected <= lost, f"{half} keeps the points of {sorted(expected - lost)}"
        if not any(spec.get("at_least") for spec in specs):
            assert lost == expected, f"{half} also loses {sorted(lost - expected)}:\n{scores(lab)[half]}"


@pytest.mark.parametrize(("lab", "name"), CASES, ids=[f"{lab}-{name}" for lab, name in CASES])
def test_a_lost_point_is_explained(lab, name):
    """A student who loses a point reads a sentence, not a bare AssertionError."""
    for grade_id, cell in scores(lab)[name].cells.items():
        if cell.lost:
            assert len(cell.error.split()) >= 4, f"{grade_id} under {name}: {cell.error!r}"
