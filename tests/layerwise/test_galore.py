"""GaLore: equal to galore-torch step for step, its bytes by formula, and never more than one gradient."""

from __future__ import annotations

import copy
import io
import warnings
import weakref

import pytest
import torch
from micro import Letters
from test_lisa import OPTIONS, deep
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labkit.errors import LabError
from labkit.layerwise.galore import GaLore, ProjectedAdamW, directions, projected, state_bytes
from labkit.ledger import optimizer_tensors, storage_bytes
from labkit.methods import FullFineTuning, Method
from labkit.training import train

SHAPES = ((24, 40), (40, 24), (20, 20), (40,), (1, 9), (9, 1))


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(0.1 * torch.randn(*shape, generator=generator)) for shape in SHAPES]


def gradients(step):
    """The same for both; of decaying singular values, so that the directions are well defined."""
    generator = torch.Generator().manual_seed(100 + step)
    found = []
    for shape in SHAPES:
        value = torch.randn(*shape, generator=generator)
        if value.dim() == 2:
            u, s, v = torch.linalg.svd(value, full_matrices=False)
            value = u * (0.7 ** torch.arange(len(s))) @ v
        found.append(value)
    return found


def pair(rank, period, decay):
    """Our optimizer and the library's, with their parameters."""
    from galore_torch import GaLoreAdamW

    mine, theirs = parameters(), parameters()
    common = {"lr": 1e-2, "eps": 1e-2, "weight_decay": decay}
    split = [[p for p in own if p.dim() == 2] for own in (mine, theirs)]
    rest = [[p for p in own if p.dim() != 2] for own in (mine, theirs)]
    ours = ProjectedAdamW(
        [{"params": split[0], "rank": rank}, {"params": rest[0]}], period=period, scale=0.25, **common
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        group = {"rank": rank, "update_proj_gap": period, "scale": 0.25, "proj_type": "std"}
        peer = GaLoreAdamW([{"params": split[1], **group}, {"params": rest[1]}], **common)
    return mine, theirs, ours, peer


@pytest.mark.parametrize("rank", [1, 4, 20, 64])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equal_to_galore_torch_over_refreshes(rank, decay):
    """Long, wide, square, a single row or column; ranks up to more than there is; three refreshes."""
    mine, theirs, ours, peer = pair(rank, 3, decay)
    start = [p.detach().clone() for p in mine]
    for step in range(8):
        for own, other, gradient in zip(mine, theirs, gradients(step), strict=True):
            own.grad, other.grad = gradient.clone(), gradient.clone()
        ours.step()
        peer.step()
        for own, other, before in zip(mine, theirs, start, strict=True):
            moved, off = (other - before).abs().max(), (own - other).abs().max()
            assert moved > 1e-4 and off <= 1e-4 * moved, (step, own.shape, off / moved)


def test_the_states_are_those_of_the_formula_and_the_library_holds_more():
    """galore-torch's projector is a slice of all singular vectors, which stay alive with it."""
    mine, theirs, ours, peer = pair(4, 3, 0.0)
    for own, other, gradient in zip(mine, theirs, gradients(0), strict=True):
        own.grad, other.grad = gradient.clone(), gradient.clone()
    ours.step()
    peer.step()
    for own, other in zip(mine, theirs, strict=True):
        held = storage_bytes(v for v in ours.state[own].values() if isinstance(v, torch.Tensor))
        assert held == (state_bytes(own.shape, 4) if own.dim() == 2 else 8 * own.numel())
        if own.dim() == 2 and min(own.shape) > 4:
            state = peer.state[other]
            moments = storage_bytes(v for v in state.values() if isinstance(v, torch.Tensor))
            short = min(own.shape)
            kept = state["projector"].ortho_matrix.untyped_storage().nbytes()
            assert moments == 4 * 2 * 4 * max(own.shape) and kept == 4 * short * short


def test_the_projection_keeps_the_largest_singular_values():
    wide = gradients(1)[0]
    values = torch.linalg.svdvals(wide)
    for gradient, shape in ((wide, (5, 40)), (wide.T.contiguous(), (40, 5))):
        low = projected(gradient, directions(gradient, 5))
        assert low.shape == shape
        assert torch.linalg.svdvals(low) == pytest.approx(values[:5], rel=1e-4)


def run(**fields):
    torch.manual_seed(0)
    model, method = deep(), GaLore(**{"rank": 4, "period": 4, **fields})
    return model, method, train(model, Letters(), method, **OPTIONS)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_measured_bytes_are_predicted(limit):
    model, method, found = run(max_grad_norm=limit)
    assert isinstance(method, Method)
    for category in ("weights", "gradients", "optimizer_states"):
        assert found.ledger.residual(category) == 0, category
    sizes = [4 * p.numel() for p in model.parameters()]
    assert found.ledger.measured["gradients"] == (sum(sizes) if limit else max(sizes))
    full = train(deep(), Letters(), FullFineTuning(), **OPTIONS).ledger
    assert found.ledger.measured["optimizer_states"] < 0.6 * full.measured["optimizer_states"]


def test_one_at_a_time_is_the_same_as_all_at_the_end():
    """Clipping at a norm that is never reached changes nothing but when."""
    one, _, at_once = run()
    two, _, at_the_end = run(max_grad_norm=1e9)
    assert at_once.losses == at_the_end.losses
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert all(not p._post_accumulate_grad_hooks for p in one.parameters()), "a hook is left"


class Large(TorchDispatchMode):
    """Bytes of living tensors of at least `least` values that are made in the block: at most how many at once."""

    def __init__(self, least):
        super().__init__()
        self.least, self.now, self.peak = least, 0, 0
        self._seen = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not torch.is_tensor(leaf) or leaf.untyped_storage().data_ptr() in given:
                continue
            storage = leaf.untyped_storage()
            if storage.nbytes() >= 4 * self.least and storage not in self._seen:
                self._seen[storage] = size = storage.nbytes()
                self.now += size
                weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, size):
        self.now -= size


