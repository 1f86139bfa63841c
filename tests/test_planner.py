"""The planner: its fits and batches are the prediction's, its lines run, and what it cannot know it says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from micro import Letters, micro_llama
from typer.testing import CliRunner

from labkit import models
from labkit.cli import app
from labkit.errors import LabError, UnknownNameError
from labkit.ledger import flops
from labkit.ledger.gpus import CONTEXT, FRAGMENTS, GIB, MIB, host_memory, memory, usable
from labkit.ledger.predict import gradients, predict, standing
from labkit.ledger.shapes import Architecture
from labkit.memory.offloaded import OffloadedFineTuning
from labkit.parallel.zero_formula import bytes_per_rank
from labkit.paths import DATA, ROOT
from labkit.planner import _WORDS, Plan, architecture, largest_batch, plan
from labkit.published import LLAMA, OPT
from labkit.ways import WAYS

CPU = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "LABKIT_SCALE": "tiny"}
QUIET = {"capture_output": True, "text": True, "timeout": 120}


def test_sizes_of_gpus():
    assert memory("24GB") == memory("24 GiB") == memory("RTX-4090") == 24 * GIB
    assert memory("512MB") == GIB // 2
    assert usable(memory("24GB")) < 24 * GIB - CONTEXT and usable(1) == 0
    for wrong in ("0GB", "-4GB"):
        with pytest.raises(LabError, match="no size"):
            memory(wrong)
    with pytest.raises(UnknownNameError, match="rtx-4090"):
        memory("rtx-4099")


def test_the_reserve_is_the_median_of_what_was_measured():
    rows = [row for row in json.loads((DATA / "reference" / "anatomy.json").read_text())["rows"] if row["driver_mib"]]
    over = median(row["driver_mib"] - row["peak_reserved_mib"] + row["workspaces_mib"] for row in rows)
    gaps = median(row["peak_reserved_mib"] / row["peak_allocated_mib"] - 1 for row in rows)
    assert (
        len(rows) > 40
        and pytest.approx(over * MIB, rel=0.01) == CONTEXT
        and pytest.approx(gaps, abs=0.005) == FRAGMENTS
    )
    assert usable(24 * GIB) == pytest.approx((24 * GIB - over * MIB) / (1 + gaps), rel=0.005)


@pytest.mark.parametrize("wrong", ["abc", "h100", "0GB", "-1GB", "64"])
def test_a_host_is_a_size_and_no_gpu(wrong):
    with pytest.raises(LabError, match=r"no size of host memory.*such as 64GB") as found:
        plan("opt-125m", "24GB", host=wrong)
    assert "GPU" not in str(found.value) and repr(wrong) in str(found.value)
    assert host_memory(" 64 GiB") == memory("64GB")


def test_published_sizes_have_the_parameters_of_their_names():
    for name in (*OPT, *LLAMA):
        billions = float(name.split("-")[1][:-1]) * (1e-3 if name.endswith("m") else 1)
        assert abs(architecture(name).parameters / 1e9 / billions - 1) < 0.06, name


def test_a_fit_is_the_prediction_and_the_largest_batch_is_the_last_that_fits():
    found = plan("opt-1.3b", "24GB", batch=1, seq_len=512)
    assert len(found.options) == 2 * len(WAYS)
    for option in found.options:
        assert option.fits == (option.peak.total <= found.usable) == (option.largest_batch >= 1)
        assert option.fits or "GiB" in option.problem
        for batch, fits in ((option.largest_batch, True), (option.largest_batch + 1, False)):
            if batch:
                assert (predict(option.case.with_(batch=batch)).peak.total <= found.usable) == fits
    order = [option.fits for option in found.options]
    assert order == sorted(order, reverse=True)
    by_name = {option.name: option for option in found.options}
    assert by_name["full-fp32+checkpointing"].largest_batch > by_name["full-fp32"].largest_batch
    assert by_name["offloaded"].peak.total < by_name["full-bf16"].peak.total < by_name["full-fp32"].peak.total
    assert largest_batch(by_name["full-fp32"].case, 10**9) == 0


def test_the_host_and_several_gpus():
    small = plan("llama-7b", "24GB", batch=1, seq_len=128, host="64GB", only="offloaded")
    assert not any(option.fits for option in small.options) and "on the host" in small.options[0].problem
    large = plan("llama-7b", "24GB", batch=1, seq_len=128, host="128GB", only="offloaded")
    assert large.best is not None and large.best.host_bytes == pytest.approx(14 * large.arch.parameters, rel=1e-2)
    shards = {o.name: o for o in plan("llama-7b", "24GB", batch=1, seq_len=128, gpus=8).options if "zero" in o.name}
    peaks = [shards[f"zero{stage}"].peak.total for stage in (1, 2, 3)]
    assert peaks == sorted(peaks, reverse=True)
    with pytest.raises(LabError, match="0 GPUs"):
        plan("opt-1.3b", "24GB", gpus=0)
    with pytest.raises(UnknownNameError, match="full-fp32"):
        plan("opt-1.3b", "24GB", only="full-fp31")


def test_a_way_for_another_number_of_gpus_is_told():
    with pytest.raises(LabError, match=r"several GPUs.*--gpus 2"):
        plan("opt-1.3b", "24GB", only="torch.fsdp2+peft.lora")
    with pytest.raises(LabError, match="one GPU"):
        plan("opt-1.3b", "24GB", gpus=2, only="full-fp32")
    alone, several = (plan("opt-1.3b", "24GB", gpus=count) for count in (1, 2))
    offloaded = next(option for option in several.options if option.name == "offloaded")
    assert offloaded.way.what.startswith("on one GPU") and offloaded.case.world_size == 1
    assert any("several GPUs" in line for line in several.unknown) and not any("several" in u for u in alone.unknown)


def test_what_the_offloaded_way_says_is_what_the_method_predicts():
    method, model = OffloadedFineTuning(weights="bfloat16"), micro_llama()
    method.prepare(model, Letters(), steps=1)
    way = next(way for way in WAYS if way.name == "offloaded")
    assert way.host(way.case(Architecture.of(model.config), 1, 8)) == sum(method.host_bytes().values())
    case = way.case(architecture("tiny"), 1, 8)
    assert case.offloaded and "optimizer_states" not in predict(case).peak.bytes
    assert method.predicted_bytes()["optimizer_states"] == 0
    method.close()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("segments", [0, 4])
def test_the_lines_run(way, segments, monkeypatch):
    monkeypatch.setenv("LABKIT_SCALE", "tiny")
    lines = way.lines("tiny", batch=2, seq_len=16, segments=segments).replace("steps=100", "steps=2, progress=False")
    lines = lines.replace("task.seq_len = 16", "task.seq_len = 16\ntask.test = task.test[:8]")
    scope: dict = {}
    exec(lines, scope)
    assert len(scope["run"].losses) == 2
    assert ('dtype="bfloat16", device' in lines) == (way.changes.get("train") == "lora")


def on_two(*names) -> list:
    return [o for o in plan("tiny", "24GB", batch=4, seq_len=16, gpus=2).options if o.name in names]


ON_TWO = on_two("ddp", "zero3+checkpointing", "torch.fsdp2+checkpointing", "torch.fsdp2+peft.lora")


def test_ways_on_several_gpus_hold_what_zeros_formula_says():
    """At a size where activations are nothing: 16 bytes a parameter, shared out by stage; LoRA leaves 2 of 16."""
    options = {o.name: o for o in plan("llama-65b", "80GB", batch=1, seq_len=8, gpus=8).options}
    stages = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "torch.fsdp2": 3}
    for name, stage in stages.items():
        case = options[name].case
        held = sum(standing(case).values()) + gradients(case)
        formula = bytes_per_rank(stage, options[name].case.arch.parameters, 8)
        assert held == pytest.approx(formula, rel=1e-3), name
    lora = standing(options["torch.fsdp2+peft.lora"].case)
    assert sum(lora.values()) == pytest.approx(2 * options["ddp"].case.arch.parameters / 8, rel=0.01)
    fits = {o.name for o in plan("opt-30b", "h100", batch=4, seq_len=1024, gpus=2).options if o.fits}
    assert fits == {"torch.fsdp2+peft.lora", "torch.fsdp2+peft.lora+checkpointing", "offloaded+checkpointing"}


@pytest.mark.parametrize("option", ON_TWO, ids=lambda option: option.name)
def test_the_torchrun_lines_run(option):
    """As they stand, but for the number of steps, and fp32 for a CPU's sake."""
    lines = option.way.lines("tiny", 4, 16, option.case.segments)
    assert (
        lines.startswith("torchrun --standalone --nproc-per-node 2 -m labkit.parallel.jobs.") and "--batch 8" in lines
    )
    assert ("--checkpointed" in lines) == bool(option.case.segments)
    shell = ["bash", "-c", lines.replace("--steps 100", "--steps 2 --tests 8 --dtype float32")]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(shell, env={**os.environ, **CPU, "PATH": path}, **QUIET)
    assert done.returncode == 0 and "accuracy" in done.stdout, done.stderr[:2000]


