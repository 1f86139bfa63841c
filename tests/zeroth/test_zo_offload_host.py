"""Host memory and files: what is taken, what is refused, and that nothing on the disk is ever harmed."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import weakref
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from decoders import opt
from offloads import BATCHES, COMMON, MODELS, TASK, micro_opt, offloaded, pair, same, steps
from safetensors import safe_open

from labkit.errors import LabError
from labkit.zeroth.mezo import Mezo
from labkit.zeroth.offload import memory
from labkit.zeroth.offload.formats import Plain
from labkit.zeroth.offload.load import INDEX, at_random, from_checkpoint, save
from labkit.zeroth.offload.store import FILE, Lodging, Store

WIDE = {"hidden_size": 512, "word_embed_proj_dim": 512, "ffn_dim": 2048}


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@contextmanager
def full_disk(nbytes: int):
    """Files cannot grow beyond `nbytes`: the system refuses as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def checkpoint(tmp_path):
    """OPT in several shards, as transformers saves it."""
    MODELS["opt"]().save_pretrained(tmp_path / "checkpoint", max_shard_size="20KB")
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 3
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(("folder", "write_back"), [("", 4), ("file", 1), ("file", 3)], ids=str)
def test_from_a_checkpoints_shards(checkpoint, tmp_path, folder, write_back):
    """In host memory or in a file: as MeZO on the loaded model; the checkpoint is only read."""
    before = digest(checkpoint)
    model, losses, common = pair("opt", 4)
    lodging = Lodging(parts=3, folder=str(tmp_path / folder) if folder else "")
    other = from_checkpoint(checkpoint, torch.float32, lodging)
    method = offloaded(**common, write_back=write_back)
    assert steps(method, other, 4) == losses
    method.save(tmp_path / "trained")
    method.close()
    assert same(model, other) and digest(checkpoint) == before
    again = from_checkpoint(tmp_path / "trained", torch.float32, Lodging())
    assert same(model, again)
    if folder:
        # What lies below host memory is a file that anyone can read.
        with safe_open(tmp_path / folder / FILE, "pt") as file:
            store = Store.of(other)
            assert all(torch.equal(file.get_tensor(f"piece.{n}"), p) for n, p in enumerate(store.payloads))


def test_a_models_own_blocks_in_a_file(tmp_path):
    model, losses, common = pair("llama", 3)
    method, other = offloaded(**common, folder=str(tmp_path), slots=2), MODELS["llama"]()
    assert steps(method, other, 3) == losses and (tmp_path / FILE).exists()
    method.close()
    assert same(model, other) and not (tmp_path / FILE).exists()


@pytest.mark.parametrize("damage", ["shard", "tensor", "shape", "torn", "config"])
def test_an_incomplete_checkpoint_is_refused_before_anything_is_loaded(checkpoint, damage, monkeypatch):
    from safetensors.torch import load_file, save_file

    shards = sorted(checkpoint.glob("*.safetensors"))
    if damage == "shard":
        shards[-1].unlink()
    elif damage == "config":
        (checkpoint / "config.json").unlink()
    elif damage == "torn":
        shards[-1].write_bytes(shards[-1].read_bytes()[:100])
    else:
        tensors = load_file(shards[-1])
        name, value = tensors.popitem()
        if damage == "shape":
            tensors[name] = value[:1].clone()
        save_file(tensors, shards[-1])
        if damage == "tensor":
            index = json.loads((checkpoint / INDEX).read_text())
            del index["weight_map"][name]
            (checkpoint / INDEX).write_text(json.dumps(index))
    monkeypatch.setattr(memory.HostMemory, "allocate", lambda *_: pytest.fail("something was allocated"))
    words = {"shard": "missing", "tensor": "has no", "shape": "of shape", "torn": "damaged", "config": "config"}
    with pytest.raises(LabError, match=words[damage]):
        from_checkpoint(checkpoint, torch.float32, Lodging())


