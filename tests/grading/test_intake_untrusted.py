"""What was handed in is read without being trusted: names, links, pipes, folders and zips that mean harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from labkit.grading import entries
from labkit.grading.intake import collect

from .test_intake import LAB, students, tree, zipped


def test_names_that_climb_write_nothing_and_belong_to_nobody_else(tmp_path):
    (tmp_path / "in").mkdir()
    evil = zipped({"../../ben/lab.ipynb": b"evil", "/etc/lab.ipynb": b"evil", "C:\\x\\lab.ipynb": b"evil"})
    before = sorted(tmp_path.rglob("*"))
    tree(tmp_path / "in", {"mallory.zip": evil, "ben/lab.ipynb": b"ben"})
    found = {s.student: s for s in collect(tmp_path / "in")}
    assert found["ben"].raw == b"ben" and set(found) == {"ben", "mallory"}
    assert sorted(p for p in tmp_path.rglob("*") if "in" not in p.parts) == [p for p in before if "in" not in p.parts]


def test_links_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    tree(secret, {"lab.ipynb": b"the solutions"})
    tree(tmp_path / "in", {"ben/lab.ipynb": b"ben"})
    (tmp_path / "in" / "mallory").mkdir()
    (tmp_path / "in" / "mallory" / "lab.ipynb").symlink_to(secret / "lab.ipynb")
    (tmp_path / "in" / "trudy").symlink_to(secret)
    (tmp_path / "in" / "zed.zip").write_bytes(zipped({"lab.ipynb": b"/etc/passwd"}, mode=0o120777))
    found = {s.student: s for s in collect(tmp_path / "in")}
    assert found["ben"].raw == b"ben"
    assert found["mallory"].raw == b"" and "is a link" in found["mallory"].problem
    assert found["trudy"].raw == b"" and "is a link" in found["trudy"].problem
    assert "is a link" in found["zed"].problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    (tmp_path / "mallory").mkdir()
    os.mkfifo(tmp_path / "mallory" / "lab.ipynb")
    assert "not a plain file" in collect(tmp_path)[0].problem


@pytest.mark.skipif(os.name != "posix", reason="names that are bytes")
def test_names_that_are_no_text_can_be_stored(tmp_path):
    for name in (b"J\xf6rg_1_assignsubmission_file", b"K\xf6nig_2_assignsubmission_file", b"plain\xff", b"plain\xfe"):
        (tmp_path / os.fsdecode(name)).mkdir()
        (tmp_path / os.fsdecode(name) / os.fsdecode(b"n\xf6\n\x1b[2J.ipynb")).write_bytes(LAB)
    found = collect(tmp_path)
    assert [s.raw for s in found] == [LAB] * 4
    for text in (part for s in found for part in (s.student, s.name, s.source)):
        assert text.encode().decode().isprintable() or text == "", ascii(text)


def test_a_folder_that_cannot_be_entered_is_its_students_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "_DEEPEST", 8)
    tree(tmp_path, {"ada/lab.ipynb": LAB, "deep/" + "a/" * 8 + "lab.ipynb": LAB, "shut/lab.ipynb": LAB})
    scan = os.scandir

    def refusing(path):
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = {s.student: s for s in collect(tmp_path)}
    assert found["ada"].raw == LAB
    assert "more than 8 folders" in found["deep"].problem and "Permission denied" in found["shut"].problem


def test_folders_deeper_than_pythons_stack(tmp_path):
    tree(tmp_path, {"ada/lab.ipynb": LAB})
    here, made = Path.cwd(), 1500
    os.chdir(tmp_path)
    try:
        for _ in range(made):
            Path("d").mkdir()
            os.chdir("d")
        assert students(collect(tmp_path)) == {"ada": LAB, "d": b""}
    finally:
        while not Path("ada").exists():  # pytest's own removal is recursive
            os.chdir("..")
            Path("d").rmdir()
        os.chdir(here)


def test_bombs_and_broken_zips_are_their_students_problem(tmp_path):
    whole = zipped({"lab.ipynb": LAB})
    encrypted = bytearray(whole)
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        at = encrypted.index(mark) + (6 if mark.endswith(b"\x04") else 8)
        encrypted[at] |= 1
    damaged = bytearray(zipped({"lab.ipynb": bytes(range(256)) * 64}))
    damaged[60:80] = bytes(20)
    files = {
        "ada.zip": whole,
        "bomb.zip": zipped({"lab.ipynb": bytes(200_000_000)}),
        "cut.zip": whole[:40],
        "damaged.zip": bytes(damaged),
        "encrypted.zip": bytes(encrypted),
        "huge/lab.ipynb": bytes(20_000_001),
        "notes.zip": zipped({"notes.txt": b""}),
        "two/a.ipynb": LAB,
        "two/b.ipynb": LAB,
    }
    found = {s.student: s for s in collect(tree(tmp_path, files))}
    assert found["ada"].raw == LAB and not found["ada"].problem
    says = {
        "bomb": "20 MB",
        "cut": "not a whole zip",
        "damaged": "damaged",
        "encrypted": "encrypted",
        "huge": "20 MB",
        "notes": "no notebook",
        "two": "2 notebooks",
    }
    for name, told in says.items():
        assert told in found[name].problem and found[name].raw == b"", name
