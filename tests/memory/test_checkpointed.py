"""Checkpointed transformers models: same gradients and names, nothing left behind, and a method that trains."""

from __future__ import annotations

import pytest
import torch
from micro import Letters, Small, micro_llama
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

from labkit.errors import LabError
from labkit.ledger import Ledger, saved_for_backward
from labkit.memory.checkpointed import Checkpointed, checkpointed, decoder_layers
from labkit.methods import FullFineTuning
from labkit.training import train

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # new names, old ones work
TASK = Letters()
TOKENS = torch.arange(1, 13).view(2, 6)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
SETTINGS = {"steps": 6, "batch_size": 8, "progress": False}


def micro_opt(layers: int = 4, dropout: float = 0.3, **options) -> OPTForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 16, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_attention_heads": 2}
    sizes = {"num_hidden_layers": layers, "max_position_embeddings": 32, "dropout": dropout, "pad_token_id": 0}
    return OPTForCausalLM(OPTConfig(**shape, **sizes, **options)).train()


def micro_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=16, n_layer=3, n_head=2, n_positions=16)).train()


def micro_qwen(types: list[str] | None = None) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 2, "use_sliding_window": True}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, layer_types=types)).train()


def loss_of(model, **options):
    return model(input_ids=TOKENS, attention_mask=MASK, labels=TOKENS, use_cache=False, **options).loss


def gradients(model, segments: int | None, dtype=None) -> list[torch.Tensor]:
    """Loss, gradients and the next random number."""
    model.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        if segments is None:
            loss = loss_of(model)
        else:
            with checkpointed(model, segments):
                loss = loss_of(model)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters()), torch.rand(2)]


MODELS = {"llama": (micro_llama, 2), "opt": (micro_opt, 4), "gpt2": (micro_gpt2, 3)}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_without_and_those_of_transformers_own(name, dtype):
    build, layers = MODELS[name]
    model = build().train()
    plain = gradients(model, None, dtype)
    for segments in range(1, layers + 1):
        found = gradients(model, segments, dtype)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    theirs = gradients(model, None, dtype)
    assert all(torch.equal(a, b) for a, b in zip(theirs, plain, strict=True))
    model.gradient_checkpointing_disable()
    model.get_input_embeddings().requires_grad_(False)  # no run has an input that needs a gradient, and weights do
    model.zero_grad()
    with checkpointed(model, 2):
        loss_of(model).backward()
    assert all(p.grad is not None for p in decoder_layers(model)[2].parameters())


@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_layers_run_twice_and_only_inputs_are_kept(segments):
    model = micro_opt()
    calls = [0] * 4
    for place, layer in enumerate(model.model.decoder.layers):
        layer.register_forward_pre_hook(lambda *_, place=place: calls.__setitem__(place, calls[place] + 1))
    loss = loss_of(model)
    assert calls == [1] * 4

    def saved(segments: int) -> int:
        with checkpointed(model, segments), saved_for_backward(model) as kept:
            loss_of(model)
        return kept["activations"]

    with checkpointed(model, segments):
        loss = loss_of(model)
    loss.backward()  # outside of the block
    assert calls == [3] * 4
    hidden = TOKENS.numel() * 16 * 4
    assert saved(segments) - saved(1) == (segments - 1) * hidden


def test_names_are_the_same_inside_and_nothing_is_left_behind():
    model = micro_opt()
    layers, names = model.model.decoder.layers, list(model.state_dict())
    attributes = set(vars(layers[0]))
    with checkpointed(model) as chosen:
        assert chosen == 2 and list(model.state_dict()) == names
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in micro_opt().named_parameters()]
        assert model.model.decoder.layers[3] is layers[3] and model.model.decoder.layers is not layers
        assert model.model.decoder.layers.training
        model.eval()
    assert not any(m.training for m in model.modules())
    model.train()
    with pytest.raises(ZeroDivisionError), checkpointed(model, 3):
        _ = 1 / 0
    assert model.model.decoder.layers is layers and list(model.state_dict()) == names
    assert set(vars(layers[0])) == attributes
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert list(model.model.decoder._modules) == list(micro_opt().model.decoder._modules)


def test_without_gradients_the_model_computes_as_ever_with_its_cache():
    model = micro_llama().eval()
    expected = model.generate(TOKENS, max_new_tokens=5, do_sample=False)
    with checkpointed(model, 2):
        assert torch.equal(model.generate(TOKENS, max_new_tokens=5, do_sample=False), expected)


def test_hidden_states_are_those_of_the_layers():
    model = micro_llama().train()
    expected = model(input_ids=TOKENS, output_hidden_states=True, use_cache=False).hidden_states
    with checkpointed(model, 1):
        found = model(input_ids=TOKENS, output_hidden_states=True, use_cache=False).hidden_states
    assert len(found) == len(expected) == 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_layers_that_differ_in_their_masks_get_their_own_runs():
    types = ["sliding_attention", "full_attention"] * 2
    model = micro_qwen(types)
    with pytest.raises(LabError, match=r"masks.*segments = 4"), checkpointed(model, 2):
        pass
    plain, found = gradients(model, None), gradients(model, 4)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    with checkpointed(micro_qwen(["full_attention"] * 4), 2) as segments:
        assert segments == 2


def test_what_does_not_go_is_refused():
    model = micro_opt()
    for segments in (0, -2, 5):
        with pytest.raises(LabError, match="There are 4 layers"), checkpointed(model, segments):
            pass
    with checkpointed(model, 2):
        with pytest.raises(LabError, match="use_cache=False"):
            model(input_ids=TOKENS, labels=TOKENS, use_cache=True)
        with pytest.raises(LabError, match="already"), checkpointed(model, 2):
            pass
    model.gradient_checkpointing_enable()
    with pytest.raises(LabError, match="already"), checkpointed(model, 2):
        pass
    with pytest.raises(LabError, match="layerdrop"), checkpointed(micro_opt(layerdrop=0.5), 2):
        pass
    for other, count in ((Small(), "no"), (nn.ModuleList([micro_opt(), micro_opt()]), "2")):
        with pytest.raises(LabError, match=f"{count} lists of decoder layers"), checkpointed(other, 1):
            pass


def test_the_method_trains_as_full_fine_tuning_does_with_fewer_activations():
    reference = train(micro_opt(), TASK, FullFineTuning(learning_rate=3e-3), **SETTINGS)
    activations = []
    for segments in (None, 1, 4):
        model = micro_opt()
        layers = model.model.decoder.layers
        run = train(model, TASK, Checkpointed(learning_rate=3e-3, segments=segments), **SETTINGS)
        assert run.losses == reference.losses and run.config["segments"] == segments
        assert model.model.decoder.layers is layers and run.evaluations == reference.evaluations
        assert all(run.ledger.residual(c) == 0 for c in ("weights", "gradients", "optimizer_states"))
        activations.append(run.ledger.measured["activations"])
    assert activations[1] < activations[0] < activations[2] < 0.4 * reference.ledger.measured["activations"]


def test_the_method_reports_the_bytes_that_it_saved():
    model, method, ledger = micro_llama(), Checkpointed(segments=2), Ledger()
    batch = TASK.batch(TASK.train[:8])
    method.prepare(model.train(), TASK, 4)
    method.measured_step(batch, ledger)
    with checkpointed(model, 2), saved_for_backward(model) as saved:
        TASK.loss(model, batch)
    assert ledger.measured["activations"] == saved["activations"] > 2 * batch.input_ids.numel() * 32 * 4
    with pytest.raises(LabError, match="There are 2 layers"):
        Checkpointed(segments=3).prepare(model, TASK, 4)
