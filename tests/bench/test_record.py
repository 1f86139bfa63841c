"""A table that is cut off goes on from its rows, on another machine too; what cannot go on says so."""

from __future__ import annotations

import importlib
import json
import sys
import types

import pytest

from labkit.bench import record
from labkit.errors import LabError


@pytest.fixture
def table(monkeypatch):
    """A table of four rows that fails at the third as long as `broken` is set."""
    module = types.ModuleType("labkit.bench.short")
    module.TITLE, module.UNITS, module.PUBLISHED, module.broken, module.measured = "Short.", {}, [], True, []

    def rows(scale, done=()):
        for number in range(4):
            if {"number": number} not in [{"number": row["number"]} for row in done]:
                if number == 2 and module.broken:
                    raise KeyboardInterrupt
                module.measured.append(number)
                yield {"number": number}

    module.rows = rows
    monkeypatch.setitem(sys.modules, "labkit.bench.short", module)
    monkeypatch.setattr(record, "names", lambda: ["short"])
    return module


def test_a_cut_off_table_keeps_its_rows_and_goes_on(table, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        record.regenerate("short", tmp_path)
    assert not (tmp_path / "short.json").exists()
    assert len(json.loads((tmp_path / "short.partial.json").read_text())["rows"]) == 2
    table.broken = False
    path = record.regenerate("short", tmp_path, resume=True)
    assert table.measured == [0, 1, 2, 3]
    assert json.loads(path.read_text())["rows"] == [{"number": n} for n in range(4)]
    assert not (tmp_path / "short.partial.json").exists()


def test_rows_of_another_machine_name_it(table, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        record.regenerate("short", tmp_path)
    partial = tmp_path / "short.partial.json"
    facts = json.loads(partial.read_text())
    here = facts["machine"]
    partial.write_text(json.dumps({**facts, "machine": "another"}))
    table.broken = False
    found = json.loads(record.regenerate("short", tmp_path, resume=True).read_text())
    assert found["machine"] == "another"
    assert [row.get("measured_on") for row in found["rows"]] == [None, None, here, here]


def test_without_resuming_a_table_begins_anew(table, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        record.regenerate("short", tmp_path)
    table.broken = False
    record.regenerate("short", tmp_path)
    assert table.measured == [0, 1, 0, 1, 2, 3]


def test_nothing_to_go_on_from_is_said(table, tmp_path):
    with pytest.raises(LabError, match="no measurement of short to go on from"):
        record.regenerate("short", tmp_path, resume=True)
    (tmp_path / "short.partial.json").write_text("{")
    with pytest.raises(LabError, match="no measurement of short"):
        record.regenerate("short", tmp_path, resume=True)


def test_a_table_that_is_measured_in_one_go_refuses(table, tmp_path):
    table.rows = lambda scale: iter(())
    with pytest.raises(LabError, match="in one go"):
        record.regenerate("short", tmp_path, resume=True)


def test_formulas_are_computed_again_and_what_was_measured_stays(table, tmp_path):
    table.broken = False
    path = record.regenerate("short", tmp_path)
    with pytest.raises(LabError, match="no formula"):
        record.repredict("short", tmp_path)
    before = json.loads(path.read_text())
    table.predictions = lambda rows: [{"twice": 2 * row["number"]} for row in rows]
    after = json.loads(record.repredict("short", tmp_path).read_text())
    assert after["rows"] == [{"number": n, "twice": 2 * n} for n in range(4)]
    assert {name: after[name] for name in before if name != "rows"} == {k: v for k, v in before.items() if k != "rows"}
    assert set(after["predicted"]) == {"date", "commit", "torch"}
    told = record.Table(**after).origin
    assert told.startswith(record.Table(**before).origin) and "predictions of 20" in told
    with pytest.raises(LabError, match="cannot be read"):
        record.repredict("short", tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["anatomy", "checkpointing", "offload"])
def test_recorded_formulas_are_those_of_today(name, monkeypatch):
    """A formula that changes and a table that does not would contradict each other in a lesson. Traces take minutes."""

    def untraced(case, config):
        raise LabError("No trace.", "None is wanted.")

    module, rows = importlib.import_module(f"labkit.bench.{name}"), record.read(name).rows
    monkeypatch.setattr("labkit.memory.step.trace", untraced)
    for row, new in zip(rows, module.predictions(rows), strict=True):
        new.pop("traced_mib", None)
        assert new.items() <= row.items(), row