def test_too_little_host_memory_is_said_before_any_is_taken(monkeypatch):
    monkeypatch.setattr(memory.mmap, "mmap", lambda *_: pytest.fail("something was allocated"))
    model = MODELS["opt"]()
    before = {n: p.data_ptr() for n, p in model.named_parameters()}
    monkeypatch.setattr(memory, "room", lambda: 1000)
    with pytest.raises(LabError, match=r"host memory, and 0\.0 GiB are free"):
        offloaded().prepare(model, TASK, 1)
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == before
    monkeypatch.setenv(memory.DECLARED, "0.00001")
    monkeypatch.setattr(memory, "room", lambda: 10**12)
    with pytest.raises(LabError, match="GiB are free"):
        offloaded().prepare(model, TASK, 1)
    monkeypatch.setenv(memory.DECLARED, "much")
    with pytest.raises(LabError, match="no number of GiB"):
        offloaded().prepare(model, TASK, 1)


def test_where_the_driver_refuses_to_pin_what_was_pinned_is_given_back(monkeypatch):
    """The driver stands in; that it pins is seen on a GPU (tests/gpu)."""
    pinned, calls = [], []

    def register(address, nbytes):
        calls.append(nbytes)
        if len(calls) == 3:
            return 2
        pinned.append(address)
        return 0

    class Runtime:
        cudaHostUnregister = staticmethod(pinned.remove)

    monkeypatch.setattr(memory, "_register", register)
    monkeypatch.setattr(memory.torch.cuda, "init", lambda: None)
    monkeypatch.setattr(memory.torch.cuda, "cudart", lambda: Runtime)
    host = memory.HostMemory(pin=True)
    with pytest.raises(LabError, match="refuses to pin"):
        host.allocate([5000, 6000, 7000, 8000], lambda number, flat: None)
    assert not pinned and all(nbytes % memory.PAGE == 0 for nbytes in calls)
    kept = host.allocate([5000], lambda number, flat: flat.fill_(7))
    assert len(pinned) == 1 and kept[0].eq(7).all() and pinned[0] == kept[0].data_ptr()
    del host
    gc.collect()  # the refusal's traceback knows it
    assert not pinned


def test_pages_are_all_that_is_wasted_and_no_second_copy_is_made(monkeypatch):
    """Blocks of 6.3 MB: host memory within 1 % of them, and on the way there two blocks more at most."""
    config, blocks = opt(12), 12
    config.update(WIDE)
    seen, encode = [], Plain.encode

    def own() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("RssAnon:")[1].split()[0])

    def watched(self, piece, values, payload):
        encode(self, piece, values, payload)
        seen.append(own())

    monkeypatch.setattr(Plain, "encode", watched)
    monkeypatch.setattr(memory, "WORKERS", 1)
    before = own()
    model = at_random(config, torch.float16, Lodging())
    store = Store.of(model)
    weights = sum(e.nbytes for piece in store.pieces for e in piece.entries)
    assert weights > 70e6 and len(seen) == blocks
    assert weights <= store.memory.nbytes <= 1.01 * weights
    each = weights / blocks
    assert max(seen) - before <= weights + 3 * each + 2e6
    first, last = (store.parameters[n][0] for n in (0, -1))
    assert first.float().std().item() == pytest.approx(config.init_std, rel=0.01) and not torch.equal(first, last)
    del model, store, first, last
    gc.collect()
    whole = micro_opt(layers=blocks, **WIDE)
    seen.clear()
    before = own()
    Store.taking(whole, Lodging())
    weights = sum(p.numel() * p.element_size() for p in whole.parameters())
    assert len(seen) == blocks and max(seen) - before <= 3 * weights / blocks, "it goes block by block"


