"""A Llama of a few thousand weights and a task of letters: a training step takes milliseconds."""

from __future__ import annotations

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.tasks import Batch, Example, Sentiment


class Letters(Sentiment):
    """Which of two letters a word holds more of, asked as `Sentiment` asks: by the likelier next token."""

    name = "letters"

    def __init__(self, train: int = 64, test: int = 24):
        draw = random.Random(0)
        words = ["".join(draw.choices("abcde", k=draw.randint(3, 9))) for _ in range(train + test)]
        examples = [Example(w, int(w.count("a") > w.count("b"))) for w in words]
        self.train, self.test = examples[:train], examples[train:]
        self.label_ids = torch.tensor([7, 8])

    def batch(self, examples: list[Example]) -> Batch:
        """One token a letter, padded on the left."""
        longest = max(len(e.text) for e in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, longest - len(example.text) :] = torch.tensor([ord(c) - 96 for c in example.text])
        return Batch(ids, (ids != 0).long(), torch.tensor([e.label for e in examples]))


def micro_llama(seed: int = 0) -> LlamaForCausalLM:
    """Two layers of width 32, grouped queries, embedding and head tied."""
    shape = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.15,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape)


class Small(torch.nn.Module):
    """Named as a language model names its parts."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(6, 3)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(2)])
        self.norm = torch.nn.LayerNorm(3)
        self.lm_head = torch.nn.Linear(3, 6, bias=False)
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x).relu()
        return self.lm_head(self.norm(x))
