"""MeZO as a method: equal to a reference that stores every z, and what happens at the edges."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from micro import Letters, micro_llama

from labkit.errors import LabError, UnknownNameError
from labkit.training import train
from labkit.zeroth import noise, perturb
from labkit.zeroth.metrics import f1
from labkit.zeroth.mezo import Mezo, direction_seed
from labkit.zeroth.mezo_adapters import MezoLora, MezoPrefix

TASK = Letters()
BATCHES = [TASK.batch(TASK.train[i : i + 8]) for i in range(0, 32, 8)]


class Reference:
    """MeZO as the paper writes it, with every z a tensor, in double precision between steps' roundings to fp32."""

    def __init__(self, model, lr, eps, directions, decay, factor=lambda step: 1.0, seed=0):
        self.model, self.lr, self.eps, self.n, self.decay, self.seed = model, lr, eps, directions, decay, seed
        self.factor, self.count = factor, 0
        named: dict[int, list] = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            if p.requires_grad:
                named.setdefault(id(p), [p, []])[1].append(name)
        self.parameters = [(min(names), p) for p, names in named.values()]

    def z(self, number):
        seed = direction_seed(self.seed, self.count, number)
        return [noise.normal(noise.key(seed, n), 0, p.numel()).view(p.shape) for n, p in self.parameters]

    def set(self, values):
        for (_, p), value in zip(self.parameters, values, strict=True):
            p.copy_(value)

    @torch.no_grad()
    def step(self, batch):
        w = [p.clone() for _, p in self.parameters]
        estimates, losses = [], []
        for number in range(self.n):
            z, sides = self.z(number), []
            for eps in (self.eps, -self.eps):
                self.set([a + eps * b for a, b in zip(w, z, strict=True)])
                sides.append(TASK.loss(self.model, batch).item())
            g = (sides[0] - sides[1]) / (2 * self.eps)
            estimates.append([g * b for b in z])
            losses.append(sum(sides) / 2)
        lr = self.lr * self.factor(self.count)
        moved = []
        for a, *found in zip(w, *estimates, strict=True):
            decay = self.decay if a.dim() >= 2 else 0.0
            moved.append(a - lr * (sum(found) / self.n + decay * a))
        self.set(moved)
        self.count += 1
        return sum(losses) / self.n


def prepared(method, model=None, steps=4):
    model = micro_llama() if model is None else model
    method.prepare(model, TASK, steps)
    return model


@pytest.mark.parametrize("restore", ["exact", "walk"])
@pytest.mark.parametrize(
    ("directions", "decay", "schedule"), [(1, 0.0, "constant"), (3, 0.1, "linear")], ids=["plain", "all"]
)
def test_losses_and_weights_are_the_references(restore, directions, decay, schedule):
    method = Mezo(3e-3, 1e-2, directions, decay, schedule, restore=restore, seed=11)
    model, other = prepared(method), micro_llama().eval()
    factor = (lambda step: 1 - step / 4) if schedule == "linear" else (lambda step: 1.0)
    reference = Reference(other, 3e-3, 1e-2, directions, decay, factor, seed=11)
    losses = [(method.step(b).item(), reference.step(b)) for b in BATCHES]
    method.close()
    assert [a for a, _ in losses] == pytest.approx([b for _, b in losses], abs=2e-5)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)
    moved = [(p - q).abs().max() for p, q in zip(model.parameters(), micro_llama().parameters(), strict=True)]
    assert min(moved) > 1e-3, "every tensor has moved by far more than the tolerance"


def test_the_projected_gradient_is_the_gradients_projection():
    """g = ∇L · z up to O(ε²), for each of a few directions, by autograd in fp64."""
    method = Mezo(learning_rate=0.0, perturbation_scale=1e-4)
    model = prepared(method, micro_llama().double())
    loss = TASK.loss(model, BATCHES[0])
    loss.backward()
    for step in range(3):
        exact = 0.0
        for w in perturb.trained(model):
            z = noise.normal(noise.key(direction_seed(0, step, 0), w.name), 0, w.tensor.numel())
            gradient = next(p.grad for p in model.parameters() if id(p) in w.aliases)
            exact += float((gradient.view(-1) * z.double()).sum())
        method.step(BATCHES[0])
        # TASK's logits are fp32, which limits the difference quotient.
        assert method.record.rows[step].projected_gradient == pytest.approx(exact, rel=0.02, abs=0.02)


def test_the_order_of_registration_changes_nothing():
    def losses(reverse):
        method, model = Mezo(3e-3, 1e-2), micro_llama()
        if reverse:
            for module in model.modules():
                module._modules = dict(reversed(list(module._modules.items())))
            # The order in which the layers are run is a list's own, not its registration's.
            model.model.layers._modules = dict(sorted(model.model.layers._modules.items()))
        prepared(method, model)
        return [method.step(b).item() for b in BATCHES], model.lm_head.weight

    (one, w), (other, v) = losses(False), losses(True)
    assert one == other and torch.equal(w, v)


