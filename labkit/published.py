"""Configurations of published models, for their memory and speed with random weights: no file is fetched.

OPT: Zhang et al. 2022, arXiv:2205.01068, table 1 (350M, which normalizes late and projects its embeddings, is left
out). LLaMA: Touvron et al. 2023, arXiv:2302.13971, table 2, and the released configurations for the feed-forward width.
SmolLM2: Ben Allal et al. 2025, arXiv:2502.02737, and HuggingFaceTB/SmolLM2-135M on the hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labkit.errors import UnknownNameError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Layers, heads, width.
OPT = {
    "opt-125m": (12, 12, 768),
    "opt-1.3b": (24, 32, 2048),
    "opt-2.7b": (32, 32, 2560),
    "opt-6.7b": (32, 32, 4096),
    "opt-13b": (40, 40, 5120),
    "opt-30b": (48, 56, 7168),
    "opt-66b": (64, 72, 9216),
    "opt-175b": (96, 96, 12288),
}
# Layers, heads, width, feed-forward width.
LLAMA = {
    "llama-7b": (32, 32, 4096, 11008),
    "llama-13b": (40, 40, 5120, 13824),
    "llama-33b": (60, 52, 6656, 17920),
    "llama-65b": (80, 64, 8192, 22016),
}
SMOLLM2_135M = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
NAMES = ("smollm2-135m", *OPT, *LLAMA)


def config(name: str, **changes: Any) -> PretrainedConfig:
    """The transformers configuration of a published model; `changes` go over its fields.

    Raises:
        UnknownNameError: for a name that is none of NAMES.
    """
    from transformers import LlamaConfig, OPTConfig

    if name in OPT:
        layers, heads, width = OPT[name]
        sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
        return OPTConfig(**{**sizes, "num_hidden_layers": layers, "num_attention_heads": heads, **changes})
    if name in LLAMA:
        layers, heads, width, inner = LLAMA[name]
        sizes = {"hidden_size": width, "intermediate_size": inner, "tie_word_embeddings": False}
        return LlamaConfig(**{**sizes, "num_hidden_layers": layers, "num_attention_heads": heads, **changes})
    if name == "smollm2-135m":
        return LlamaConfig(**{**SMOLLM2_135M, **changes})  # type: ignore[arg-type]
    raise UnknownNameError.among("published model", name, NAMES)


def source(name: str) -> str:
    """What to load for a name: OPT's id on the Hugging Face hub; other names as they are."""
    return f"facebook/{name}" if name in OPT else name


def only_sizes(name: str) -> bool:
    """Whether a name is that of a configuration without weights: one of OPT or LLAMA, or a `config.json`."""
    return name in OPT or name in LLAMA or name.endswith(".json")
