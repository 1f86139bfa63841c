"""The fast sampler computes what Hugging Face's `generate` computes, token by token."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.pretrain.sampler import Sampler, Sampling, draw

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PROMPTS = [[5, 9, 3], [7], [1, 2, 3, 4, 5, 6, 8], [11, 12]]


def model(device: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, eos_token_id=96, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device).eval()


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_equals_generate_for_prompts_of_unequal_length(device):
    llama = model(device)
    sampler = Sampler(llama, batch=4, prompt_len=8, new_tokens=60, sampling=Sampling(temperature=0))
    for _ in range(2):  # the second call must find nothing of the first in its buffers
        ours = sampler(PROMPTS)
    for prompt, row in zip(PROMPTS, ours.tolist(), strict=True):
        ids = torch.tensor([prompt], device=device)
        full = llama.generate(ids, max_new_tokens=60, min_new_tokens=60, do_sample=False, eos_token_id=None)
        assert row == full[0, len(prompt) :].tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_min_p_never_draws_what_it_cuts_and_draws_in_proportion(device):
    torch.manual_seed(0)
    logits = torch.log(torch.tensor([0.5, 0.3, 0.19, 0.01], device=device)).expand(40_000, 4)
    share = draw(logits, Sampling(temperature=1.0, min_p=0.1)).bincount(minlength=4) / 40_000
    assert share[3] == 0
    assert torch.allclose(share[:3].cpu(), torch.tensor([0.5, 0.3, 0.19]) / 0.99, atol=0.01)


def test_repeat_cost_counts_every_earlier_draw():
    llama = model("cpu")
    plain = Sampler(llama, 4, 8, 40, Sampling(temperature=0))(PROMPTS)
    costly = Sampler(llama, 4, 8, 40, Sampling(temperature=0, repeat_cost=1e4))(PROMPTS)
    assert all(len(set(row)) == 40 for row in costly.tolist())
    assert any(len(set(row)) < 40 for row in plain.tolist())
