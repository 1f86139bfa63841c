"""The bytes that were handed in are kept: notebooks, and whatever came in their place or beside them."""

from __future__ import annotations

import json

from labkit.grading.intake import collect
from labkit.grading.lab import Lab
from labkit.grading.store import Store

from .small_course import NAME
from .small_lab import small_lab
from .test_intake import LAB, tree, zipped


def test_what_is_no_notebook_is_kept_as_it_was_handed_in(tmp_path):
    archive = zipped({"essay.txt": b"an essay"})
    files = {
        "ada/my essay.pdf": b"%PDF-1.7",
        "ada/pictures/graph.png": b"\x89PNG",
        "bob/lab.ipynb": LAB,
        "bob/report.docx": b"report",
        "cyd/work.zip": archive,
        "dan/lab.ipynb": b"dear teacher,",
        "eve/handed-in.json": b"{}",
    }
    (tmp_path / "in").mkdir()
    store = Store(tmp_path / "course", Lab.from_notebook(small_lab(), f"{NAME}/lab.ipynb"))
    tree(tmp_path / "in", files)
    (tmp_path / "in" / "fay").mkdir()
    (tmp_path / "in" / "fay" / "link.pdf").symlink_to("/etc/hostname")
    found = collect(tmp_path / "in")
    assert [store.keep(who) for who in found] == [True] * 6 and [store.keep(who) for who in found] == [False] * 6

    def kept(student):
        folder = store.received / student
        return {p.name.partition("-")[2]: p.read_bytes() for p in folder.iterdir() if p.name != "handed-in.json"}

    assert kept("ada") == {"my-essay.pdf": b"%PDF-1.7", "graph.png": b"\x89PNG"}
    assert kept("bob") == {"": LAB, "report.docx": b"report"}, "the notebook is marked, the rest is kept"
    assert kept("cyd") == {"work.zip": archive}
    assert kept("dan") == {"": b"dear teacher,"}
    assert kept("eve") == {"handed-in.json": b"{}"}
    assert kept("fay") == {}
    facts = json.loads((store.received / "fay" / "handed-in.json").read_text(encoding="utf-8"))
    assert "link" in facts["left_out"][0]
    read = {who.student: (who.raw, who.problem) for who in store.submissions()}
    assert read == {who.student: (who.raw, who.problem) for who in found}, "they can be graded again"


def test_a_students_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.grading.store._MOST_FILES", 3)
    monkeypatch.setattr("labkit.grading.store._MOST_BESIDE", 10)
    store = Store(tmp_path / "course", Lab.from_notebook(small_lab(), f"{NAME}/lab.ipynb"))
    files = {
        "ada/lab.ipynb": LAB,
        "ada/a.txt": b"1234567",
        "ada/b.txt": b"12345",
        "ada/c.txt": b"12",
        "ada/d.txt": b"1",
    }
    (who,) = collect(tree(tmp_path / "in", files))
    store.keep(who)
    names = sorted(p.name.partition("-")[2] for p in (store.received / "ada").glob("*-*.txt"))
    assert names == ["a.txt", "c.txt"]
    left = json.loads((store.received / "ada" / "handed-in.json").read_text(encoding="utf-8"))["left_out"]
    assert left[0] == "Of 4 files the first 3 are kept." and left[1].startswith("b.txt has more")
