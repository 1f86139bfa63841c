"""Pretrain a small Llama from random weights on packed text: next-token cross-entropy, AdamW, warm-up and decay."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Recipe:
    """How the tiny model is pretrained.

    Attributes:
        epochs: times that the text is read. Six: from the seventh on the loss on unseen text hardly falls, and by the
            twentieth the model has the real sentences by heart (0.4 nats a token against 9 on unseen ones).
        rows, seq_len: sequences a step and tokens in each.
    """

    epochs: int = 6
    rows: int = 512
    seq_len: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    seed: int = 0


def tiny_config(vocab_size: int, end: int):
    """The tiny model: Llama's architecture, 8 layers of width 256, 8 heads of which 4 for keys, 8.0 M parameters."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=end,
        eos_token_id=end, pad_token_id=end, rms_norm_eps=1e-5,
    )  # fmt: skip


def pack(tokenizer, documents: list[str], seed: int) -> np.ndarray:
    """Shuffle documents, tokenize them and join them into one row of token ids; each begins with the end token."""
    order = np.random.default_rng(seed).permutation(len(documents))
    encoded = tokenizer.backend_tokenizer.encode_batch_fast([documents[i] for i in order])
    return np.concatenate([np.asarray(e.ids, dtype=np.uint16) for e in encoded])


class _Rows:
    """Endless batches of `seq_len + 1` consecutive tokens, cut anew (at another offset) in every epoch."""

    def __init__(self, tokens: np.ndarray, recipe: Recipe, device: str):
        self.tokens = torch.from_numpy(tokens.astype(np.int32)).to(device)
        self.recipe, self.epoch = recipe, 0
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.starts: list[torch.Tensor] = []

    def __next__(self) -> torch.Tensor:
        length, rows = self.recipe.seq_len, self.recipe.rows
        if not self.starts:
            room = max(1, min(length, len(self.tokens) - length - 1))
            offset = int(torch.randint(room, (), generator=self.generator))
            starts = torch.arange(offset, len(self.tokens) - length - 1, length)
            starts = starts[torch.randperm(len(starts), generator=self.generator)]
            self.starts = [s for s in starts.split(rows) if len(s) == rows or len(starts) < rows]
            self.epoch += 1
        index = self.starts.pop()[:, None] + torch.arange(length + 1)
        return self.tokens[index.to(self.tokens.device)].long()


def _rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, cosine decay to a twentieth."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def held_out_loss(loss_of, tokens: np.ndarray, recipe: Recipe, device: str) -> float:
    """Mean next-token loss in nats over the held-out text (64 batches at most)."""
    batches = _Rows(tokens, recipe, device)
    count = max(1, min(64, len(tokens) // (recipe.rows * recipe.seq_len)))
    return sum(loss_of(next(batches)).item() for _ in range(count)) / count


def pretrain(model, train: np.ndarray, held_out: dict[str, np.ndarray], recipe: Recipe, say=print) -> list[dict]:
    """Pretrain `model` in place.

    Args:
        train: token ids in one row.
        held_out: token ids of unseen text, by kind.

    Returns:
        The curve: rows of step, tokens, epoch, loss, `held_out_KIND` (nats a token) and seconds.
    """
    device = str(next(model.parameters()).device)
    cuda = device.startswith("cuda")
    optimizer = _adamw(model, recipe, cuda)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=cuda):
            logits = model(rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())

    fast = torch.compile(loss_of) if cuda else loss_of
    batches, curve, started = _Rows(train, recipe, device), [], time.monotonic()
    steps = max(1, recipe.epochs * len(train) // (recipe.rows * recipe.seq_len))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(recipe, step, steps)
        loss = fast(next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            unseen = {f"held_out_{k}": round(held_out_loss(fast, v, recipe, device), 4) for k, v in held_out.items()}
            tokens = (step + 1) * recipe.rows * recipe.seq_len
            point = {"step": step + 1, "tokens": tokens, "epoch": batches.epoch, "loss": round(loss.item(), 4)}
            curve.append({**point, **unseen, "seconds": round(time.monotonic() - started, 1)})
            say(curve[-1])
    return curve


def _adamw(model, recipe: Recipe, fused: bool) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    norms = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=fused)