@pytest.mark.parametrize("restore", ["exact", "walk"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_between_steps_are_w(dtype, restore):
    method = Mezo(0.0, 1e-2, restore=restore)
    model = prepared(method, micro_llama().to(dtype))
    before = [p.clone() for p in model.parameters()]
    for batch in BATCHES:
        method.step(batch)
    with method.computing():
        same = [torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert all(same) if restore == "exact" else not all(same)


def test_a_gradient_of_exactly_zero_writes_nothing():
    method = Mezo(1e-2, objective=lambda model, task, batch: 1.0, weight_decay=0.0)
    model = prepared(method)
    versions = [p._version for p in model.parameters()]
    assert method.step(BATCHES[0]).item() == 1.0
    assert method.observed()["projected_gradient"] == 0.0
    assert [p._version for p in model.parameters()] == versions


@pytest.mark.parametrize("restore", ["exact", "walk"])
def test_a_direction_without_a_finite_loss_is_left_out(restore):
    """Of three directions the second has a NaN, later all: the update is the others' mean, then none."""
    calls = []

    def objective(model, task, batch):
        calls.append(0)
        bad = len(calls) in (3, 4) or len(calls) > 6
        return math.inf if bad and len(calls) % 2 else math.nan if bad else task.loss(model, batch).item()

    method = Mezo(3e-3, 1e-2, 3, 0.1, objective=objective, restore=restore)
    model = prepared(method)
    assert math.isfinite(method.step(BATCHES[0]).item())
    assert method.observed()["skipped"] == 1.0
    method._restore.settle()
    other = micro_llama()
    good = [row for row in method.record.rows if row.projected_gradient]
    terms = [(row.seed, -row.learning_rate * row.projected_gradient / 2) for row in good]
    for w in perturb.trained(other):
        perturb.add_(w.tensor, w.name, terms, 1 - good[0].learning_rate * good[0].weight_decay if w.decayed else 1.0)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    before = [p.clone() for p in model.parameters()]
    assert math.isnan(method.step(BATCHES[1]).item())
    method.close()
    tolerance = {"rtol": 0, "atol": 0} if restore == "exact" else {"rtol": 1e-6, "atol": 1e-6}
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p, b, **tolerance)


def test_train_stops_or_raises_at_a_loss_that_is_not_a_number():
    method = Mezo(objective=lambda model, task, batch: math.nan)
    with pytest.raises(LabError, match="not a number at step 0"):
        train(micro_llama(), TASK, method, steps=3, batch_size=8, progress=False)
    run = train(micro_llama(), TASK, method, steps=3, batch_size=8, progress=False, on_nan="stop")
    assert run.stopped and len(run.losses) == 1 and run.accuracy is not None


def test_a_scale_below_the_spacing_is_refused_or_warned_of():
    def check(eps, dtype=torch.bfloat16):
        prepared(Mezo(perturbation_scale=eps), micro_llama().to(dtype))

    with pytest.raises(LabError, match="100 % of the weights in bfloat16 stay"):
        check(1e-7)
    with pytest.warns(UserWarning, match="% of the weights in bfloat16 stay"):
        check(3e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(1e-7 * 1e4, torch.float32)
        check(2e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": -1.0},
        {"perturbation_scale": 0.0},
        {"directions": 0},
        {"directions": 1.5},
        {"weight_decay": math.nan},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(LabError, match=r"is no|cannot be taken"):
        prepared(Mezo(**settings))


@pytest.mark.parametrize("field", ["schedule", "objective", "restore", "ranks"])
def test_unknown_names_are_refused(field):
    with pytest.raises(UnknownNameError):
        prepared(Mezo(**{field: "nonsense"}))


@pytest.mark.parametrize("objective", ["accuracy", "f1"])
def test_metrics_are_objectives(objective):
    """No gradient passes through them: every g is a whole number of examples over 2ε (of F1, not quite)."""
    method = Mezo(0.02, 0.05, 4, objective=objective, seed=3)
    model, batch = prepared(method, steps=10), TASK.batch(TASK.train)
    begin = method._objective(model, TASK, batch)
    for _ in range(10):
        method.step(batch)
    assert method._objective(model, TASK, batch) < begin - 0.1
    if objective == "accuracy":
        examples = [row.projected_gradient * 0.1 * len(TASK.train) for row in method.record.rows]
        assert examples == pytest.approx([round(e) for e in examples], abs=1e-3) and any(examples)


def test_f1_is_the_mean_over_classes():
    named, labels = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 1, 0])
    assert f1(named, labels) == pytest.approx((2 * 1 / 4 + 2 * 2 / 6) / 2)
    assert f1(labels, labels) == 1.0


@pytest.mark.parametrize("method", [MezoLora(rank=2, learning_rate=3e-3), MezoPrefix(length=3, learning_rate=3e-3)])
@pytest.mark.parametrize("restore", ["exact", "walk"])
def test_adapters_train_alone(method, restore):
    method.restore = restore
    model = micro_llama().eval()
    frozen = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    prepared(method, model)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n or "in_front" in n for n in names)
    start = {n: model.get_parameter(n).clone() for n in names}
    reference_model = micro_llama().eval()
    torch.manual_seed(0)
    method.choose(reference_model, TASK)
    reference = Reference(reference_model, method.learning_rate, method.perturbation_scale, 1, 0.0)
    for batch in BATCHES:
        assert method.step(batch).item() == pytest.approx(reference.step(batch), abs=1e-5)
    method.close()
    for n in names:
        moved, other = model.get_parameter(n), reference_model.get_parameter(n)
        torch.testing.assert_close(moved, other, rtol=1e-4, atol=1e-5)
        assert not torch.equal(moved, start[n])
    for name, value in frozen.items():
        there = [p for n, p in model.named_parameters() if n.replace(".base.", ".") == name]
        assert torch.equal(there[0], value)


def test_no_gradients_no_states_and_dropout_off():
    modes = []

    def objective(model, task, batch):
        modes.append(model.training)
        return task.loss(model, batch).item()

    method = Mezo(1e-3, objective=objective)
    model = micro_llama()
    run = train(model, TASK, method, steps=2, batch_size=8, progress=False)
    assert run.ledger.measured["gradients"] == run.ledger.measured["optimizer_states"] == 0
    assert run.ledger.residual("weights") == 0 and all(p.grad is None for p in model.parameters())
    assert set(run.traces) == {"projected_gradient", "learning_rate", "skipped"}
    assert modes == [False] * 4