def trained_by(plan_: Plan, monkeypatch) -> dict:
    monkeypatch.setenv("LABKIT_SCALE", "tiny")
    scope: dict = {}
    exec(plan_.lines(plan_.best).replace("steps=100", "steps=2, progress=False"), scope)
    assert len(scope["run"].losses) == 2
    return scope


def written(folder, **changes):
    """A small model's config.json; its folder is made."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    folder.mkdir()
    fields = {"model_type": "llama", "vocab_size": 8192, "tie_word_embeddings": True, **sizes, **changes}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder / "config.json"


def test_the_lines_for_a_mere_configuration_run(tmp_path, monkeypatch):
    found = plan(str(written(tmp_path / 'a "b"')), "8GB", batch=2, seq_len=16)
    scope = trained_by(found, monkeypatch)
    assert sum(p.numel() for p in scope["model"].parameters()) == found.arch.parameters
    assert scope["model"].config.hidden_size == 32 and "random weights" in found.lines(found.best)


def test_the_lines_for_a_folder_with_weights_load_them(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    models.load("tiny").save_pretrained(folder)
    models.tokenizer("tiny").save_pretrained(folder)
    for given in (folder, folder / "config.json"):
        found = plan(str(given), "8GB", batch=2, seq_len=16)
        assert f"models.load({json.dumps(str(folder))}," in found.lines(found.best)
    assert trained_by(found, monkeypatch)["model"].config.hidden_size == 256


def test_what_is_missing_is_said(tmp_path):
    found = plan(str(written(tmp_path / "few", vocab_size=100)), "8GB", batch=2, seq_len=16)
    assert found.lines(found.best).startswith("# Missing: weights and tokenizer") and found.arch.vocab == 100
    assert len(models.tokenizer("tiny")) == _WORDS


@pytest.mark.parametrize("name", LLAMA)
def test_a_published_model_without_a_hub_id_is_built_from_its_sizes(name):
    found = plan(name, "80GB", batch=1, seq_len=16)
    lines = found.lines(found.options[0])
    assert f'models.from_random("{name}",' in lines and 'Sentiment.load(model="tiny")' in lines
    assert Architecture.of(models.config(name)) == found.arch
    assert "facebook/opt-13b" in plan("opt-13b", "80GB", only="full-bf16").lines(found.options[0])


def test_a_search_is_made_once_for_all_batches(monkeypatch):
    asked = []
    monkeypatch.setattr("labkit.planner.predict", lambda case: asked.append(case) or predict(case))
    first = plan("opt-125m", "7.77GB", batch=2, seq_len=64)
    searched = len(asked)
    again = plan("opt-125m", "7.77GB", batch=4, seq_len=64)
    assert len(asked) - searched == len(again.options) < searched / 5
    batches = [{option.name: option.largest_batch for option in found.options} for found in (first, again)]
    assert batches[0] == batches[1] != {option.name: option.largest_batch for option in plan("opt-125m", "6GB").options}


def test_times_are_expected_only_where_such_a_gpu_was_measured(tmp_path, monkeypatch):
    case = plan("opt-1.3b", "h100", batch=4, seq_len=512, only="full-fp32").options[0].case
    row = {"products": "float32", "flops": flops.step(case), "step_ms": 250.0, "optimizer": "adamw"}
    table = {"machine": "Linux, NVIDIA H100 80GB HBM3 (85.0 GB)", "rows": [row, {**row, "step_ms": None}]}
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "anatomy.json").write_text(json.dumps(table))
    monkeypatch.setattr("labkit.paths.DATA", tmp_path)
    found = {o.name: o.seconds for o in plan("opt-1.3b", "h100", batch=4, seq_len=512).options}
    assert found["full-fp32"] == pytest.approx(0.25) and found["full-fp32+checkpointing"] > 0.3
    assert found["full-bf16"] is None and found["offloaded"] is None and found["full-adam8bit"] is None
    blockwise = {**row, "products": "bfloat16", "optimizer": "adamw8bit", "step_ms": 400.0}
    table["rows"] += [blockwise, {**blockwise, "optimizer": "adamw", "step_ms": 100.0}]
    (tmp_path / "reference" / "anatomy.json").write_text(json.dumps(table))
    found = {o.name: o.seconds for o in plan("opt-1.3b", "h100", batch=4, seq_len=512).options}
    assert found["full-adam8bit"] == pytest.approx(0.4) and found["full-bf16-autocast"] == pytest.approx(0.1)
    for other in ("80GB", "a100-80gb"):
        assert all(o.seconds is None for o in plan("opt-1.3b", other, batch=4, seq_len=512).options)


def test_a_configuration_from_a_file(tmp_path):
    path = tmp_path / "config.json"
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    path.write_text(json.dumps({"model_type": "llama", "vocab_size": 100, **sizes}))
    assert architecture(str(path)).hidden == 64
    for text in ("{", "{}", json.dumps({"model_type": "opt", "num_hidden_layers": 0})):
        path.write_text(text)
        with pytest.raises(LabError):
            architecture(str(path))


def command(*arguments):
    done = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    return done.exit_code, done.output


def test_the_command_in_words_and_as_json():
    code, text = command("--model", "opt-125m", "--gpu", "8GB", "--batch", "2", "--seq", "128")
    assert code == 0 and "full-fp32" in text and "facebook/opt-125m" in text and "Not known here" in text
    code, text = command("--model", "opt-125m", "--gpu", "8GB", "--json")
    found = json.loads(text)
    assert code == 0 and found["best"] == "full-fp32" and len(found["methods"]) == 2 * len(WAYS)
    code, text = command("--model", "opt-175b", "--gpu", "24GB")
    assert code == 1 and "Nothing fits" in text


@pytest.mark.parametrize(
    "wrong",
    [
        ("--gpu", "24XB"),
        ("--batch", "0"),
        ("--seq", "-3"),
        ("--host", "0GB"),
        ("--host", "abc"),
        ("--model", "no/such/folder"),
    ],
)
def test_wrong_usage_is_one_sentence(wrong, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"--model": "opt-125m", "--gpu": "8GB"} | {wrong[0]: wrong[1]}
    code, text = command(*[part for pair in options.items() for part in pair])
    assert code == 2 and "Traceback" not in text and len(text.strip().splitlines()) <= 4