def test_a_disk_that_fills_leaves_what_was_there(checkpoint, tmp_path):
    """At the file for blocks, at saving, and at the journal; each time the weights on the disk are as they were."""
    before = digest(checkpoint)
    with full_disk(30_000), pytest.raises(LabError, match="cannot be made"):
        from_checkpoint(checkpoint, torch.float32, Lodging(folder=str(tmp_path / "file")))
    assert not list((tmp_path / "file").iterdir())
    model = from_checkpoint(checkpoint, torch.float32, Lodging())
    method = offloaded(**COMMON, trajectory=str(tmp_path / "journal"))
    losses = steps(method, model, 3)
    with full_disk(30_000), pytest.raises(LabError, match="could not be written"):
        method.save(checkpoint)
    assert digest(checkpoint) == before and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    size = (tmp_path / "journal").stat().st_size
    with full_disk(size + 10), pytest.raises(LabError, match="could not be added"):
        method.step(BATCHES[3])
    method.close()
    # A part of a row is there, and is cut off.
    assert (tmp_path / "journal").stat().st_size == size + 10
    again = Mezo(**COMMON, trajectory=str(tmp_path / "journal"))
    assert steps(again, MODELS["opt"](), 3) == pytest.approx(losses, abs=1e-6) and len(again.record.rows) == 3


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = {paths}
    import torch
    from offloads import BATCHES, offloaded, TASK
    from labkit.zeroth.offload.load import from_checkpoint
    from labkit.zeroth.offload.store import Lodging
    from labkit.zeroth.offload.slots import Slots

    model = from_checkpoint({checkpoint!r}, torch.float32, Lodging(folder={folder!r}))
    method = offloaded(**{common}, trajectory={journal!r}, write_back={write_back}, restore={restore!r})
    method.prepare(model, TASK, 6)
    for batch in BATCHES[:4]:
        method.step(batch)
    count, give = [0], Slots.give
    def then(self, *given):
        give(self, *given)
        count[0] += 1
        if count[0] == 2:  # in the middle of a sweep, with one block written back
            self.store.wait()
            os.kill(os.getpid(), signal.SIGKILL)
    Slots.give = then
    method.step(BATCHES[4])
"""


@pytest.mark.parametrize(("restore", "write_back", "folder"), [("exact", 1, ""), ("walk", 2, "file")], ids=str)
def test_killed_in_the_middle_of_a_step_it_goes_on_bitwise(checkpoint, tmp_path, restore, write_back, folder):
    before = digest(checkpoint)
    where = str(tmp_path / folder) if folder else ""
    script = textwrap.dedent(KILLED).format(
        paths=[str(Path(__file__).parent), str(Path(__file__).parents[1])], checkpoint=str(checkpoint), folder=where,
        common=COMMON, journal=str(tmp_path / "journal"), write_back=write_back, restore=restore,
    )  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert digest(checkpoint) == before
    model, losses, _ = pair("opt", 6, restore=restore)
    other = from_checkpoint(checkpoint, torch.float32, Lodging(folder=where))
    method = offloaded(**COMMON, trajectory=str(tmp_path / "journal"), write_back=3, restore=restore)
    method.prepare(other, TASK, 6)
    assert len(method.record) == 4, "the step in which it was killed is in no row"
    found = [method.step(BATCHES[n]).item() for n in range(6)]
    assert found == pytest.approx(losses, abs=1e-6) and found[4:] == losses[4:]
    method.close()
    assert same(model, other)


def test_a_model_that_was_made_in_pieces_can_be_saved_untrained(tmp_path):
    model = at_random(micro_opt().config, torch.float16, Lodging(parts=3), seed=3)
    again = from_checkpoint(save(model, tmp_path / "saved", 30_000), torch.float16, Lodging())
    assert same(model, again) and len(list((tmp_path / "saved").glob("*.safetensors"))) > 1


def test_a_model_that_nobody_has_is_gone():
    """Trained and not closed: hooks, store and engine refer to each other, and to nothing that stays."""
    model = at_random(micro_opt().config, torch.float32, Lodging())
    method = offloaded(**COMMON)
    steps(method, model, 1)
    flat = weakref.ref(Store.of(model))
    del model, method
    gc.collect()
    assert flat() is None
