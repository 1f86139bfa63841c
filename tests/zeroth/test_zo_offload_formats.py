"""Blocks in 8 and 4 bits, and a head whose logits are never whole."""

from __future__ import annotations

import pytest
import torch
from offloads import COMMON, MODELS, TASK, micro_opt, offloaded, pair, same, steps
from temporaries import Largest
from torch import nn
from torch.nn import functional as F

from labkit.tasks import Batch
from labkit.zeroth.mezo import Mezo
from labkit.zeroth.mezo_adapters import MezoLora
from labkit.zeroth.offload.formats import BLOCKS, Coded, named
from labkit.zeroth.offload.head import NextToken, next_token_loss
from labkit.zeroth.offload.load import at_random, from_checkpoint
from labkit.zeroth.offload.method import ZoOffloadLora
from labkit.zeroth.offload.store import Lodging, Store
from labkit.zeroth.pieces import cut


def rounded(model: nn.Module, transfer: str) -> nn.Module:
    """The model with its blocks' matrices as they are after coding and reading back."""
    form = named(transfer)
    for piece in cut(model):
        payload = torch.zeros(form.nbytes(piece), dtype=torch.uint8)
        values = [e.parameter.detach() for e in piece.entries]
        form.encode(piece, values, payload)
        form.decode(piece, payload, values)
    return model


@pytest.mark.parametrize(("transfer", "most"), [("int8", 1 / 254), ("nf4", 0.152), ("fp4", 1 / 6)])
def test_a_coded_block_is_as_near_as_its_book_allows(transfer, most):
    model, before = MODELS["llama"](), MODELS["llama"]()
    rounded(model, transfer)
    for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
        if p.dim() < 2 or "layers" not in name:
            assert torch.equal(p, q)
            continue
        for some in zip(p.flatten().split(BLOCKS[transfer]), q.flatten().split(BLOCKS[transfer]), strict=True):
            assert (some[0] - some[1]).abs().max() <= 1.001 * most * some[1].abs().max()
        assert not torch.equal(p, q)


@pytest.mark.parametrize(
    ("transfer", "dtype", "restore"), [("int8", torch.float16, "exact"), ("nf4", torch.float32, "walk")], ids=str
)
def test_updates_are_exact_beside_the_coded_base(transfer, dtype, restore):
    """All moves are made anew at each upload; together they are MeZO on the rounded weights, bit for bit."""
    model = rounded(MODELS["llama"]().to(dtype), transfer)
    mezo = Mezo(**COMMON, restore=restore)
    losses = steps(mezo, model, 4)
    mezo.close()
    method, other = offloaded(**COMMON, transfer=transfer, restore=restore), MODELS["llama"]().to(dtype)
    assert steps(method, other, 4) == losses
    assert method.engine.slots.downloads == 0
    with method.computing():
        assert TASK.score(other, TASK.batch(TASK.test)) == TASK.score(model, TASK.batch(TASK.test))
    method.close()
    assert same(model, other), "closed, the model is whole again, with its updates"


def test_the_loss_in_eight_bits_is_within_the_first_order_of_the_rounding():
    """|ℓ(ŵ) − ℓ(w)| is at most Σ |∂ℓ/∂w| |ŵ − w| and a little; the curves stay together."""
    model, coded = micro_opt(), rounded(micro_opt(), "int8")
    batch = TASK.batch(TASK.train[:16])
    loss = TASK.loss(model, batch)
    loss.backward()
    pairs = zip(model.parameters(), coded.parameters(), strict=True)
    bound = sum(((p - q).abs() * p.grad.abs()).sum() for p, q in pairs if p.grad is not None).item()
    difference = abs(TASK.loss(coded, batch).item() - loss.item())
    assert 0 < difference <= 1.1 * bound < 0.25 * loss.item()
    _, losses, common = pair("opt", 5)
    found = steps(offloaded(**common, transfer="int8"), MODELS["opt"](), 5)
    assert found != losses and found == pytest.approx(losses, abs=1.1 * bound)


@pytest.mark.parametrize(("transfer", "share"), [("int8", 0.5 * (1 + 4 / 256)), ("nf4", 0.25 * (1 + 8 / 64))])
def test_bytes_on_the_bus_and_on_the_host(transfer, share):
    wide = {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024}
    sizes = {}
    for form in ("", transfer):
        method = offloaded(**COMMON, transfer=form, parts=3, slots=2)
        method.prepare(micro_opt(**wide).half(), TASK, 1)
        store = method.engine.store
        sizes[form] = sum(map(len, store.payloads))
        assert store.memory.nbytes <= 1.1 * sizes[form]
        assert method.predicted_bytes()["weights"] == method.device_bytes()
        whole = max(piece.nbytes for piece in store.pieces)
        assert len(method.engine.slots.places) == 2 and (whole == len(store.payloads[0])) == (form == "")
        method.close()
    assert sizes[transfer] / sizes[""] == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("transfer", ["nf4", "int8"])
