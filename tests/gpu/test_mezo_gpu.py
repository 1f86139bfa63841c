"""MeZO on a GPU: the kernel makes the CPU's integers and, to rounding, its weights; the peak is inference's."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from micro import Letters, micro_llama
from transformers import AutoModelForCausalLM

from labkit import published
from labkit.tasks import Batch
from labkit.training import train
from labkit.zeroth import fused, fused_all, noise, perturb
from labkit.zeroth.groups import Group, Pass, book_of, copies_of
from labkit.zeroth.mezo import Mezo, replay
from labkit.zeroth.perturb import Weight
from labkit.zeroth.restore import Exact
from labkit.zeroth.trajectory import Trajectory

pytestmark = pytest.mark.gpu
TERMS = [(7, 1e-2), (2**63 + 5, -2e-2), (7, 5e-3)]


@pytest.fixture(autouse=True)
def _triton():
    if not fused.usable(torch.empty(1, device="cuda")):
        pytest.skip("needs Triton")


@pytest.mark.parametrize("start", [0, 5, 2**32 - 3, 2**40])
def test_the_integers_are_the_cpus_bit_for_bit(start):
    for seed in (0, 1, 2**64 - 1):
        halves = noise.key(seed, "w")
        there = fused.bits(5000, halves, start, "cuda").cpu()
        here = torch.stack(noise.philox(torch.arange(start, start + 5000), halves), 1)
        assert torch.equal(there, here)


@pytest.mark.parametrize("start", [0, 1])
def test_z_is_the_cpus_as_far_as_the_hardwares_functions_go(start):
    """The first start is read several values at once, the second one by one."""
    zeros, again = torch.zeros(2**22, device="cuda"), torch.zeros(2**22, device="cuda")
    for out in (zeros, again):
        perturb.write(torch.zeros_like(out), out, "w", [(3, 1.0)], start=start)
    z = noise.normal(noise.key(3, "w"), start, 2**22)
    torch.testing.assert_close(zeros.cpu(), z, rtol=2e-6, atol=5e-6)
    assert (zeros.cpu() - z).abs().mean() < 5e-7
    assert torch.equal(zeros, again)


@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 3, 2047, 2048, 2049, 1_000_003])
def test_weights_are_the_chunked_paths_to_rounding(dtype, count):
    w = torch.randn(count, generator=torch.Generator().manual_seed(0)).mul(0.02).to(dtype)
    there = w.cuda()
    perturb.add_(there, "w", TERMS, 0.99)
    perturb.add_(w, "w", TERMS, 0.99)
    differ = (there.cpu() != w).float().mean().item()
    # A last place of fp32 decides seldom how a sum rounds to 16 bits.
    assert differ < (1.0 if dtype == torch.float32 else 0.01) or count < 1000
    torch.testing.assert_close(there.cpu().float(), w.float(), rtol=2 * torch.finfo(dtype).eps, atol=3e-7)


def test_slices_and_rows_are_the_wholes_bits():
    w = torch.randn(300, 61, device="cuda", dtype=torch.bfloat16)
    whole, parts = torch.empty_like(w), torch.empty_like(w)
    perturb.write(w, whole, "w", TERMS)
    for begin, stop in ((70, 300), (0, 3), (3, 70)):
        perturb.write(w[begin:stop], parts[begin:stop], "w", TERMS, start=begin * 61)
    assert torch.equal(parts, whole)
    ids = torch.tensor([299, 0, 7, 7], device="cuda")
    assert torch.equal(perturb.rows(w, ids, "w", TERMS), whole[ids])
    in_place = w.clone()
    perturb.add_(in_place, "w", TERMS)
    assert torch.equal(in_place, whole)


def test_the_kernel_needs_no_memory_and_reads_and_writes_once():
    w = torch.zeros(2**27, device="cuda", dtype=torch.bfloat16)
    perturb.add_(w, "w", TERMS)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    perturb.add_(w, "w", TERMS)
    assert torch.cuda.max_memory_allocated() - before <= 4096  # keys and scales of further terms


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
def test_many_tensors_in_a_launch_get_the_bits_of_one_after_the_other(dtype, apart):
    """Of all sizes, some that a launch for many does not take among them, with moves of one term and of more."""
    sizes = (8, 40, 2048, 2**20, 4104, 3 * 2048, *[24] * 40, 7, 16)
    whole = torch.randn(sum(sizes) + 8, device="cuda", dtype=dtype)
    before, weights, begin = whole.clone(), [], 8
    for n, size in enumerate(sizes):
        weights.append(Weight(f"w{n}", whole[begin : begin + size], n % 2 == 0, frozenset({n})))
        begin += size
    outs = copies_of(weights) if apart else None
    group, one = Group(weights, book_of(weights), outs), [w.tensor.clone() for w in weights]
    for number in range(0, 300, 30):  # more directions than there are lines
        moves = [Pass([(number + n, 1e-2)], 1.0 - n / 100, [(number + n, 1e-2)]) for n in range(20)]
        moves = [*moves[:12], Pass(TERMS, 0.98, TERMS), Pass([], 0.97, []), *moves[12:]]
        for w, right in zip(weights, one, strict=True):
            for move in moves:
                perturb.add_(right, w.name, *((move.terms, move.keep) if w.decayed else (move.plain, 1.0)))
        group.make(moves)
        found = outs or [w.tensor for w in weights]
        assert all(torch.equal(out, right) for out, right in zip(found, one, strict=True))
        assert not apart or torch.equal(whole, before)
        if apart:
            one = [w.tensor.clone() for w in weights]


def test_a_block_costs_a_launch_for_each_matrix_and_few_more():
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(published.config("opt-125m"), dtype=torch.float16).eval()
    batch = Batch(*(torch.randint(0, 1000, (2, 16), device="cuda") for _ in range(2)), torch.arange(2, device="cuda"))
    method = Mezo()
    method.prepare(model, Text(), 4)
    with (
        mock.patch.object(fused_all.Book, "_launch", autospec=True, side_effect=fused_all.Book._launch) as many,
        mock.patch.object(fused, "write", side_effect=fused.write) as single,
    ):
        method.step(batch)
    # 121 small tensors and 196 in all, 32 a launch. On each side: fc1 and fc2 are larger than the slot and take two.
    assert many.call_count <= 2 * 4 + 7 and single.call_count <= 2 * (12 * 8 + 26)


@pytest.mark.parametrize("name", ["smollm2-135m", "opt-1.3b"])
def test_blocks_hold_the_bits_that_functions_are_given(name):
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(published.config(name), dtype=torch.float16).eval()
    batch = Batch(*(torch.randint(0, 1000, (2, 64), device="cuda") for _ in range(2)), torch.arange(2, device="cuda"))
    weights, found = perturb.trained(model), []
    held, layers = Exact(weights, model=model), model.config.num_hidden_layers
    assert len(held._held._parts) == 3 * layers
    for exact in (held, Exact(weights)):
        with torch.no_grad(), exact.at(TERMS[:1]):
            found.append(Text().loss(model, batch))
        with (
            mock.patch.object(fused_all.Book, "_launch", autospec=True, side_effect=fused_all.Book._launch) as many,
            mock.patch.object(fused, "write", side_effect=fused.write) as single,
            torch.no_grad(),
            exact.at(TERMS[:1]),
        ):
            Text().loss(model, batch)
        if exact is held:
            assert many.call_count <= 3 * layers + 8 and single.call_count <= 32
    assert torch.equal(*found)


def test_the_chunked_path_runs_on_the_device_too():
    w = torch.randn(10_001, device="cuda")
    chunked = w.clone()
    perturb.add_(w, "w", TERMS)
    with mock.patch.object(fused, "usable", lambda _: False):
        perturb.add_(chunked, "w", TERMS)
    torch.testing.assert_close(w, chunked, rtol=1e-5, atol=1e-6)


class Text:
    """Batches of random tokens, and the loss of the next one."""

    name, train, test = "text", [], []

    def loss(self, model, batch: Batch):
        logits = model(input_ids=batch.input_ids, logits_to_keep=1, use_cache=False).logits[:, -1]
        return torch.nn.functional.cross_entropy(logits.float(), batch.labels)


@pytest.mark.parametrize("restore", ["exact", "walk"])
@pytest.mark.parametrize("name", ["opt-125m", "opt-1.3b"])
def test_the_peak_is_at_most_two_percent_above_inferences(name, restore):
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(published.config(name), dtype=torch.float16).eval()
    batch = Batch(
        *(torch.randint(0, 1000, (16, 256), device="cuda") for _ in range(2)), torch.arange(16, device="cuda")
    )
    task, method = Text(), Mezo(restore=restore)
    method.prepare(model, task, 4)
    peaks = []
    for act in (lambda: task.loss(model, batch), lambda: method.step(batch)):
        with torch.no_grad():
            act()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            act()
            torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.02 * peaks[0], f"{peaks[1] / 2**20:.0f} MiB, inference {peaks[0] / 2**20:.0f} MiB"


@pytest.mark.parametrize("restore", ["exact", "walk"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_run_replays_bitwise_and_exact_keeps_w(tmp_path, dtype, restore):
    model = micro_llama().to("cuda", dtype)
    method = Mezo(3e-3, 1e-2, 2, 0.1, restore=restore, trajectory=str(tmp_path / "t"))
    run = train(model, Letters(), method, steps=10, batch_size=8, progress=False)
    assert all(loss == loss for loss in run.losses)
    fresh = micro_llama().to("cuda", dtype)
    replay(fresh, Trajectory.read(tmp_path / "t"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    before = [p.clone() for p in model.parameters()]
    weights = perturb.trained(model)
    with torch.no_grad(), Exact(weights).at([(1, 1e-2)]):
        model(torch.ones(1, 4, dtype=torch.long, device="cuda"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