def untied(tied=False):
    from transformers import LlamaForCausalLM

    shape = copy.deepcopy(deep().config)
    shape.tie_word_embeddings = tied
    torch.manual_seed(0)
    return LlamaForCausalLM(shape)


def most_at_once(model, **fields):
    """Bytes of tensors as large as a matrix that a step's backward pass and update make, at most."""
    task, method = Letters(), GaLore(**{"rank": 2, "period": 50, "max_grad_norm": 0.0, **fields})
    method.prepare(model.train(), task, 4)
    batch = task.batch(task.train[:1])  # so small that no activation is as large as a matrix
    method.step(batch)
    method._optimizer.zero_grad(set_to_none=True)
    loss = method._loss(batch)
    matrices = [p.numel() for p in method._matrices]
    with Large(min(matrices)) as large:
        method._update(loss)
    return large.peak, [4 * p.numel() for p in model.parameters()]


def test_full_gradients_never_coexist():
    """Seen operation by operation, not by `p.grad`; with clipping they do, and a tied head's part waits to the end."""
    peak, sizes = most_at_once(untied())
    assert peak == max(sizes)
    everything, sizes = most_at_once(untied(), max_grad_norm=1.0)
    assert everything > 0.9 * sum(sizes) > 5 * peak
    tied = untied(tied=True)
    waiting, sizes = most_at_once(tied)
    assert waiting == max(sizes) + 4 * tied.lm_head.weight.numel()


def test_a_run_goes_on_as_if_it_had_not_been_cut_off():
    """Between two refreshes: the directions are part of the state, and of a file without code in it."""
    task, whole = Letters(), GaLore(rank=4, period=4)
    model = deep().train()
    whole.prepare(model, task, 8)
    batches = [task.batch(task.train[i : i + 8]) for i in range(0, 64, 8)]
    for batch in batches[:5]:
        whole.step(batch)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    losses = [whole.step(batch).item() for batch in batches[5:]]
    buffer.seek(0)
    again, other = GaLore(rank=4, period=4), deep().train()
    again.prepare(other, task, 8)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert [again.step(batch).item() for batch in batches[5:]] == losses
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_zero_gradient_moves_nothing_and_none_is_left_out():
    mine = parameters()
    start = [p.detach().clone() for p in mine]
    optimizer = ProjectedAdamW([{"params": [p for p in mine if p.dim() == 2], "rank": 3}])
    for parameter in mine[:2]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(p, before) for p, before in zip(mine, start, strict=True))
    assert set(optimizer.state) == set(mine[:2])
    mine[0].grad = torch.ones_like(mine[0])
    optimizer.step()
    assert torch.isfinite(mine[0]).all() and not torch.equal(mine[0], start[0])


def test_what_is_not_a_number_ends_the_run_as_it_does_with_adamw():
    mine = parameters()[:2]
    optimizer = ProjectedAdamW([{"params": mine, "rank": 3}])
    for parameter in mine:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    assert all(p.isnan().any() for p in mine)
    model = deep()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    found = train(model, Letters(), GaLore(), **OPTIONS, on_nan="stop")
    assert found.stopped == "The loss is not a number at step 0."


def test_it_learns_and_updates_have_full_rank():
    """Each refresh adds directions: after six of rank 1 the update has more than rank 1."""
    start = deep()
    model, _, found = run(rank=1, period=2, learning_rate=1e-2, weight_decay=0.0)
    assert sum(found.losses[-4:]) < sum(found.losses[:4])
    moved = model.model.layers[0].mlp.up_proj.weight - start.model.layers[0].mlp.up_proj.weight
    assert 3 <= torch.linalg.matrix_rank(moved.detach(), rtol=1e-4) <= 6
    held = list(optimizer_tensors(run(rank=1)[1]._optimizer))
    assert all(tensor.dtype == torch.float32 for tensor in held)


@pytest.mark.parametrize(("fields", "said"), [({"rank": 0}, "rank of 0"), ({"period": 0}, "every 0 steps")])
def test_wrong_settings_end_before_any_training(fields, said):
    with pytest.raises(LabError, match=said):
        run(**fields)


def test_only_matrices_are_projected():
    with pytest.raises(LabError, match=r"shape \(40,\) has no singular vectors"):
        ProjectedAdamW([{"params": parameters(), "rank": 2}])
