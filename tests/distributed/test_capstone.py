"""FSDP2 with LoRA: peft's values, the formula's bytes, born in shards, gone on with at any world size."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import capstone_runs as runs
import pytest
import torch
from peft import PeftModel

from labkit import models
from labkit.errors import LabError
from labkit.parallel.fsdp_lora import FsdpLora
from labkit.parallel.jobs.capstone import Recipe
from labkit.parallel.launch import RankError, launch
from labkit.parallel.sharded_weights import own_rows
from labkit.paths import ROOT

pytestmark = pytest.mark.usefixtures("without_gpus")


def test_values_and_bytes_and_birth_in_shards():
    pairs = [launch(runs.values_and_birth, ranks, timeout_s=300.0) for ranks in (2, 3)]
    for found, _ in (rank for ranks in pairs for rank in ranks):
        assert len(found) == 4 and not {name: said for name, said in found.items() if said}
    two, three = (ranks[-1][1] for ranks in pairs)
    for found in (two, three):
        for name, value in found["read"].items():
            assert torch.equal(value, found["whole"][name]), name
    for name, value in two["random"].items():
        assert torch.equal(value, three["random"][name]) and value.float().std() <= 0.03, name
    assert any(value.dim() > 1 and value.std() > 0.01 for value in two["random"].values())
    assert two["read rows"] != three["read rows"]


def test_a_checkpoint_of_another_model_is_refused_on_all_ranks():
    with pytest.raises(RankError, match=r"has no weight 'model.layers.1.mlp.up_proj.weight'"):
        launch(runs.missing_weight, 2)


def test_rows_are_those_of_shard_0():
    whole = torch.arange(7)
    assert [own_rows(whole, rank, 4).tolist() for rank in range(4)] == [[0, 1], [2, 3], [4, 5], [6]]
    assert [len(own_rows(whole[:2], rank, 4)) for rank in range(4)] == [1, 1, 0, 0]


def test_goes_on_at_other_world_sizes_and_peft_reads_the_adapter(tmp_path):
    straight, cut = launch(runs.first, 2, str(tmp_path), timeout_s=300.0)[0]
    middle = launch(runs.more, 3, str(tmp_path), 7, timeout_s=300.0)[1]
    end, sharded, names = launch(runs.last, 1, str(tmp_path), timeout_s=300.0)[0]
    assert (cut["done"], middle["done"], end["done"]) == (0, 4, 7)
    losses = [*cut["losses"], *middle["losses"], *end["losses"]]
    assert losses == pytest.approx(straight["losses"], abs=1e-4) and len(losses) == runs.RECIPE["steps"]
    assert end["accuracy"] == pytest.approx(straight["accuracy"], abs=0.03)
    assert end["before"] and end["after"]
    base = models.load("tiny")
    assert names == {name for name, _ in base.named_parameters()}
    plain = PeftModel.from_pretrained(base, tmp_path / "cut" / "adapter").eval()
    ids = models.tokenizer("tiny")("A film of rare beauty.", return_tensors="pt")
    with torch.no_grad():
        ours, without = plain(**ids).logits, models.load("tiny")(**ids).logits
    assert torch.allclose(ours, sharded, atol=1e-4) and not torch.allclose(without, sharded, atol=1e-2)
    whole = PeftModel.from_pretrained(models.load("tiny"), tmp_path / "straight" / "adapter").state_dict()
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, whole[name], atol=1e-4), name
    assert [p.name for p in tmp_path.glob("cut/state-*")] == ["state-9"]
    config = json.loads((tmp_path / "cut" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny" and str(ROOT) not in json.dumps(config)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "tiny", "--stps", "3"], "unrecognized arguments: --stps 3"),
        ([], "the following arguments are required: --model"),
        (["--model", "tiny", "--steps", "0"], "steps is 0"),
        (["--model", "tiny", "--generate", "Hello"], "nothing to generate from"),
        (["--model", "tiny", "--resume", "nowhere"], "nowhere holds no training"),
        (["--model", "tiny"], "torchrun --standalone"),
        (["train", "--model", "tiny", "--method", "zero33"], "no method 'zero33'. Did you mean 'zero3'?"),
    ],
)
def test_a_wrong_request_is_one_sentence(options, says):
    job, options = ("train", options[1:]) if options[:1] == ["train"] else ("capstone", options)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "MASTER_ADDR")}
    command = [sys.executable, "-m", f"labkit.parallel.jobs.{job}", *options]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"model": "tiny", "dtype": "float32", "rank": 8}))
    with pytest.raises(LabError, match="trained with rank 8, and this run has 4"):
        Recipe("tiny", dtype="float32", rank=4, resume=str(tmp_path)).checked()


def test_settings_that_make_no_sense():
    with pytest.raises(LabError, match="no dtype of weights 'float16'"):
        FsdpLora(weights="float16")
    with pytest.raises(LabError, match="No adapters can stand beside keys"):
        FsdpLora(targets=("q", "keys"))._with_adapters(models.load("tiny"))
