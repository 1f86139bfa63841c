"""ZO-Offload on a GPU: MeZO's bits, no race, no wait, memory of a few blocks, host memory without waste."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import opt, wide_llama
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, masking_utils

from labkit import published
from labkit.bench.workers import clear
from labkit.memory.lanes import Bus
from labkit.memory.timeline import COMPUTE, DOWNLOAD, UPLOAD, Timeline
from labkit.tasks import Batch
from labkit.zeroth import fused
from labkit.zeroth.groups import slot_of
from labkit.zeroth.mezo import Mezo, replay
from labkit.zeroth.offload.engine import Engine
from labkit.zeroth.offload.head import NextToken, next_token_loss
from labkit.zeroth.offload.load import at_random, on_device
from labkit.zeroth.offload.method import ZoOffload, ZoOffloadLora
from labkit.zeroth.offload.store import Lodging, Store

pytestmark = pytest.mark.gpu
COMMON = {"learning_rate": 1e-5, "perturbation_scale": 1e-3}
MIB = 2**20


@pytest.fixture(autouse=True)
def _triton():
    if not fused.usable(torch.empty(1, device="cuda")):
        pytest.skip("needs Triton")


def words(rows: int = 1, length: int = 256, vocabulary: int = 2000) -> Batch:
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0)).cuda()
    return Batch(ids, torch.ones_like(ids), ids[:, 0])


def run(method: Mezo, model: Any, steps: int, batch: Batch | None = None) -> list[float]:
    batch = words() if batch is None else batch
    method.prepare(model, NextToken(), 100)
    losses = [method.step(batch).item() for _ in range(steps)]
    method.close()
    return losses


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q.to(p.device)) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def model_of(config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


OPT = published.config("opt-125m", dropout=0.0)
SETTINGS = [
    {"write_back": 1, "parts": 1, "slots": 3},
    {"write_back": 3, "parts": 3, "slots": 3},
    {"write_back": 8, "parts": 3, "slots": 2},
    {"write_back": 2, "parts": 1, "slots": 1},
]


@pytest.mark.parametrize("restore", ["exact", "walk"])
@pytest.mark.parametrize(
    ("config", "dtype"), [(OPT, torch.float16), (wide_llama(), torch.bfloat16)], ids=["opt", "llama"]
)
def test_losses_and_weights_are_mezos_bit_for_bit(config, dtype, restore):
    common = {**COMMON, "perturbation_scale": 1e-2 if dtype == torch.bfloat16 else 1e-3, "restore": restore}
    model = model_of(config, dtype)
    losses = run(Mezo(**common), model, 20)
    assert len(set(losses)) > 10 and not same(model, model_of(config, dtype))
    for settings in SETTINGS:
        other = model_of(config, dtype)
        assert run(ZoOffload(**common, **settings), other, 20) == losses, settings
        assert next(other.parameters()).is_cuda and same(model, other), settings


def test_several_directions_in_one_way_through_the_blocks():
    model, other = model_of(OPT, torch.float16), model_of(OPT, torch.float16)
    losses = run(Mezo(**COMMON, directions=3, weight_decay=0.1), model, 4)
    method = ZoOffload(**COMMON, directions=3, weight_decay=0.1, slots=2)
    assert run(method, other, 4) == losses and same(model, other)


@pytest.mark.parametrize("late", [UPLOAD, DOWNLOAD, COMPUTE])
def test_no_copy_is_used_before_it_is_there_and_no_place_before_it_is_free(late, monkeypatch):
    """One of the lanes is made far too slow: whoever does not wait for it finds what was there before."""
    model = model_of(OPT, torch.float16)
    losses = run(Mezo(**COMMON), model, 5)
    move, turn = Bus._move, Engine._turn
    cycles = 3_000_000  # some 2 ms; a block takes 0.3 ms on the bus

    def slow_move(self, lane, copies, name, after):
        for ticket in after:
            ticket.gate()
        if lane == late:
            torch.cuda._sleep(cycles)
        return move(self, lane, copies, name, ())

    def slow_turn(self, number):
        if late == COMPUTE:
            torch.cuda._sleep(cycles)
        turn(self, number)

    monkeypatch.setattr(Bus, "_move", slow_move)
    monkeypatch.setattr(Engine, "_turn", slow_turn)
    other = model_of(OPT, torch.float16)
    assert run(ZoOffload(**COMMON, write_back=1, slots=2), other, 5) == losses and same(model, other)


@pytest.mark.parametrize(
    ("config", "settings"),
    [(OPT, {"write_back": 2}), (wide_llama(), {"write_back": 2}), (OPT, {"transfer": "int8", "renew": 1})],
    ids=["opt", "llama", "coded anew"],
)
def test_the_host_waits_for_nothing(config, settings, monkeypatch):
    """Queueing both passes: torch would raise at the first synchronisation. The step itself reads two losses.

    transformers asks the device once before the first block: of a Llama, whether sequences are packed, and in its
    older releases of an OPT, whether anything is padded. Nothing else may.
    """
    method, model = ZoOffload(**COMMON, **settings, parts=3), model_of(config, torch.float16)
    method.prepare(model, NextToken(), 100)

    def may_ask(asks):
        def asked(*args, **kwargs):
            mode = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("default")
            try:
                return asks(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode(mode)

        return asked

    for name in ("find_packed_sequence_indices", "_ignore_causal_mask_sdpa"):
        monkeypatch.setattr(masking_utils, name, may_ask(getattr(masking_utils, name)))
    batch = words()
    for _ in range(3):
        method.step(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = method.queue([7], batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(found) == 2 and all(torch.isfinite(loss) for loss in found)
    method.close()


def test_the_loss_is_cross_entropys_in_a_launch_for_each_part_of_the_logits():
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 2000, device="cuda", dtype=torch.float16)
    hidden, targets = torch.randn(300, 64, device="cuda").half(), torch.randint(2000, (300,), device="cuda")
    with torch.no_grad(), profile(activities=[ProfilerActivity.CUDA]) as seen:
        found = next_token_loss(hidden, head, targets, words=512, tokens=128)
        torch.cuda.synchronize()
    assert sum(event.count for event in seen.key_averages() if event.key == "_fold") == 12
    assert sum(event.count for event in seen.key_averages() if event.device_type == DeviceType.CUDA) <= 48
    both = zip(head.weight.detach().split(512), head.bias.detach().split(512), strict=True)
    parts = [torch.cat([torch.nn.functional.linear(h, w, b) for h in hidden.split(128)]) for w, b in both]
    logits = torch.cat(parts, 1)
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    assert (found - expected).abs().max() < 2e-5
    with_backward = next_token_loss(hidden, head, targets, words=512, tokens=128)
    assert with_backward.requires_grad and (with_backward - found).abs().max() < 2e-5


def test_the_peak_is_a_few_slots_and_the_host_holds_the_blocks_once():
    """OPT-1.3B, 2.6 GB of weights: what stays, three thirds of a block, one slot, and the activations of a block."""
    clear("cuda")
    before = torch.cuda.memory_allocated()  # workspaces of cuBLAS, one for each thread and stream of the tests before
    config = published.config("opt-1.3b", dropout=0.0)
    model = at_random(config, torch.float16, Lodging(parts=3, device="cuda"))
    store = Store.of(model)
    assert all(payload.is_pinned() for payload in store.payloads)
    assert store.memory.nbytes <= 1.01 * sum(e.nbytes for piece in store.pieces for e in piece.entries)
    method, batch = ZoOffload(**COMMON, write_back=2), words(1, 1024)
    method.prepare(model, NextToken(), 100)
    for _ in range(4):
        method.step(batch)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    method.step(batch)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    width, inner = config.hidden_size, config.ffn_dim
    activations = 2 * 1024 * 2 * (8 * width + 2 * inner) + 1024 * 1024 * 4 * 2  # of both sides, and a mask
    head = 1024 * 4096 * 12
    workspaces = 4 * 33 * MIB  # cuBLAS's, one a thread
    bound = method.device_bytes() + slot_of(method._weights) + activations + head + workspaces
    with torch.device("meta"):
        whole = 2 * sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert method.predicted_bytes()["weights"] == method.device_bytes() < 0.2 * whole
    assert peak <= bound, f"{peak / MIB:.0f} MiB over {before / MIB:.0f}, {bound / MIB:.0f} MiB by formula"
    method.abandon()


def test_memory_is_pinned_in_place_and_given_back():
    flat = Store.of(model := at_random(opt(), torch.float16, Lodging(device="cuda"))).payloads[0]
    assert flat.is_pinned()
    del model
    import gc

    gc.collect()
    assert not flat.is_pinned(), "unpinned, and still mapped as long as somebody has it"


@pytest.mark.parametrize("transfer", ["int8", "nf4"])
def test_coded_blocks_are_read_back_and_updated_exactly(transfer):
    lodging = Lodging(transfer=transfer, device="cuda")
    other = at_random(OPT, torch.float16, lodging)
    store = Store.of(other)
    model = on_device(OPT, torch.float16, "cuda")
    with torch.no_grad():
        named = {path: m for path, m in model.named_modules()}
        paths = {id(m): path for path, m in other.named_modules()}
        for piece, payload in zip(store.pieces, store.payloads, strict=True):
            out = [named[paths[id(e.module)]]._parameters[e.attribute] for e in piece.entries]
            store.format.decode(piece, payload.cuda(), out)
    losses = run(Mezo(**COMMON), model, 5)
    assert run(ZoOffload(**COMMON), other, 5) == losses
    assert not same(model, on_device(OPT, torch.float16, "cuda"))


@pytest.mark.parametrize("settings", [{"renew": 1}, {"renew": 3, "parts": 3, "slots": 2}, {"renew": 8}], ids=str)
def test_coded_blocks_that_are_coded_anew_train_the_weights(settings):
    """With one lane after the other the same bits; and what is trained is what the run's rows make of the weights."""
    model, other = model_of(OPT, torch.float16), model_of(OPT, torch.float16)
    method = ZoOffload(**COMMON, transfer="int8", **settings)
    losses = run(method, model, 10)
    assert run(ZoOffload(**COMMON, transfer="int8", overlap=False, **settings), other, 10) == losses
    assert same(model, other)
    expected = model_of(OPT, torch.float16)
    if settings["renew"] == 1:
        assert run(Mezo(**COMMON), expected, 10) == losses
    else:
        replay(expected, method.record)
    assert same(model, expected)


def test_adapters_beside_a_frozen_base():
    torch.manual_seed(0)
    method = ZoOffloadLora(transfer="nf4", parts=3)
    losses = run(method, model_of(OPT, torch.float16), 3)
    assert all(loss == loss for loss in losses) and method._engine.slots.downloads == 0


def test_real_streams_are_recorded():
    timeline, method = Timeline("cuda"), ZoOffload(**COMMON, write_back=1)
    model = model_of(OPT, torch.float16)
    method.prepare(model, NextToken(), 10)
    method.step(words())
    timeline.restart()
    method.watch(timeline)
    method.step(words())
    spans = timeline.spans()
    assert {s.lane for s in spans} >= {COMPUTE, UPLOAD, DOWNLOAD}
    first = {s.name: s.start_ms for s in reversed(spans) if s.lane == COMPUTE}
    assert [n for n in sorted(first, key=first.get) if n.endswith("+")] == [
        "embedding +", *(f"block {n} +" for n in range(12)), "head +"
    ]  # fmt: skip
    method.close()
