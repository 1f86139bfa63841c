"""What torch's allocator holds of a tied embedding's gradient, which `labkit.ledger.predict` counts one short."""

from __future__ import annotations

import json

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

VOCAB, WIDTH = 20_000, 32


class Tied(nn.Module):
    """A language model without blocks: embedding, one layer, and the embedding again as the head."""

    def __init__(self):
        super().__init__()
        self.words, self.inside = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.inside(self.words(ids)))[:, -1])


def most_at_once(step, path) -> int:
    """Bytes that torch's allocator has handed out at most during `step()`, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    profiled.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def test_both_parts_and_their_sum_are_there_at_once(tmp_path):
    """Both parts and the sum that autograd makes of them: where blocks need little, that is the peak of a step."""
    model, ids = Tied(), torch.randint(VOCAB, (1, 4))

    def step():
        model.zero_grad(set_to_none=True)
        model(ids).logsumexp(-1).sum().backward()

    step()
    model.zero_grad(set_to_none=True)
    one = model.words.weight.nbytes
    assert 3 * one <= most_at_once(step, tmp_path / "trace.json") < 3.5 * one
