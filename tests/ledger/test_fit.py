"""A run that does not fit says so first; one whose memory runs out says why, and gives back what it held."""

import gc
import weakref

import pytest
import torch
from micro import Letters, micro_llama

from labkit.ledger import Ledger, fit
from labkit.methods import FullFineTuning
from labkit.training import train


def test_what_does_not_fit_is_refused_with_its_ledger():
    ledger = Ledger(predicted={"weights": 4 * fit.GIB, "gradients": 4 * fit.GIB, "optimizer_states": 8 * fit.GIB})
    fit.check(ledger, room=12 * fit.GIB, held=4 * fit.GIB)
    fit.check(ledger, room=None, held=0)
    with pytest.raises(fit.DoesNotFit, match=r"12\.00 GiB more.*11\.99 GiB are free.*optimizer states 8\.00 GiB"):
        fit.check(ledger, room=12 * fit.GIB - 2**23, held=4 * fit.GIB)
    assert fit.available(torch.device("cpu")) is None


def test_a_training_that_would_not_fit_makes_no_step(monkeypatch):
    monkeypatch.setattr(fit, "available", lambda device: 1000)
    model, seen = micro_llama(), []

    class Watched(FullFineTuning):
        def step(self, batch):
            seen.append(batch)

    with pytest.raises(fit.DoesNotFit, match="labkit plan"):
        train(model, Letters(), Watched(), steps=2, batch_size=4, progress=False)
    assert not seen and all(p.grad is None for p in model.parameters())


class Greedy(FullFineTuning):
    """Runs out of memory in its second step, holding a tensor."""

    def measured_step(self, batch, ledger):
        held = torch.zeros(1000)
        self.held = weakref.ref(held)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has …")


def test_running_out_is_explained_and_what_the_step_held_is_given_back():
    method = Greedy()
    with pytest.raises(
        fit.DoesNotFit, match=r"ran out \(CUDA out of memory\).*weights 0\.00.*were predicted"
    ) as caught:
        train(micro_llama(), Letters(), method, steps=3, batch_size=4, progress=False)
    assert "\n" not in str(caught.value)
    gc.collect()
    assert method.held() is None
