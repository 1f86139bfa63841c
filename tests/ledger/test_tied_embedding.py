"""What torch's allocator holds of a tied embedding's gradient, and that formula and trace know it."""

from __future__ import annotations

import json

import pytest
import torch
from decoders import llama, opt
from torch import nn
from torch.profiler import ProfilerActivity, profile

from labkit.ledger.case import Case
from labkit.ledger.predict import predict, standing
from labkit.ledger.shapes import Architecture
from labkit.memory.step import Step, trace

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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [llama, opt])
@pytest.mark.parametrize("options", [{}, {"weights": "bfloat16"}, {"compute": "bfloat16"}], ids=str)
def test_formula_and_trace_have_the_allocators_peak(kind, tied, options, tmp_path):
    """Few tokens and many words, where the embedding decides: nothing but torch's allocator is the judge."""
    config = kind(2, tied=tied)
    config.vocab_size, config.hidden_size, config.intermediate_size = 8192, 64, 160
    if kind is opt:
        config.word_embed_proj_dim, config.ffn_dim, config.max_position_embeddings = 64, 160, 64
    case = Case(Architecture.of(config), 1, 8, device="cpu", optimizer="sgd", **options)
    step = Step(case, config, "cpu")
    step.run()
    real = sum(standing(case, 1).values()) + most_at_once(step.run, tmp_path / "trace.json")
    assert predict(case, 1).peak.total == pytest.approx(real, rel=5e-3)
    assert trace(case, config, 1).peak.total == pytest.approx(real, rel=5e-3)
