"""Sample long batches of text from a Llama-type model at the speed of the GPU's memory.

Hugging Face's `generate` launches some 1,200 small kernels a token for a 30-layer model, so a GPU waits for its host.
Here one decoding step reads static buffers only, and is captured in CUDA graphs and replayed. The step computes what
`LlamaForCausalLM` computes (tests compare them token by token); attention reads only the part of the cache that can
be filled by then, in buckets.

Sampling: temperature, and min-p (Nguyen et al. 2024, arXiv:2407.01082), which keeps the tokens that have at least
`min_p` times the likeliest token's probability. The draw is Gumbel-max: one argmax, no sorting, no host round trip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

BUCKET = 32


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; `temperature=0` takes the likeliest.

    `repeat_cost` is taken off a token's logit for each time that it was drawn already (a frequency penalty): without
    it a small model soon says the same sentence over and over.
    """

    temperature: float = 1.0
    min_p: float = 0.05
    repeat_cost: float = 0.0


def draw(logits: Float[Tensor, "batch vocab"], sampling: Sampling) -> Int[Tensor, " batch"]:
    """Draw one token a row."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / sampling.temperature
    floor = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
    noise = -torch.empty_like(logits).exponential_().log_()
    return (logits + noise).masked_fill_(logits < floor, -torch.inf).argmax(-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


class Sampler:
    """Decodes a fixed batch with static buffers.

    Args:
        model: a `LlamaForCausalLM` in evaluation mode; its weights are read, not copied, except the fused
            projections.
        batch: rows decoded at once.
        prompt_len: tokens that a prompt may have at most (shorter ones are padded on the left).
        new_tokens: tokens to draw for each prompt.
    """

    def __init__(self, model, batch: int, prompt_len: int, new_tokens: int, sampling: Sampling | None = None):
        config = model.config
        self.model, self.batch, self.prompt_len, self.new_tokens = model, batch, prompt_len, new_tokens
        self.sampling = sampling or Sampling()
        self.kv_heads, self.heads = config.num_key_value_heads, config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        weight = model.lm_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.layers = [self._fuse(layer) for layer in model.model.layers]
        length = prompt_len + new_tokens
        shape = (len(self.layers), batch, self.kv_heads, length, self.head_dim)
        self.keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.values = torch.zeros_like(self.keys)
        self.mask = torch.full((batch, length), -torch.inf, dtype=self.dtype, device=self.device)
        steps = torch.arange(length, device=self.device)[None]
        cos, sin = model.model.rotary_emb(weight[:1, None], steps)
        self.cos, self.sin = cos[0], sin[0]
        self.tokens = torch.zeros(batch, dtype=torch.long, device=self.device)
        self.position = torch.zeros(batch, dtype=torch.long, device=self.device)
        self.slot = torch.zeros(1, dtype=torch.long, device=self.device)
        self.out = torch.zeros(batch, length, dtype=torch.long, device=self.device)
        self.counts = torch.zeros(batch, weight.shape[0], dtype=self.dtype, device=self.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @staticmethod
    def _fuse(layer) -> tuple[Tensor, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
        return (*norms, qkv, attention.o_proj.weight, gate_up, mlp.down_proj.weight)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _attend(self, index: int, qkv: Tensor, cos: Tensor, sin: Tensor, length: int) -> Tensor:
        heads, kv, dim = self.heads, self.kv_heads, self.head_dim
        q, k, v = qkv.split([heads * dim, kv * dim, kv * dim], -1)
        q = _rotate(q.view(self.batch, heads, dim), cos, sin).view(self.batch, kv, heads // kv, dim)
        k = _rotate(k.view(self.batch, kv, dim), cos, sin)
        self.keys[index].index_copy_(2, self.slot, k[:, :, None])
        self.values[index].index_copy_(2, self.slot, v.view(self.batch, kv, 1, dim))
        scores = q @ self.keys[index, :, :, :length].transpose(-1, -2) * dim**-0.5
        weights = torch.softmax((scores + self.mask[:, None, None, :length]).float(), -1).to(self.dtype)
        return (weights @ self.values[index, :, :, :length]).reshape(self.batch, heads * dim)

    def _step(self, length: int) -> None:
        """Read `tokens`, attend over the first `length` slots of the cache, draw the next tokens into `tokens`."""
        self.mask.index_fill_(1, self.slot, 0.0)
        cos, sin = self.cos[self.position][:, None], self.sin[self.position][:, None]
        x = self.model.model.embed_tokens.weight[self.tokens]
        for index, (norm1, norm2, qkv, out, gate_up, down) in enumerate(self.layers):
            h = self._attend(index, F.linear(self._norm(x, norm1), qkv), cos, sin, length)
            x = x + F.linear(h, out)
            gate, up = F.linear(self._norm(x, norm2), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        self._draw(F.linear(self._norm(x, self.model.model.norm.weight), self.model.lm_head.weight))
        self.slot.add_(1)
        self.position.add_(1)
        self.out.index_copy_(1, self.slot.clamp(max=self.out.shape[1] - 1), self.tokens[:, None])

    def _draw(self, logits: Tensor) -> None:
        self.tokens.copy_(draw(logits - self.sampling.repeat_cost * self.counts, self.sampling))
        self.counts.scatter_add_(1, self.tokens[:, None], torch.ones_like(self.counts[:, :1]))

    def _replay(self, length: int) -> None:
        if self.device.type != "cuda":
            return self._step(length)
        if length not in self.graphs:
            state = [t.clone() for t in (self.tokens, self.position, self.slot, self.counts)]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # warm up, as graph capture asks; what it wrote is written again
                self._step(length)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step(length)
            for tensor, saved in zip((self.tokens, self.position, self.slot, self.counts), state, strict=True):
                tensor.copy_(saved)
            self.graphs[length] = graph
        self.graphs[length].replay()
        return None

    def _prefill(self, ids: Tensor, real: Tensor) -> None:
        from transformers import DynamicCache

        position = (real.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()
        output = self.model(
            ids,
            attention_mask=real,
            position_ids=position,
            past_key_values=cache,
            logits_to_keep=1,
            use_cache=True,
        )
        layers: list[Any] = cache.layers
        for index, layer in enumerate(layers):
            self.keys[index, :, :, : self.prompt_len] = layer.keys
            self.values[index, :, :, : self.prompt_len] = layer.values
        self.mask.fill_(-torch.inf)
        self.mask[:, : self.prompt_len].masked_fill_(real.bool(), 0.0)
        self.counts.zero_()
        self._draw(output.logits[:, -1])
        self.position.copy_(position[:, -1] + 1)
        self.slot.fill_(self.prompt_len)
        self.out[:, self.prompt_len] = self.tokens

    @torch.inference_mode()
    def __call__(self, prompts: list[list[int]], pad: int = 0) -> Int[Tensor, "batch new_tokens"]:
        """Continue `batch` prompts (token ids) by `new_tokens` tokens each; rows run on past an end-of-text token."""
        ids = torch.full((self.batch, self.prompt_len), pad, dtype=torch.long)
        real = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, self.prompt_len - len(prompt) :] = torch.tensor(prompt)
            real[row, self.prompt_len - len(prompt) :] = 1
        self._prefill(ids.to(self.device), real.to(self.device))
        total = self.prompt_len + self.new_tokens
        for slot in range(self.prompt_len, total - 1):
            self._replay(min(total, (slot // BUCKET + 1) * BUCKET))
        return self.out[:, self.prompt_len :]
