"""Small configurations of the two kinds of model that the ledger has formulas for."""

from __future__ import annotations

from transformers import LlamaConfig, OPTConfig, PretrainedConfig

WORDS = 64


def llama(layers: int = 2, tied: bool = True, attention: str = "sdpa", **changes) -> PretrainedConfig:
    """Width 32, four query heads on two heads of keys."""
    sizes = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}
    return LlamaConfig(
        **{**sizes, **changes},
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        attn_implementation=attention,
    )


def opt(layers: int = 2, tied: bool = True, attention: str = "sdpa", dropout: float = 0.0) -> PretrainedConfig:
    """Width 32, four heads, biases."""
    return OPTConfig(
        vocab_size=WORDS,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        dropout=dropout,
        tie_word_embeddings=tied,
        attn_implementation=attention,
    )


def wide_llama(layers: int = 6) -> PretrainedConfig:
    """Wide enough that no rounding decides: width 256, grouped queries."""
    return llama(layers, vocab_size=2048, hidden_size=256, intermediate_size=704)


def wide_opt(layers: int = 6) -> PretrainedConfig:
    """The same for OPT."""
    config = opt(layers)
    config.vocab_size, config.hidden_size, config.word_embed_proj_dim, config.ffn_dim = 2048, 256, 256, 1024
    return config
