"""Models: the tiny one as shipped, damage that is noticed, names that lead nowhere, and SmolLM2 from its package."""

import json
import shutil
import socketserver
import threading

import pytest
import torch

from labkit import models
from labkit.errors import LabError


def test_tiny_is_a_llama_of_its_size_and_automodel_loads_it():
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models.TINY)
    assert isinstance(model, LlamaForCausalLM)
    assert 5e6 <= models.parameters(model) <= 10e6
    assert sum(p.stat().st_size for p in models.TINY.iterdir()) <= 20e6
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_random_start_has_the_shape_but_not_the_weights_and_follows_its_seed():
    pretrained, fresh = models.load("tiny"), models.from_random("tiny", seed=3)
    assert [p.shape for p in pretrained.parameters()] == [p.shape for p in fresh.parameters()]
    again = models.from_random("tiny", seed=3).lm_head.weight
    assert torch.equal(fresh.lm_head.weight, again) and not torch.equal(fresh.lm_head.weight, pretrained.lm_head.weight)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_model_is_never_loaded(tmp_path, monkeypatch, damage):
    copy = shutil.copytree(models.TINY, tmp_path / "tiny")
    monkeypatch.setattr(models, "TINY", copy)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(data if damage == "flip" else data[:1000])
    with pytest.raises(LabError, match="git checkout"):
        models.load("tiny")


def test_unknown_ids_and_dtypes_are_named(monkeypatch):
    # The variable HF_HUB_OFFLINE is read when the hub's client is imported, which was long ago.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LabError, match="no-such-model"):
        models.load("nobody/no-such-model")
    with pytest.raises(LabError, match="float17"):
        models.load("tiny", dtype="float17")


@pytest.fixture
def silent_hub(monkeypatch, tmp_path):
    """A hub that hangs up on everyone; the list has an entry for each who came."""
    came = []

    class HangUp(socketserver.BaseRequestHandler):
        def handle(self):
            came.append(self.client_address)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), HangUp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/{filename}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        yield came
        server.shutdown()


def test_a_hub_that_does_not_answer_is_asked_once(silent_hub):
    with pytest.raises(LabError, match=r"could not be loaded \(the hub does not answer") as found:
        models.config("nobody/no-such-model")
    assert len(silent_hub) == 1 and "'nobody/no-such-model'" in found.value.cause
    assert "Check the id and the network" in found.value.remedy
    assert "\n" not in str(found.value)


def test_a_published_configuration_and_one_in_a_file_need_no_hub(silent_hub):
    assert models.config("llama-7b").num_hidden_layers == 32 and models.config("opt-125m").hidden_size == 768
    assert models.config(str(models.TINY / "config.json")).vocab_size == models.config("tiny").vocab_size
    assert not silent_hub


def test_tokenizer_round_trips_any_text_and_pads_on_the_left():
    tokenizer = models.tokenizer("tiny")
    text = "Naïve — “quoted”, 日本 and\ttabs"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids[1:]) == text and ids[0] == tokenizer.bos_token_id
    assert tokenizer.padding_side == "left" and len(tokenizer) == models.config("tiny").vocab_size


@pytest.mark.slow
def test_smollm2_is_unpacked_once_sealed_and_repaired():
    try:
        model = models.load("smollm2-135m")
    except LabError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error}")
    assert models.parameters(model) == 134_515_008
    folder = models.prepare("smollm2-135m")
    assert set(json.loads((folder / models.DIGESTS).read_text())) >= {"model.safetensors", "config.json"}
    tokenizer = models.tokenizer("smollm2-135m")
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**ids).logits[0, -1].argmax()) == " Paris"
    (folder / "config.json").write_text("{}")  # damaged: made again, not loaded
    assert models.parameters(models.load("smollm2-135m")) == 134_515_008
