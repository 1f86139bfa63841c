"""labkit.machine and labkit.probe: facts about this machine, and about machines that are not here."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import types

import pytest
from machines import machine

from labkit import probe
from labkit.machine import DTYPES, GB, Gpu, Machine, Problem

H100 = Gpu("NVIDIA H100", 80 * GB, (9, 0))
T4 = Gpu("Tesla T4", 15 * GB, (7, 5))


def fake_torch(cuda_version=None, available=False, gpus=(), archs=("sm_75", "sm_90"), fails=None) -> types.ModuleType:
    """What probe asks of torch, answering for another machine."""

    def properties(index):
        name, memory, (major, minor) = gpus[index]
        return types.SimpleNamespace(name=name, total_memory=memory, major=major, minor=minor)

    def is_available():
        if fails:
            raise RuntimeError(fails)
        return available

    torch = types.ModuleType("torch")
    torch.__version__ = "2.13.0"
    torch.version = types.SimpleNamespace(cuda=cuda_version)
    torch.cuda = types.SimpleNamespace(
        is_available=is_available,
        device_count=lambda: len(gpus),
        get_device_properties=properties,
        get_arch_list=lambda: list(archs),
    )
    return torch


@pytest.fixture
def pretend(monkeypatch):
    """Make probe see another torch and another driver."""

    def become(torch, driver=None):
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(probe, "nvidia_driver", lambda: driver)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return become


def test_here_agrees_with_what_the_system_says():
    import psutil
    import torch

    here = Machine.here()
    assert here is Machine.here(), "found once, then kept"
    assert here.memory_bytes <= psutil.virtual_memory().total
    assert here.python == ".".join(map(str, sys.version_info[:3]))
    assert here.versions["torch"] == torch.__version__
    assert len(here.gpus) <= torch.cuda.device_count()
    assert here.device == ("cuda" if here.gpus else "cpu")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_cores_are_those_that_the_process_may_use():
    allowed = sorted(os.sched_getaffinity(0))[:1]
    code = f"import os; os.sched_setaffinity(0, {allowed}); from labkit import probe; print(probe.cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_override_holds_within_its_block_and_nests():
    real = Machine.here()
    with Machine.override(machine(cores=3)):
        assert Machine.here().cores == 3
        with Machine.override(machine(cores=5)):
            assert Machine.here().cores == 5
        assert Machine.here().cores == 3
    with pytest.raises(ZeroDivisionError), Machine.override(machine(cores=7)):
        1 / 0  # noqa: B018
    assert Machine.here() is real


@pytest.mark.parametrize(
    ("gpu", "hardware", "emulated", "absent"),
    [
        (H100, {"fp32", "tf32", "fp16", "bf16", "fp8"}, {"fp4"}, set()),
        (T4, {"fp32", "fp16"}, {"bf16", "fp8", "fp4"}, {"tf32"}),
        (Gpu("RTX 4090", 24 * GB, (8, 9)), {"fp32", "tf32", "fp16", "bf16", "fp8"}, {"fp4"}, set()),
        (Gpu("A100", 40 * GB, (8, 0)), {"fp32", "tf32", "fp16", "bf16"}, {"fp8", "fp4"}, set()),
        (Gpu("B200", 180 * GB, (10, 0)), set(DTYPES), set(), set()),
    ],
)
def test_formats_in_hardware_follow_the_gpu(gpu, hardware, emulated, absent):
    support = machine(gpus=(gpu,)).dtypes
    by_kind = {kind: {d for d, how in support.items() if how == kind} for kind in ("hardware", "emulated", "no")}
    assert by_kind == {"hardware": hardware, "emulated": emulated, "no": absent}


@pytest.mark.parametrize(
    ("flags", "bf16", "fp16"),
    [
        ({"avx2", "f16c"}, "emulated", "emulated"),
        ({"avx512_bf16"}, "hardware", "emulated"),
        ({"amx_bf16", "avx512_fp16"}, "hardware", "hardware"),
        ({"asimdhp", "bf16"}, "hardware", "hardware"),
    ],
)
def test_formats_in_hardware_follow_the_cpu_flags(flags, bf16, fp16):
    support = machine(cpu_flags=frozenset(flags)).dtypes
    assert (support["fp32"], support["bf16"], support["fp16"], support["tf32"]) == (
        "hardware",
        bf16,
        fp16,
        "no",
    )


def test_torch_without_cuda_on_a_cuda_machine_is_a_problem_with_its_remedy(pretend):
    pretend(fake_torch(cuda_version=None), driver="NVIDIA RTX A2000")
    found, problems = probe.gpus()
    assert found == []
    [(what, remedy)] = problems
    assert "NVIDIA RTX A2000" in what and "without CUDA" in what
    assert "pytorch.org/get-started/locally" in remedy


def test_a_driver_too_old_for_torch_is_another_problem(pretend):
    pretend(fake_torch(cuda_version="13.0"), driver="NVIDIA RTX A2000")
    _, [(what, remedy)] = probe.gpus()
    assert "cannot use it" in what and "driver" in remedy and "13.0" in remedy


def test_no_gpu_and_a_hidden_gpu_are_no_problem(pretend, monkeypatch):
    pretend(fake_torch())
    assert probe.gpus() == ([], [])
    pretend(fake_torch(), driver="NVIDIA RTX A2000")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert probe.gpus() == ([], [])


def test_a_gpu_older_than_the_build_is_left_out_and_named(pretend):
    old, new = ("GTX 1080", 8 * GB, (6, 1)), ("RTX 3060", 12 * GB, (8, 6))
    pretend(fake_torch("13.0", available=True, gpus=(old, new)))
    usable, [(what, _)] = probe.gpus()
    assert usable == [("RTX 3060", 12 * GB, (8, 6), 1)]
    assert "GTX 1080" in what and "6.1" in what


def test_a_driver_that_raises_becomes_a_problem_and_no_crash(pretend):
    pretend(fake_torch("13.0", fails="CUDA driver initialization failed"))
    usable, [(what, remedy)] = probe.gpus()
    assert usable == [] and "initialization failed" in what and remedy


def test_a_torch_that_cannot_be_imported_is_a_problem(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` raise ImportError
    usable, [(what, remedy)] = probe.gpus()
    assert usable == [] and "torch cannot be imported" in what and "pip install" in remedy


def test_shortages_name_the_remedy():
    found = probe.shortages(memory=2 * GB, disk=GB // 2, installed={"torch": "2.13.0", "jupyterlab": "4.6"})
    text = " ".join(what + remedy for what, remedy in found)
    assert len(found) == 3 and "transformers" in text and "2.0 GB of memory" in text and "LABKIT_CACHE" in text
    assert probe.shortages(64 * GB, 64 * GB, dict.fromkeys(("torch", "transformers", "jupyterlab"), "1")) == []


def test_printed_forms_and_json_say_the_same():
    trouble = machine(gpus=(H100,), problems=(Problem("It <rattles>.", "Oil it."),))
    assert "8 cores" in str(trouble) and "NVIDIA H100 (80.0 GB)" in str(trouble)
    assert "1 core," in str(machine(cores=1)) and "no GPU" in str(machine())
    page = trouble._repr_html_()
    assert "It &lt;rattles&gt;. Oil it." in page and "<rattles>" not in page
    facts = json.loads(json.dumps(trouble.as_dict()))
    assert facts["gpus"][0]["capability"] == [9, 0] and facts["device"] == "cuda"
    assert facts["problems"] == [{"what": "It <rattles>.", "remedy": "Oil it."}]
    assert pickle.loads(pickle.dumps(trouble)) == trouble
