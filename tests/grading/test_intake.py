"""Exports of learning platforms become one submission for each student, and nothing else is read or written."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime

import pytest

from labkit.errors import LabError
from labkit.grading import entries, intake
from labkit.grading.intake import collect

LAB = b'{"cells": []}'


def tree(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def zipped(files, **more):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, date_time=(2026, 11, 2, 10, 30, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = more.get("mode", 0o100644) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def students(found):
    return {s.student: s.raw for s in found}


def test_a_folder_a_zip_or_a_notebook_for_each_student(tmp_path):
    files = {
        "ada/lab.ipynb": LAB + b"1",
        "ben/deep/down/LAB.ipynb": LAB + b"2",
        "ben/deep/other.ipynb": b"-",
        "cyd.zip": zipped({"x/lab.ipynb": LAB + b"3", "__MACOSX/x/._lab.ipynb": b"-"}),
        "dan.ipynb": LAB + b"4",
        "eve/only one.ipynb": LAB + b"5",
        "readme.txt": b"not a student",
        ".hidden/lab.ipynb": b"-",
        "fay/.ipynb_checkpoints/lab-checkpoint.ipynb": b"-",
        "fay/lab (2).ipynb": LAB + b"6",
    }
    expected = {name: LAB + str(n).encode() for n, name in enumerate(("ada", "ben", "cyd", "dan", "eve", "fay"), 1)}
    assert students(collect(tree(tmp_path / "a", files))) == expected
    (tmp_path / "b.zip").write_bytes(zipped(files))
    assert students(collect(tmp_path / "b.zip")) == expected
    (tmp_path / "c.zip").write_bytes(zipped({f"all of them/{name}": data for name, data in files.items()}))
    assert students(collect(tmp_path / "c.zip")) == expected


def test_nbgraders_own_layout(tmp_path):
    files = {
        "ada/06-data-parallel/lab.ipynb": b"six",
        "ada/06-data-parallel/timestamp.txt": b"2026-11-03 09:00:00.5 UTC",
        "ada/07-zero/lab.ipynb": b"seven",
    }
    found = collect(tree(tmp_path, files), lab="06-data-parallel")
    assert [(s.student, s.raw, s.received) for s in found] == [("ada", b"six", datetime(2026, 11, 3, 9, 0, 0, 500000))]


@pytest.mark.parametrize("folder", ["_assignsubmission_file_/", "_assignsubmission_file/", "_assignsubmission_file_"])
def test_moodle(tmp_path, folder):
    files = {
        f"Ada King Lovelace_1815{folder}lab.ipynb": b"ada",
        f"Müller, Jörg_12{folder}lab.ipynb": b"joerg",
        f"王小明_7{folder}lab.ipynb": b"wang",
    }
    if folder.endswith("/"):
        files["Ada King Lovelace_1815_assignsubmission_onlinetext_/onlinetext.html"] = b"<p>see file"
        files["Bo Text_9_assignsubmission_onlinetext_/onlinetext.html"] = b"<p>my answer"
    (tmp_path / "export.zip").write_bytes(zipped(files))
    found = {s.lms_id: s for s in collect(tmp_path / "export.zip")}
    ada = found["Participant 1815"]
    assert (ada.student, ada.name, ada.raw, ada.problem) == ("Ada-King-Lovelace-1815", "Ada King Lovelace", b"ada", "")
    assert found["Participant 12"].student == "Muller-Jorg-12" and found["Participant 12"].name == "Müller, Jörg"
    assert (found["Participant 7"].student, found["Participant 7"].raw) == ("7", b"wang")
    if folder.endswith("/"):
        assert "There is no notebook" in found["Participant 9"].problem


def test_canvas(tmp_path):
    files = {
        "lovelaceada_4711_90001_lab.ipynb": b"ada",
        "kingben_LATE_12_90002_lab-2.ipynb": b"ben",
        "zipcyd_13_90003_work.zip": zipped({"lab.ipynb": b"cyd"}),
        "otherdan_14_90004_essay.pdf": b"%PDF",
    }
    found = {s.lms_id: s for s in collect(tree(tmp_path, files))}
    assert {k: s.raw for k, s in found.items()} == {"4711": b"ada", "12": b"ben", "13": b"cyd", "14": b""}
    assert found["4711"].name == "lovelaceada" and found["4711"].student == "lovelaceada-4711"
    assert "no notebook" in found["14"].problem


def test_canvas_hides_names_takes_text_and_lets_names_have_underscores(tmp_path):
    files = {
        "anon_aB3xZ_99_lab.ipynb": b"one",
        "LATE_anon_Qw12e_98_lab.ipynb": b"two",
        "anon_12345_97_lab.ipynb": b"three",
        "de_la_cruz_15_90005_lab.ipynb": b"cruz",
        "kingben_12_text.html": b"<p>my answer",
        "kingcyd_LATE_13_link.html": b"<a>",
    }
    found = {s.student: s for s in collect(tree(tmp_path, files))}
    hidden = {name: (s.raw, s.name, s.lms_id) for name, s in found.items() if name.startswith("anon-")}
    assert hidden == {
        "anon-aB3xZ": (b"one", "", ""),
        "anon-Qw12e": (b"two", "", ""),
        "anon-12345": (b"three", "", ""),
    }
    assert (found["de_la_cruz-15"].raw, found["de_la_cruz-15"].lms_id) == (b"cruz", "15")
    assert {found[s].lms_id for s in ("kingben-12", "kingcyd-13")} == {"12", "13"}
    assert all("no notebook" in found[s].problem for s in ("kingben-12", "kingcyd-13"))


def test_groups_and_hidden_names_of_moodle(tmp_path):
    files = {
        "Group_one_7_assignsubmission_file/lab.ipynb": b"g",
        "Default group_assignsubmission_file/lab.ipynb": b"d",
        "Participant_8_assignsubmission_file/lab.ipynb": b"p",
    }
    found = {s.name: (s.lms_id, s.raw) for s in collect(tree(tmp_path, files))}
    assert found == {
        "Group_one": ("Participant 7", b"g"),
        "Default group": ("", b"d"),
        "Participant": ("Participant 8", b"p"),
    }


def test_what_came_another_way_lies_beside_an_export(tmp_path):
    late = {"g_4_5_race/lab.ipynb": b"grace", "hal.ipynb": b"hal", "readme.txt": b"-"}
    moodle = {"Ada L_1_assignsubmission_file/lab.ipynb": b"ada"}
    canvas = {f"{name}_{n}_{n + 90}_lab.ipynb": name.encode() for n, name in enumerate(("ada", "ben", "cyd"), 1)}
    assert {s.raw for s in collect(tree(tmp_path / "m", moodle | late))} == {b"ada", b"grace", b"hal"}
    found = {s.student: (s.lms_id, s.raw) for s in collect(tree(tmp_path / "c", canvas | late))}
    by_platform = {"ada-1": ("1", b"ada"), "ben-2": ("2", b"ben"), "cyd-3": ("3", b"cyd")}
    assert found == by_platform | {"g_4_5_race": ("", b"grace"), "hal": ("", b"hal")}


def test_one_name_like_canvas_does_not_make_an_export(tmp_path):
    names = ("ada", "ben", "team_12_3_b")
    files = {f"{name}/lab.ipynb": name.encode() for name in names} | {"two_2_3_x.ipynb": b"two"}
    found = {s.student: (s.lms_id, s.raw) for s in collect(tree(tmp_path, files))}
    assert found == {name: ("", name.encode()) for name in names} | {"two_2_3_x": ("", b"two")}


@pytest.mark.parametrize("name", ["Ada L_1_assignsubmission_file/lab.ipynb", "lovelaceada_1_90_lab.ipynb"])
def test_an_export_may_lie_in_a_folder(tmp_path, name):
    for zip_name, files in {"one": {name: LAB}, "in": {f"CS 06/{name}": LAB}}.items():
        (tmp_path / f"{zip_name}.zip").write_bytes(zipped(files))
    [one], [inside] = (collect(tmp_path / f"{zip_name}.zip") for zip_name in ("one", "in"))
    assert one == inside and one.raw == LAB and one.lms_id in ("1", "Participant 1")


def test_the_folders_of_a_moodle_student_who_is_alone_are_not_students(tmp_path):
    files = {f"Ada L_1_assignsubmission_file/{folder}/{folder}.ipynb": LAB for folder in ("lab", "other")}
    assert students(collect(tree(tmp_path, files))) == {"Ada-L-1": LAB}


def test_the_name_itself_counts_before_numbered_ones_and_then_the_last(tmp_path):
    files = {
        "ada/lab-1.ipynb": b"-",
        "ada/lab.ipynb": b"ada",
        "ben/lab-2.ipynb": b"-",
        "ben/lab-10.ipynb": b"ben",
        "cyd/collab.ipynb": b"-",
        "cyd/deep/lab (1).ipynb": b"cyd",
    }
    assert students(collect(tree(tmp_path, files))) == {"ada": b"ada", "ben": b"ben", "cyd": b"cyd"}


def test_ids_stay_apart_and_are_the_same_tomorrow(tmp_path):
    names = ["Ana", "ana", "Añá", "ann/../x", "x" * 200, "名", "a b", "a-b"]
    files = {f"{name.replace('/', '_')}/lab.ipynb": name.encode() for name in names}
    found = collect(tree(tmp_path / "all", files))
    assert len({s.student.lower() for s in found}) == len(names)
    assert all(s.student.isascii() and s.student.strip(".") and len(s.student) < 80 for s in found)
    assert [s.student for s in found] == [s.student for s in collect(tmp_path / "all")]
    assert {s.raw.decode() for s in found} == set(names)
    # Somebody with a similar name who hands in later takes nobody's id.
    alone = {f"{name}/lab.ipynb": name.encode() for name in ("Añá", "a b", "x" * 200, "名")}
    before = {s.raw: s.student for s in collect(tree(tmp_path / "before", alone))}
    assert before.items() <= {s.raw: s.student for s in found}.items()


def test_the_time_of_a_file_in_a_zip(tmp_path):
    (tmp_path / "class.zip").write_bytes(zipped({"ada/lab.ipynb": LAB}))
    here = datetime(2026, 11, 2, 10, 30).astimezone(UTC)
    assert collect(tmp_path / "class.zip")[0].received == here.replace(tzinfo=None)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path / "nowhere", "There is no"),
        (lambda path: path, "no submission"),
        (lambda path: tree(path, {"x.zip": b"PK"}) / "x.zip", "cannot be read"),
    ],
)
def test_what_cannot_be_graded_is_said(tmp_path, make, told):
    with pytest.raises(LabError, match=told):
        collect(make(tmp_path))


def test_an_unknown_platform_and_too_many_files(tmp_path, monkeypatch):
    with pytest.raises(LabError, match="no platform 'blackboard'"):
        collect(tmp_path, lms="blackboard")
    tree(tmp_path, {f"{n}.ipynb": LAB for n in range(4)})
    monkeypatch.setattr(entries, "MOST_FILES", 3)
    with pytest.raises(LabError, match="more than 3 files"):
        collect(tmp_path)
    assert intake.PLATFORMS[0] == "auto"
    many = zipped({f"{n}.ipynb": LAB for n in range(4)})
    found = {s.student: s for s in collect(tree(tmp_path / "class", {"ada.zip": many, "ben.ipynb": LAB}))}
    assert "more than 3 files" in found["ada"].problem and found["ben"].raw == LAB
