"""Models small enough to compare every number with peft's, and their twins with peft's adapters."""

from __future__ import annotations

import copy
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from labkit.adapters.attach import attach, lora_layers
from labkit.adapters.dora import DoraLinear
from labkit.adapters.lora import LoraLinear, LoraSpec
from labkit.adapters.targets import MODULES

CONFIGS = {
    "llama": LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        initializer_range=0.15,
    ),
    "opt": OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=50,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        dropout=0.0,
        init_std=0.15,
    ),
}
PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")


def base(kind: str, seed: int = 0):
    """A model with random weights; biases are random too, or an error in them would not show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind]).train()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def ids(rows: int = 3, length: int = 7):
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(1))


def peft_model(model, kind: str, spec: LoraSpec, dora: bool = False, **options):
    """peft's adapters of the same form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.lora_alpha,
            lora_dropout=spec.dropout,
            use_rslora=spec.rslora,
            use_dora=dora,
            target_modules=[MODULES[kind][name] for name in spec.targets],
            **options,
        )
        return get_peft_model(model, config).train()


def weights(model) -> dict[str, torch.Tensor]:
    """What trains in ours, under peft's names."""
    found = {}
    for path, layer in lora_layers(model):
        for part in PARTS:
            if hasattr(layer, part):
                found[f"base_model.model.{path}.{part}.default.weight"] = getattr(layer, part)["default"]
    return found


def pair(kind: str, spec: LoraSpec, dora: bool = False):
    """Our model and peft's, with the same weights, B away from zero and magnitudes away from the start."""
    ours = base(kind)
    theirs = peft_model(copy.deepcopy(ours), kind, spec, dora)
    attach(ours, spec, kind=DoraLinear if dora else LoraLinear)
    generator = torch.Generator().manual_seed(2)
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, value in weights(ours).items():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(value * (1 + 0.2 * noise) if "magnitude" in name else 0.3 * noise)
            named[name].copy_(value)
    return ours, theirs


def step(model, tokens, seed: int = 5):
    """Logits, and the loss's gradients in place."""
    torch.manual_seed(seed)  # of dropout
    output = model(input_ids=tokens, labels=tokens)
    output.loss.backward()
    return output.logits.detach()


def near(a, b, scale: float = 2e-6) -> bool:
    """Equal to fp32 rounding, relative to the largest value."""
    return bool((a - b).abs().max() <= scale * b.abs().max().clamp_min(1e-6))
