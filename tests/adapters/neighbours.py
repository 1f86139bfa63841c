"""Small models of both kinds, their twins with peft's methods, and what every method has to keep in training."""

from __future__ import annotations

import copy
import warnings

import torch
from micro import Letters
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from labkit.adapters.method import Adapted
from labkit.training import evaluate, train

SPECIAL = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
CONFIGS = {
    "llama": LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        max_position_embeddings=64,
        initializer_range=0.15,
        **SPECIAL,
    ),
    "opt": OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=50,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        dropout=0.0,
        init_std=0.15,
        **SPECIAL,
    ),
}
KINDS = tuple(CONFIGS)
TASK = Letters()


def base(kind: str):
    """A model with random weights; biases and norms are random too, or an error in them would not show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind])
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.1)
    return model.eval()


def padded() -> dict[str, torch.Tensor]:
    """Three rows of seven tokens, padded on the left by three, one and none."""
    ids = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(7) >= torch.tensor([[3], [1], [0]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def peft_twin(model, config):
    """A copy of the model with peft's method."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = get_peft_model(copy.deepcopy(model), config)
    if not config.is_prompt_learning:
        return twin.eval()
    # newer versions of transformers call the cache by another name than peft 0.21 looks for in `generate`
    prepare = twin.base_model_prepare_inputs_for_generation

    def renamed(*args, **kwargs):
        inputs = prepare(*args, **kwargs)
        if "cache" in inputs:
            inputs["past_key_values"] = inputs.pop("cache")
        return inputs

    twin.base_model_prepare_inputs_for_generation = renamed
    return twin.eval()


def loss(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A number in which every logit of a real token counts differently."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    return (logits * weights * mask[..., None]).sum()


def trained(model) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_training(method: Adapted, kind: str, count: int, weights: str = "") -> torch.nn.Module:
    """Three steps: `count` values train, all bytes are as predicted, frozen weights are as they were, to the bit."""
    model = base(kind)
    method.weights = weights
    before = {p.data_ptr(): p.detach().clone() for p in model.parameters()} if not weights else {}
    run = train(model, TASK, method, steps=3, batch_size=8, progress=False)
    assert run.trainable_params == count == sum(p.numel() for p in trained(model).values())
    for category in ("weights", "gradients", "optimizer_states"):
        assert run.ledger.measured[category] > 0
        assert run.ledger.residual(category) == 0, (category, run.ledger)
    seen = 0
    for parameter in model.parameters():
        if not parameter.requires_grad and before:
            assert torch.equal(parameter, before[parameter.data_ptr()])
            seen += 1
    assert seen or weights
    assert all(p.dtype == torch.float32 for p in trained(model).values())
    assert len(set(run.losses)) == 3
    assert {"step": 3, **evaluate(model, TASK)} == run.evaluations[-1]
    return model
