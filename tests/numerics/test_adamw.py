"""StoredAdamW against torch's AdamW in each dtype that torch can do, and what the other formats lose."""

from __future__ import annotations

import io

import pytest
import torch

from labkit.errors import LabError
from labkit.numerics.adamw import StoredAdamW
from labkit.numerics.rounding import round_nearest

HALVES = (torch.float16, torch.bfloat16)
OPTIONS = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-7, "weight_decay": 0.05}


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in ((30, 20), (7,), ())]


def steps(optimizer, parameters, count: int, start: int = 0, size: float = 1e-2, skip: int | None = None) -> None:
    """Steps on gradients that depend on the step's number only; parameter `skip` has none at odd steps."""
    for step in range(start, start + count):
        draw = torch.Generator().manual_seed(1000 + step)
        for place, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=draw) * size
            missing = place == skip and step % 2
            parameter.grad = None if missing else gradient.to(parameter.dtype)
        optimizer.step()


def states(optimizer, parameters, name: str) -> torch.Tensor:
    return torch.cat([optimizer.state[p][name].detach().float().flatten() for p in parameters])


def flat(parameters) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in parameters])


@pytest.mark.parametrize("skip", [None, 1], ids=["", "a gradient missing"])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_in_fp32_it_is_torchs_adamw_bit_for_bit(decay, skip):
    ours, theirs = weights(), weights()
    options = OPTIONS | {"weight_decay": decay}
    mine, library = StoredAdamW(ours, **options), torch.optim.AdamW(theirs, foreach=False, fused=False, **options)
    steps(mine, ours, 12, skip=skip)
    steps(library, theirs, 12, skip=skip)
    assert torch.equal(flat(ours), flat(theirs))
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(states(mine, ours, name), states(library, theirs, name))
    fused = weights()
    steps(torch.optim.AdamW(fused, fused=True, **options), fused, 12, skip=skip)
    torch.testing.assert_close(flat(ours), flat(fused), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_in_16_bits_it_rounds_once_a_step_as_torchs_fused_kernel_does(dtype):
    """torch's AdamW without the fused kernel rounds after every operation, and is off by a thousand times as much."""
    ours, theirs, operations = weights(dtype), weights(dtype), weights(dtype)
    mine = StoredAdamW(ours, states=dtype, **OPTIONS)
    library = torch.optim.AdamW(theirs, fused=True, **OPTIONS)
    each = torch.optim.AdamW(operations, foreach=False, fused=False, **OPTIONS)
    start = flat(ours)
    for optimizer, parameters in ((mine, ours), (library, theirs), (each, operations)):
        steps(optimizer, parameters, 10)
    assert library.state[theirs[0]]["exp_avg"].dtype == mine.state[ours[0]]["exp_avg"].dtype == dtype
    pairs = [(flat(ours), flat(theirs))]
    pairs += [(states(mine, ours, name), states(library, theirs, name)) for name in ("exp_avg", "exp_avg_sq")]
    for found, expected in pairs:
        # The order of fp32 operations differs, so that now and then a value falls to the other side of a midpoint.
        assert (found != expected).double().mean() < 0.02
        torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    way = (flat(ours) - start).abs().mean()
    assert (flat(ours) - flat(theirs)).abs().mean() < 1e-3 * way < (flat(operations) - flat(theirs)).abs().mean()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("moments", [torch.float32, *HALVES], ids=str)
def test_formats_of_weights_and_moments_are_kept_apart(dtype, moments):
    parameters = weights(dtype)
    optimizer = StoredAdamW(parameters, states=moments, **OPTIONS)
    steps(optimizer, parameters, 2)
    for parameter in parameters:
        state = optimizer.state[parameter]
        assert parameter.dtype == dtype and state["exp_avg"].dtype == state["exp_avg_sq"].dtype == moments
        assert state["exp_avg"].shape == parameter.shape and state["step"] == 2


def test_one_step_by_hand_with_every_rounding_where_it_belongs():
    """fp16 weights and bf16 moments are rounded once each, the update is made of moments before they are."""
    parameter = weights(torch.float16)[0]
    optimizer = StoredAdamW([parameter], states=torch.bfloat16, **OPTIONS)
    steps(optimizer, [parameter], 1)
    w, m, v = (
        t.double() for t in (parameter.detach(), *(optimizer.state[parameter][n] for n in ("exp_avg", "exp_avg_sq")))
    )
    parameter.grad = torch.full_like(parameter, 0.0123)
    g = parameter.grad.double()
    optimizer.step()
    m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
    update = (m / (1 - 0.9**2)) / ((v / (1 - 0.98**2)).sqrt() + 1e-7)
    expected = w * (1 - 3e-3 * 0.05) - 3e-3 * update
    found = optimizer.state[parameter]
    for value, reference in ((parameter, expected), (found["exp_avg"], m), (found["exp_avg_sq"], v)):
        rounded = round_nearest(reference.float(), value.dtype)
        assert (value.detach().float() != rounded).double().mean() < 0.01  # a midpoint, seen from fp32
        torch.testing.assert_close(value.detach().float(), rounded, rtol=2**-7, atol=0)


def test_fp16_moments_lose_small_squares_and_the_step_runs_away():
    """(1-β2) g² is zero in fp16 for g = 0.005, and η m̂ / (0 + ε) is what then moves the weight at the second step."""
    found = {}
    for moments in (torch.float32, torch.float16):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = StoredAdamW([weight], lr=1e-3, weight_decay=0.0, states=moments)
        weight.grad = torch.tensor([0.005])
        optimizer.step()
        weight.grad = torch.tensor([0.0])
        optimizer.step()
        found[moments] = (weight.item(), optimizer.state[weight]["exp_avg_sq"].item())
    assert found[torch.float32][1] > 0 and abs(found[torch.float32][0]) < 2.1e-3
    assert found[torch.float16][1] == 0 and abs(found[torch.float16][0]) > 100


def test_dice_move_weights_that_rounding_to_nearest_leaves():
    moved = {}
    for rounding in ("nearest", "stochastic"):
        weight = torch.nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
        optimizer = StoredAdamW([weight], lr=1e-4, weight_decay=0.0, rounding=rounding)
        for _ in range(20):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved[rounding] = 1 - weight.detach().double().mean().item()
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(20 * 1e-4, rel=0.15)


def test_dice_differ_by_seed_step_and_tensor_and_leave_fp32_alone():
    def once(seed: int, count: int = 1, dtype=torch.bfloat16) -> list[torch.Tensor]:
        pair = [torch.nn.Parameter(torch.ones(500, dtype=dtype)) for _ in range(2)]
        optimizer = StoredAdamW(pair, lr=1e-3, rounding="stochastic", seed=seed)
        for _ in range(count):
            for p in pair:
                p.data.fill_(1.0)
                p.grad = torch.ones_like(p)
            optimizer.step()
        return [p.detach() for p in pair]

    first = once(0)
    assert torch.equal(first[0], once(0)[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], once(1)[0])
    assert not torch.equal(first[0], once(0, count=2)[0])
    assert len(once(0, dtype=torch.float32)[0].unique()) == 1


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("moments", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_state_that_went_to_disk_goes_on_to_the_same_bits(dtype, moments, rounding):
    def optimizer(parameters):
        return StoredAdamW(parameters, states=moments, rounding=rounding, seed=3, **OPTIONS)

    whole = weights(dtype)
    steps(optimizer(whole), whole, 8)
    cut = weights(dtype)
    before = optimizer(cut)
    steps(before, cut, 5)
    again = [torch.nn.Parameter(p.detach().clone()) for p in cut]
    after = optimizer(again)
    after.load_state_dict(through_a_file(before.state_dict()))
    for old, new in zip(cut, again, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            kept = after.state[new][name]
            assert kept.dtype == moments and torch.equal(kept, before.state[old][name])
            assert kept.data_ptr() != before.state[old][name].data_ptr()
    steps(after, again, 3, start=5)
    assert torch.equal(flat(again), flat(whole))


def test_a_loaded_state_is_a_copy():
    parameter = weights()[0]
    first, second = StoredAdamW([parameter]), StoredAdamW([parameter])
    steps(first, [parameter], 2)
    state = first.state_dict()
    second.load_state_dict(state)
    before = state["state"][0]["exp_avg"].clone()
    steps(second, [parameter], 1, start=2)
    assert torch.equal(state["state"][0]["exp_avg"], before)


def test_it_goes_on_from_a_state_of_torchs_adamw():
    theirs, ours = weights(), weights()
    library = torch.optim.AdamW(theirs, foreach=False, fused=False, **OPTIONS)
    steps(library, theirs, 4)
    for mine, other in zip(ours, theirs, strict=True):
        mine.data.copy_(other)
    optimizer = StoredAdamW(ours, **OPTIONS)
    optimizer.load_state_dict(through_a_file(library.state_dict()))
    steps(library, theirs, 3, start=4)
    steps(optimizer, ours, 3, start=4)
    assert torch.equal(flat(ours), flat(theirs))


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=str)
def test_moments_that_were_kept_in_another_format_come_in_its_own(moments):
    theirs = weights(torch.float16)
    library = torch.optim.AdamW(theirs, fused=True, **OPTIONS)
    steps(library, theirs, 3)
    ours = weights(torch.float16)
    optimizer = StoredAdamW(ours, states=moments, **OPTIONS)
    optimizer.load_state_dict(library.state_dict())
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            kept, saved = optimizer.state[mine][name], library.state[other][name]
            assert kept.dtype == moments and torch.equal(kept, saved.to(moments))
    steps(optimizer, ours, 1, start=3)
    assert optimizer.state[ours[0]]["step"] == 4 and optimizer.state[ours[0]]["exp_avg"].dtype == moments


def test_groups_schedules_and_closures_work_as_in_torch():
    ours, theirs = weights(), weights()

    def groups(parameters):
        return [{"params": parameters[:1], "lr": 1e-2}, {"params": parameters[1:], "weight_decay": 0.3}]

    mine = StoredAdamW(groups(ours), **OPTIONS)
    library = torch.optim.AdamW(groups(theirs), foreach=False, fused=False, **OPTIONS)
    for optimizer, parameters in ((mine, ours), (library, theirs)):
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        for step in range(4):
            steps(optimizer, parameters, 1, start=step)
            schedule.step()
    assert torch.equal(flat(ours), flat(theirs))

    def closure():
        mine.zero_grad()
        loss = (ours[0] ** 2).sum()
        loss.backward()
        return loss

    before = ours[0].detach().clone()
    assert mine.step(closure) == (before**2).sum()
    assert not torch.equal(ours[0], before)


def test_an_unknown_rounding_is_refused():
    with pytest.raises(LabError, match="nearest, stochastic"):
        StoredAdamW(weights(), rounding="dice")
