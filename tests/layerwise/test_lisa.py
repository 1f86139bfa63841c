"""LISA: who is awake, what is really freed, what autograd keeps, and that a run can go on."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from micro import Letters, micro_llama

from labkit.errors import LabError
from labkit.layerwise.awake import OUTSIDE, Awake, blocks_of
from labkit.layerwise.lisa import Lisa, standing_bytes
from labkit.ledger import saved_for_backward
from labkit.ledger.shapes import Architecture
from labkit.methods import FullFineTuning, Method
from labkit.training import train

LAYERS, OPTIONS = 6, {"steps": 12, "batch_size": 8, "progress": False}


def deep():
    shape = copy.deepcopy(micro_llama().config)
    shape.num_hidden_layers = LAYERS
    torch.manual_seed(0)
    return type(micro_llama())(shape)


def run(**fields):
    model, method = deep(), Lisa(**{"layers": 2, "period": 2, **fields})
    return model, method, train(model, Letters(), method, **OPTIONS)


def test_blocks_are_every_parameter_once():
    model = deep()
    blocks = blocks_of(model)
    assert list(blocks) == [*map(str, range(LAYERS)), OUTSIDE]
    counted = [id(p) for params in blocks.values() for p in params]
    assert sorted(counted) == sorted(id(p) for p in model.parameters())
    assert any(p is model.lm_head.weight for p in blocks[OUTSIDE])


def test_states_are_freed_on_every_switch_and_bytes_stay_flat():
    """Over ten turns; with states that are kept they grow to those of full fine-tuning."""
    model, method = deep(), Lisa(layers=2, period=1)
    assert isinstance(method, Method)
    task = Letters()
    method.prepare(model.train(), task, 12)
    sizes, sets = [], set()
    for _ in range(10):
        method.step(task.batch(task.train[:8]))
        awake = {id(p) for p in method.awake.parameters}
        assert {id(p) for p in method._optimizer.state} == awake
        assert all((p.grad is not None) == (id(p) in awake) for p in model.parameters())
        sizes.append(method.observed()["state_bytes"])
        sets.add(method.awake.names)
    assert len(set(sizes)) == 1 and len(sets) > 3
    assert all(OUTSIDE in names and len(names) == 3 for names in sets)
    grown, full = Lisa(layers=2, period=1, states="kept"), FullFineTuning()
    one = train(deep(), task, grown, **{**OPTIONS, "steps": 30})
    whole = train(deep(), task, full, **OPTIONS)
    held = one.traces["state_bytes"]
    assert held[0] == sizes[0] and held[-1] == whole.ledger.measured["optimizer_states"] and held == sorted(held)


def test_bytes_by_a_model_s_shape_are_those_of_the_method():
    for outside in (True, False):
        _, method, found = run(layers=3, outside=outside)
        by_shape = standing_bytes(Architecture.of(deep().config), 3, outside)
        counted = 4 * len(method.awake.parameters)
        assert by_shape["optimizer_states"] == found.ledger.measured["optimizer_states"] - counted
        assert {name: by_shape[name] for name in ("weights", "gradients")} == {
            name: found.ledger.measured[name] for name in ("weights", "gradients")
        }


def test_measured_bytes_are_predicted_and_sleeping_layers_do_not_move():
    model, method, found = run(period=100)
    start = deep()
    for category in ("weights", "gradients", "optimizer_states"):
        assert found.ledger.residual(category) == 0, category
    before = blocks_of(start)
    for name, params in blocks_of(model).items():
        moved = any(not torch.equal(p, q) for p, q in zip(params, before[name], strict=True))
        assert moved == (name in method.awake.names)


def test_a_layer_s_steps_are_adamws_on_its_block_alone():
    """With one turn only, LISA is AdamW on the parameters that are awake."""
    model, method, found = run(period=100)
    other, task = deep(), Letters()
    blocks = blocks_of(other)
    other.requires_grad_(False)
    for name in method.awake.names:
        for parameter in blocks[name]:
            parameter.requires_grad_(True)

    class Same(FullFineTuning):
        def choose(self, model, task):
            pass

    expected = train(other, task, Same(learning_rate=method.learning_rate), **OPTIONS)
    assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_nothing_below_the_lowest_awake_layer_is_kept_where_the_embedding_sleeps():
    task, kept = Letters(), {}
    batch = task.batch(task.train[:8])
    for lowest in range(LAYERS):
        model = deep().train()
        optimizer = torch.optim.AdamW(list(model.parameters()))
        Awake(blocks_of(model), optimizer).only([str(lowest)])
        with saved_for_backward(model) as saved:
            task.loss(model, batch)
        kept[lowest] = saved["activations"]
    sizes = list(kept.values())
    steps = {a - b for a, b in itertools.pairwise(sizes)}
    assert len(steps) == 1 and steps.pop() > 0, "each layer further up keeps one layer's activations less"


def test_states_on_the_host_come_back():
    model = deep()
    blocks = blocks_of(model)
    optimizer = torch.optim.AdamW(list(model.parameters()))
    awake = Awake(blocks, optimizer, "host")
    awake.only(["0"])
    for parameter in awake.parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    first = blocks["0"][0]
    moments = {name: value.clone() for name, value in optimizer.state[first].items()}
    awake.only(["1"])
    assert not optimizer.state and awake.host_bytes() == sum(8 * p.numel() + 4 for p in blocks["0"])
    awake.only(["0"])
    assert all(torch.equal(optimizer.state[first][name], value) for name, value in moments.items())
    assert awake.host_bytes() == 0


def test_draws_follow_importance_and_the_seed():
    names = [run(seed=seed)[1].awake.names for seed in (0, 0, 1, 2)]
    assert names[0] == names[1] and len(set(names)) > 1
    model, method = deep(), Lisa(layers=1, importance="norm")
    with torch.no_grad():
        for parameter in blocks_of(model)["3"]:
            parameter.mul_(100)
    method.prepare(model, Letters(), 5)
    chances = method.probabilities()
    assert chances.argmax() == 3 and chances[3] > 0.9 and chances.sum() == pytest.approx(1)
    assert Lisa(layers=1).period == 10


def test_a_run_goes_on_as_if_it_had_not_been_cut_off():
    task, whole = Letters(), Lisa(layers=2, period=2)
    model = deep().train()
    whole.prepare(model, task, 8)
    batches = [task.batch(task.train[i : i + 8]) for i in range(0, 64, 8)]
    for batch in batches[:5]:
        whole.step(batch)
    state = copy.deepcopy(whole.state_dict())
    losses = [whole.step(batch).item() for batch in batches[5:]]
    again, other = Lisa(layers=2, period=2), deep().train()
    again.prepare(other, task, 8)
    again.load_state_dict(state)
    assert [again.step(batch).item() for batch in batches[5:]] == losses
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": 0}, "0 of 6 layers"),
        ({"layers": 7}, "7 of 6 layers"),
        ({"period": 0}, "every 0 steps"),
        ({"importance": "random"}, "importance 'random'"),
        ({"states": "lost"}, "treat states 'lost'"),
    ],
)
def test_wrong_settings_end_before_any_training(fields, said):
    with pytest.raises(LabError, match=said):
        run(**fields)