def test_adapters_beside_a_coded_base_that_was_never_whole(transfer, tmp_path):
    """The route for what no memory holds in 16 bits: from shards to 4 bits, block by block; adapters on the device."""
    MODELS["llama"]().save_pretrained(tmp_path)
    model = rounded(MODELS["llama"](), transfer)
    torch.manual_seed(0)
    mezo = MezoLora(**COMMON, rank=2)
    losses = steps(mezo, model, 3)
    other = from_checkpoint(tmp_path, torch.float32, Lodging(transfer=transfer))
    travel = {id(e.module) for piece in Store.of(other).pieces for e in piece.entries}
    assert all(p.untyped_storage().nbytes() <= 4 for m in other.modules() if id(m) in travel for p in m.parameters())
    torch.manual_seed(0)
    method = ZoOffloadLora(device="cpu", **COMMON, rank=2)
    assert steps(method, other, 3) == losses and method.engine.slots.downloads == 0
    mezo.close()
    method.close()
    trained = {n: p for n, p in model.named_parameters() if "lora" in n}
    assert trained and all(torch.equal(other.get_parameter(n), p) for n, p in trained.items())


def test_a_coded_model_that_was_made_in_pieces_trains_and_is_saved(tmp_path):
    config = micro_opt().config
    plain = at_random(config, torch.float32, Lodging(), seed=1)
    mezo = Mezo(**COMMON)
    model = rounded(plain, "int8")
    losses = steps(mezo, model, 3)
    other = at_random(config, torch.float32, Lodging(transfer="int8"), seed=1)
    method = offloaded(**COMMON)
    assert steps(method, other, 3) == losses
    assert method.record.header["fingerprint"] != mezo.record.header["fingerprint"]
    method.save(tmp_path / "saved")
    mezo.close()
    assert same(model, from_checkpoint(tmp_path / "saved", torch.float32, Lodging()))


def test_bytes_of_a_coded_matrix_with_an_odd_end():
    model = micro_opt(hidden_size=36, word_embed_proj_dim=36, ffn_dim=49)
    form = Coded("nf4")
    piece = cut(model)[0]
    assert any(e.nbytes // 4 % 64 for e in piece.entries) and form.nbytes(piece) % 512 == 0
    rounded(model, "nf4")


def text(rows: int = 2, length: int = 9, vocabulary: int = 64) -> Batch:
    ids = torch.randint(1, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return Batch(ids * mask, mask, ids[:, 0])


@pytest.mark.parametrize("words", [1, 7, 64, 100])
@pytest.mark.parametrize("tokens", [1, 5, 1000])
@pytest.mark.parametrize("bias", [True, False])
def test_the_loss_in_parts_is_cross_entropy(words, tokens, bias):
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(11, 8), nn.Linear(8, 64, bias=bias), torch.randint(64, (11,))
    with torch.no_grad():
        head.weight.mul_(20)
        found = next_token_loss(hidden, head, targets, words, tokens)
        torch.testing.assert_close(found, F.cross_entropy(head(hidden), targets, reduction="none"))


def test_logits_are_never_whole():
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(512, 8), nn.Linear(8, 4096, bias=False), torch.randint(4096, (512,))
    with torch.no_grad(), Largest() as made:
        next_token_loss(hidden, head, targets, words=256, tokens=64)
    assert made.bytes <= 4 * 256 * 64 < 4 * 512 * 4096 / 64


@pytest.mark.parametrize("padded", [True, False])
def test_padding_does_not_count_and_the_loss_is_transformers(padded):
    model, batch = MODELS["llama"](), text(vocabulary=16)
    with torch.no_grad():
        found = NextToken(words=5, tokens=3, padded=padded).loss(model, batch)
        mask = batch.attention_mask if padded else torch.ones_like(batch.attention_mask)
        labels = batch.input_ids.masked_fill(mask == 0, -100)
        labels[0, 3] = -100 if padded else labels[0, 3]  # nothing real stands before it
        output = model(input_ids=batch.input_ids, attention_mask=mask, labels=labels, use_cache=False)
    torch.testing.assert_close(found, output.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "restore"), [("llama", "walk"), ("opt", "exact"), ("opt-untied", "walk")])
def test_such_a_head_trains_alike_with_blocks_offloaded(name, restore):
    """A head tied to the embedding too: its rows are made in parts, and the whole of it moves once."""
    task, batch, found = NextToken(words=6, tokens=5), text(vocabulary=16), []
    for method in (Mezo(**COMMON, restore=restore), offloaded(**COMMON, restore=restore, parts=3)):
        model = MODELS[name]()
        method.prepare(model, task, 3)
        losses = [method.step(batch).item() for _ in range(3)]
        method.close()
        found.append((losses, model))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])
