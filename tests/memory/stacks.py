"""Stacks of blocks to checkpoint, and torch's checkpoint around the same runs of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils import checkpoint as library

from labkit.memory.checkpointing import runs


class Block(nn.Module):
    """Half of a transformer layer, with dropout; counts its calls."""

    def __init__(self, width: int = 16, times: int = 4, dropout: float = 0.0):
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.up, self.down = nn.Linear(width, times * width), nn.Linear(times * width, width)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.drop(self.down(nn.functional.gelu(self.up(self.norm(x)))))


def stack(layers: int = 6, **options) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(**options) for _ in range(layers)))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def through_torch(net: nn.Module, segments: int, **options):
    """torch's checkpoint on our runs, the last one included."""

    def run(x):
        for cut in runs(len(net), segments):
            x = library.checkpoint(net[cut], x, use_reentrant=False, **options)
        return x

    return run
