"""Coded blocks that train and are coded anew: what is looked at, what is trained, and what crosses the bus."""

from __future__ import annotations

import pytest
import torch
from offloads import BATCHES, COMMON, MODELS, TASK, LateBus, micro_opt, offloaded, pair, same, steps
from torch import nn

from labkit.errors import LabError
from labkit.zeroth import perturb
from labkit.zeroth.mezo import apply_rows, replay
from labkit.zeroth.offload.formats import named
from labkit.zeroth.offload.load import at_random, from_checkpoint
from labkit.zeroth.offload.slots import phases
from labkit.zeroth.offload.store import Lodging
from labkit.zeroth.pieces import Piece, cut
from labkit.zeroth.restore import Exact


def values(piece: Piece) -> list[torch.Tensor]:
    return [e.parameter.detach() for e in piece.entries]


def losses_by_hand(build, dtype, transfer: str, parts: int, renew: int, rows: list) -> list[float]:
    """Each step looks at w where a block came whole, and else at the block's last codes and the moves since."""
    form, eps = named(transfer), COMMON["perturbation_scale"]
    trained, seen = build().to(dtype), build().to(dtype)
    pieces = list(zip(cut(trained, parts), cut(seen, parts), strict=True))
    begins = phases([form.nbytes(piece) for piece, _ in pieces], renew)

    def coded(piece: Piece) -> None:
        payload = torch.zeros(form.nbytes(piece), dtype=torch.uint8)
        form.encode(piece, values(piece), payload)
        form.decode(piece, payload, values(piece))

    losses = []
    for _, piece in pieces:
        coded(piece)
    for step, row in enumerate(rows):
        whole = [renew and (step + begin) % renew == 0 for begin in begins]
        for (source, target), comes in zip(pieces, whole, strict=True):
            if comes:
                for a, b in zip(values(target), values(source), strict=True):
                    a.copy_(b)
        sides = []
        for side in (eps, -eps):
            with torch.no_grad(), Exact(perturb.trained(seen)).at([(row.seed, side)]):
                sides.append(TASK.loss(seen, BATCHES[step % len(BATCHES)]).item())
        losses.append(torch.tensor(sum(sides) / 2).item())
        for (_, target), comes in zip(pieces, whole, strict=True):
            if comes:
                coded(target)
        for model in (trained, seen):
            apply_rows(Exact(perturb.trained(model)), [row])
    return losses


@pytest.mark.parametrize(
    ("name", "dtype", "transfer", "settings"),
    [
        ("llama", torch.float32, "int8", {"renew": 3}),
        ("llama", torch.float16, "int8", {"renew": 2, "slots": 2, "parts": 3, "bus": LateBus()}),
        ("opt", torch.float32, "nf4", {"renew": 4, "slots": 1}),
        ("opt", torch.float32, "int8", {"renew": 50, "slots": 4, "bus": LateBus()}),
    ],
    ids=["float32", "in thirds", "four bits", "hardly ever"],
)
def test_a_step_looks_at_codes_and_trains_the_weights(name, dtype, transfer, settings):
    method, model = offloaded(**COMMON, transfer=transfer, **settings), MODELS[name]().to(dtype)
    found, rows = steps(method, model, 9), method.record.rows
    parts = settings.get("parts", 1)
    assert found == losses_by_hand(MODELS[name], dtype, transfer, parts, settings["renew"], rows)
    expected = MODELS[name]().to(dtype)
    replay(expected, method.record)
    method.close()
    assert same(model, expected), "what is trained are the weights, not their codes"


def test_coded_anew_at_every_upload_it_is_mezo():
    model, losses, common = pair("opt", 5)
    method, other = offloaded(**common, transfer="nf4", renew=1), MODELS["opt"]()
    assert steps(method, other, 5) == losses
    method.close()
    assert same(other, model)


@pytest.mark.parametrize("restore", ["exact", "walk"])
def test_an_evaluation_in_the_middle_is_of_the_weights(restore):
    method, model = offloaded(**COMMON, transfer="int8", renew=4, restore=restore), MODELS["llama"]()
    method.prepare(model, TASK, 6)
    for number, batch in enumerate(BATCHES[:6]):
        method.step(batch)
        if number == 2:
            expected = MODELS["llama"]()
            replay(expected, method.record)
            with method.computing():
                for _ in range(2):
                    assert TASK.loss(model, BATCHES[0]).item() == TASK.loss(expected, BATCHES[0]).item()
    expected = MODELS["llama"]()
    replay(expected, method.record)
    method.close()
    assert same(model, expected)


def test_bytes_on_the_bus_the_host_and_the_device():
    wide = {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024}
    method, renew = offloaded(**COMMON, transfer="int8", renew=4, slots=2), 4
    method.prepare(micro_opt(layers=4, **wide).half(), TASK, 40)
    store, slots = method.engine.store, method.engine.slots
    coded, whole = sum(map(len, store.payloads)), sum(map(len, store.wholes))
    assert coded / whole == pytest.approx(0.5 * (1 + 4 / 256), rel=0.02)
    assert store.memory.nbytes <= 1.1 * (coded + whole)
    assert method.predicted_bytes()["weights"] == method.device_bytes()
    for batch in BATCHES[:renew]:
        method.step(batch)
    up, down = slots.uploads, slots.downloads
    for batch in BATCHES[renew : 2 * renew]:
        method.step(batch)
    assert slots.uploads - up == (renew - 1) * coded + whole
    assert slots.downloads - down == coded + whole
    method.close()


def test_a_model_made_in_pieces_is_saved_as_trained(tmp_path):
    config = micro_opt().config
    other = at_random(config, torch.float32, Lodging(transfer="int8", both=True), seed=1)
    method = offloaded(**COMMON, renew=3)
    steps(method, other, 4)
    method.save(tmp_path / "saved")
    method.close()
    expected: nn.Module = at_random(config, torch.float32, Lodging(), seed=1)
    replay(expected, method.record)
    assert same(expected, from_checkpoint(tmp_path / "saved", torch.float32, Lodging()))


def test_what_cannot_be_is_refused_before_anything_moves(tmp_path):
    for wrong in (-1, 1.5, True):
        with pytest.raises(LabError, match="coded anew"):
            offloaded(**COMMON, transfer="int8", renew=wrong).prepare(MODELS["llama"](), TASK, 1)
    with pytest.raises(LabError, match="file"):
        offloaded(**COMMON, transfer="int8", renew=2, folder=str(tmp_path)).prepare(MODELS["llama"](), TASK, 1)
    assert not list(tmp_path.iterdir())
