"""8-bit Adam: bitsandbytes' step, a quarter of the bytes, states that survive saving, and wrong settings refused."""

import json
import logging
from unittest import mock

import pytest
import torch

from labkit import models
from labkit.errors import LabError
from labkit.ledger import optimizer_tensors, storage_bytes
from labkit.methods import FullFineTuning
from labkit.numerics.quantize import Adam8bit, Adam8bitFineTuning, CodeBook, QuantizeError, adam8bit
from labkit.tasks import Sentiment
from labkit.training import train

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-7, "weight_decay": 0.05}


def twins(dtype=torch.float32, shape=(90, 70)):
    torch.manual_seed(5)
    start = torch.randn(shape).to(dtype)
    return [torch.nn.Parameter(start.clone()) for _ in range(2)]


def give(parameters, seed, power=3):
    gradient = torch.randn(parameters[0].shape, generator=torch.Generator().manual_seed(seed)) ** power
    for parameter in parameters:
        parameter.grad = gradient.to(parameter.dtype)


def librarys_rounding(x, book, block_size):
    """bitsandbytes' quantizer, whose CPU kernel looks 8-bit codes up on a grid."""
    codes, scales = torch.ops.bitsandbytes.quantize_blockwise(x, book.values, block_size)
    return adam8bit.Quantized(codes, scales, None, book, block_size, x.shape, x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_twenty_steps_equal_bitsandbytes_given_its_rounding(dtype):
    peer = pytest.importorskip("bitsandbytes").optim
    mine, theirs = twins(dtype)
    ours, library = Adam8bit([mine], **SETTINGS), peer.AdamW8bit([theirs], **SETTINGS)
    with mock.patch.object(adam8bit, "quantize_blockwise", librarys_rounding):
        for step in range(20):
            give([mine, theirs], step)
            ours.step()
            library.step()
            assert torch.equal(mine, theirs), f"step {step}"
    assert torch.equal(ours.state[mine]["exp_avg"], library.state[theirs]["state1"])


def test_our_exact_rounding_stays_near_32_bit_adam_nearer_than_the_librarys_grid():
    """On a CPU the library moves every second moment below 1.5e-5 of its block's largest to zero."""
    peer = pytest.importorskip("bitsandbytes").optim
    (mine, theirs), (wide, _) = twins(), twins()
    start = mine.detach().clone()
    makers = ((Adam8bit, mine), (peer.AdamW8bit, theirs), (torch.optim.AdamW, wide))
    optimizers = [make([parameter], **SETTINGS) for make, parameter in makers]
    for step in range(20):
        give([mine, theirs, wide], step, power=1)
        for optimizer in optimizers:
            optimizer.step()
    way = (wide - start).abs().mean()
    ours, library = ((parameter - wide).abs().mean() / way for parameter in (mine, theirs))
    assert ours < 0.06 and ours < library, (ours, library)


def test_a_small_tensor_keeps_32_bits_and_steps_as_torchs_adamw():
    mine, theirs = twins(shape=(60, 60))
    ours, torchs = Adam8bit([mine], **SETTINGS), torch.optim.AdamW([theirs], **SETTINGS)
    for step in range(5):
        give([mine, theirs], step)
        ours.step()
        torchs.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    assert ours.state[mine]["exp_avg"].dtype == torch.float32


def test_chunks_change_nothing():
    whole, cut = twins(shape=(70_000,))
    optimizers = Adam8bit([whole], **SETTINGS), Adam8bit([cut], **SETTINGS)
    for step in range(3):
        give([whole, cut], step)
        optimizers[0].step()
        with mock.patch.object(adam8bit, "CHUNK", 1024):
            optimizers[1].step()
    assert torch.equal(whole, cut)


def test_states_take_a_quarter_of_adams_bytes_and_eight_a_block():
    parameter, _ = twins(shape=(1000, 1000))
    for optimizer, bytes_a_value in ((Adam8bit([parameter]), 2 + 8 / 256), (torch.optim.AdamW([parameter]), 8)):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        held = storage_bytes(optimizer_tensors(optimizer))
        assert held == pytest.approx(bytes_a_value * parameter.numel(), abs=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(dtype):
    straight, resumed = twins(dtype)
    first, second = Adam8bit([straight], **SETTINGS), Adam8bit([resumed], **SETTINGS)
    for step in range(6):
        give([straight, resumed], step)
        first.step()
        second.step()
        if step == 2:
            saved = second.state_dict()
            second = Adam8bit([resumed], **SETTINGS)
            second.load_state_dict(saved)
    assert torch.equal(straight, resumed)
    assert {t.dtype for t in optimizer_tensors(second)} == {torch.uint8, torch.float32}


def test_wrong_rates_and_broken_gradients_are_refused():
    parameter, _ = twins()
    for wrong in ({"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1e-8}, {"block_size": 0}):
        with pytest.raises(LabError, match="cannot run"):
            Adam8bit([parameter], **wrong)
    parameter.grad = torch.full_like(parameter, float("nan"))
    with pytest.raises(QuantizeError, match="NaN"):
        Adam8bit([parameter]).step()
    turned = torch.nn.Parameter(torch.randn(80, 90).t())
    turned.grad = torch.ones_like(turned)
    with pytest.raises(LabError, match="contiguous"):
        Adam8bit([turned]).step()


def test_as_a_method_it_predicts_its_bytes_and_learns_as_32_bit_adam():
    task = Sentiment.load(model="tiny")
    task.train, task.test = task.train[:160], task.test[:40]
    runs = {}
    for method in (FullFineTuning(), Adam8bitFineTuning()):
        runs[method.name] = train(models.load("tiny"), task, method, steps=10, batch_size=8, progress=False)
        assert runs[method.name].ledger.residual("optimizer_states") == 0
    states = {name: run.ledger.measured["optimizer_states"] for name, run in runs.items()}
    assert states["adam8bit"] < 0.26 * states["full"]
    gaps = [abs(a - b) for a, b in zip(runs["full"].losses, runs["adam8bit"].losses, strict=True)]
    assert max(gaps) < 0.1, gaps


def test_other_books_can_be_chosen_and_what_is_no_book_of_8_bits_is_refused():
    equal = CodeBook("linear8", torch.linspace(0, 1, 256), 8)
    moved = {}
    for books in (("dynamic8", "dynamic8-unsigned"), ("dynamic8", equal)):
        weight = torch.nn.Parameter(torch.zeros(8192))
        optimizer = Adam8bit([weight], lr=1e-3, weight_decay=0.0, books=books)
        gradient = torch.full_like(weight, 1e-4)
        gradient[::64] = 0.02  # the others' second moments are 2.5e-5 of their block's largest, the first 5e-3
        for weight.grad in (gradient, torch.zeros_like(gradient)):
            optimizer.step()
        moved[books[1]] = weight.detach().abs().max().item()
    # Equal steps lose the small second moments, and what divides by nothing flies off.
    assert moved["dynamic8-unsigned"] < 3e-3
    assert moved[equal] > 1.0
    for books in (("nf4", "dynamic8"), ("dynamic8", CodeBook("falling", torch.linspace(1, 0, 256), 8))):
        with pytest.raises(LabError, match="Moments cannot be kept"):
            Adam8bit([weight], books=books)


def test_a_record_tells_books_apart_by_their_numbers():
    task = Sentiment.load(model="tiny")
    task.test = task.test[:8]
    configs = []
    for ends in (1.0, 0.5):
        books = ("dynamic8", CodeBook("mine", torch.linspace(0, ends, 256), 8))
        model = models.load("tiny")
        run = train(model, task, Adam8bitFineTuning(books=books), steps=1, batch_size=4, progress=False)
        configs.append(json.loads(json.dumps(run.config)))
    assert configs[0]["books"][0] == configs[1]["books"][0] == "dynamic8"
    assert configs[0] != configs[1]
