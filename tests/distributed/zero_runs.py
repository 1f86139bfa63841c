"""What runs in ranks for the tests of sharded training: many checks a launch, since a launch takes seconds."""

from __future__ import annotations

import torch
import torch.distributed as dist
import zero_checks as checks
import zero_mutants as mutants
from decoders import opt
from zero_checks import SETTINGS, STEPS, TASK, check_bytes, check_traffic, check_values, verdict

from labkit.errors import LabError
from labkit.ledger import Ledger
from labkit.memory.checkpointed import checkpointed
from labkit.parallel.zero import Zero, Zero1, Zero2, Zero3
from labkit.parallel.zero_torch import TorchFsdp2, TorchZero1
from labkit.parallel.zero_watch import watch
from labkit.training import evaluate, train

STAGES = (Zero1, Zero2, Zero3)


def make(kind: type, **more):
    return lambda: kind(**{**SETTINGS, "max_grad_norm": None, **more})


def values() -> dict[str, str]:
    """Verdicts on the values of every stage."""
    found = {}
    for stage in STAGES:
        name = stage.name
        found[name] = verdict(check_values, make(stage))
        bf16 = make(stage, weights="bfloat16")
        found[f"{name} bf16"] = verdict(check_values, bf16, torch.bfloat16)
        found[f"{name} clipped"] = verdict(check_values, make(stage, max_grad_norm=0.05), clip=0.05)
        found[f"{name} opt"] = verdict(check_values, make(stage), config=opt(2))
        found[f"{name} 7 rows"] = verdict(check_values, make(stage), size=7)
    found["zero3 one row"] = verdict(check_values, make(Zero3), size=1)
    found["zero3 untied"] = verdict(
        check_values, make(Zero3), config=checks.llama(3, tied=False, initializer_range=0.15)
    )
    rounded = make(Zero3, weights="bfloat16", hold_weights=False)
    found["zero3 rounded anew"] = verdict(check_values, rounded, torch.bfloat16)
    found["zero3 checkpointed"] = verdict(check_values, make(Checkpointed3))
    return found


class Checkpointed3(Zero3):
    """Layers compute again in the backward pass."""

    def _loss(self, batch):
        with checkpointed(self._model, 2):
            return super()._loss(batch)


def peers() -> dict[str, str]:
    """Verdicts on torch's own, to the same references, and on bytes that they say."""
    kinds = {"torch.zero1": make(TorchZero1), "torch.fsdp2": make(TorchFsdp2), "kept": make(TorchFsdp2, reshard=False)}
    found = {name: verdict(check_peer, kind) for name, kind in kinds.items()}
    found["torch.fsdp2 bf16"] = verdict(check_peer, make(TorchFsdp2, weights="bfloat16"), torch.bfloat16)
    return found


def check_peer(kind, dtype=torch.float32) -> None:
    net = checks.model()
    method = kind()
    method.prepare(net.train(), TASK, STEPS)
    ledger, losses = Ledger(predicted=method.predicted_bytes()), []
    for batch in checks.batches():
        losses.append(method.measured_step(batch, ledger).item())
    expected, wanted = checks.reference(checks.model(), dtype=dtype)
    assert torch.allclose(torch.tensor(losses), torch.tensor(expected), atol=1e-6 if dtype == torch.float32 else 5e-3)
    if dtype == torch.float32:
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(whole, wanted, strict=True)), "other weights than one process"
    for name, predicted in ledger.predicted.items():
        assert ledger.measured[name] == predicted, (name, ledger.measured[name], predicted)


def wrong_values() -> dict[str, str]:
    """What the checks say of mutants whose values are wrong."""
    of = mutants.mutant
    clipped = {"max_grad_norm": 0.05}
    return {
        "no reduction": verdict(check_values, make(of(Zero2, wire=mutants.NoReduction))),
        "sum for mean": verdict(check_values, make(of(Zero3, wire=mutants.SumForMean))),
        "stale": verdict(check_values, make(of(Zero1, engine=mutants.Stale))),
        "local norm": verdict(check_values, make(of(Zero3, optimizer=mutants.LocalNorm), **clipped), clip=0.05),
        "no clipping": verdict(check_values, make(Zero1), clip=0.05),
        "own weights": verdict(check_values, make(Unequal)),
    }


class Unequal(Zero2):
    """Ranks begin with different weights, and rank 0's do not count."""

    def prepare(self, model, task, steps):
        super().prepare(model, task, steps)
        for unit in self.engine.units:
            unit.master.data.add_(self.engine.wire.rank)
            self.engine.publish(unit)


def wrong_bytes() -> dict[str, str]:
    """What the checks say of mutants with right values that do not shard what they say, and of the unmutated."""
    of = mutants.mutant
    found = {}
    for stage in STAGES:
        for wrong in (mutants.UnshardedAdamW, mutants.UnshardedMoments):
            kind = make(of(stage, optimizer=wrong))
            found[f"{stage.name} {wrong.__name__}"] = verdict(check_bytes, kind, stage.stage)
    found["right values"] = verdict(check_values, make(of(Zero1, optimizer=mutants.UnshardedAdamW)))
    for stage, engine in (
        (Zero2, mutants.KeepsGradients),
        (Zero3, mutants.KeepsGradients),
        (Zero3, mutants.KeepsWeights),
        (Zero3, mutants.ReleasesLate),
    ):
        found[f"{stage.name} {engine.__name__}"] = verdict(check_bytes, make(of(stage, engine=engine)), stage.stage)
    rounded = make(of(Zero3, engine=mutants.HoldsWeights), weights="bfloat16", hold_weights=False)
    found["zero3 HoldsWeights"] = verdict(check_bytes, rounded, 3)
    found["zero1 as zero2"] = verdict(check_bytes, make(Zero1), 2)
    found["zero2 as zero3"] = verdict(check_bytes, make(Zero2), 3)
    found["AllReduces"] = verdict(check_traffic, make(of(Zero2, wire=mutants.AllReduces)), 2)
    return found


def sizes(formats: tuple[str, ...] = ("float32", "bfloat16")) -> dict[str, str]:
    """Verdicts on bytes and traffic of every stage."""
    found = {}
    for stage in STAGES:
        for weights in formats:
            kind = make(stage, weights=weights)
            found[f"{stage.name} {weights} bytes"] = verdict(check_bytes, kind, stage.stage)
            found[f"{stage.name} {weights} traffic"] = verdict(check_traffic, kind, stage.stage)
    if "bfloat16" in formats:
        found["zero3 rounded anew"] = verdict(check_bytes, make(Zero3, weights="bfloat16", hold_weights=False), 3)
    return found


def eight() -> dict[str, str]:
    """The same in one format, for processes that share few cores."""
    return sizes(("bfloat16",))


def going_on() -> dict[str, str]:
    """Verdicts on what else a method does: different starts, states, evaluation, the loop, refusals."""
    found = {kind.name: verdict(check_resumed, make(kind, weights=w)) for kind, w in zip(STAGES, FORMATS, strict=True)}
    found["rank 0's weights"] = verdict(check_start)
    found["loop"] = verdict(check_loop)
    found["frozen"] = verdict(check_refusals)
    found["unused"] = verdict(check_unused)
    found["watched"] = verdict(check_watched)
    return found


FORMATS = ("float32", "bfloat16", "bfloat16")


def check_resumed(kind) -> None:
    """Three steps, a state, and three more in a fresh method: as six in one."""
    expected, wanted = checks.trained(kind())
    first = kind()
    first.prepare(checks.model().train(), TASK, STEPS)
    losses = [first.step(batch).item() for batch in checks.batches()[:3]]
    state = first.state_dict()
    net, second = checks.model(seed=1), kind()
    second.prepare(net.train(), TASK, STEPS)
    second.load_state_dict(state)
    losses += [second.step(batch).item() for batch in checks.batches()[3:]]
    second.close()
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), wanted, strict=True))


def check_start() -> None:
    """Where ranks are given different weights, rank 0's count."""
    net, method = checks.model(seed=dist.get_rank()), make(Zero3)()
    method.prepare(net.train(), TASK, STEPS)
    losses = [method.step(batch).item() for batch in checks.batches()]
    method.close()
    assert losses == checks.trained(make(Zero3)())[0]


def check_loop() -> None:
    """`labkit.training.train` runs every stage alike, and evaluates; afterwards nothing hangs on the model."""
    runs = []
    for kind in STAGES:
        net = checks.model()
        runs.append(train(net, TASK, make(kind)(), steps=STEPS, batch_size=8, progress=False))
        again = evaluate(net.eval(), TASK)
        last = {k: v for k, v in runs[-1].evaluations[-1].items() if k in again}
        assert again == last, (kind.name, again, last)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    assert runs[0].losses == runs[1].losses == runs[2].losses
    assert [run.evaluations for run in runs[1:]] == [runs[0].evaluations] * 2
    assert len(runs[2].traces["all_gather_bytes"]) == STEPS


def check_refusals() -> None:
    """What cannot be sharded says so."""
    from labkit.parallel.zero_engine import ZeroEngine

    net = checks.model()
    net.model.norm.requires_grad_(False)
    for bad in (lambda: ZeroEngine(net, 3, torch.float32, torch.device("cpu")), lambda: Zero(weights="fp7")):
        try:
            bad()
        except LabError as error:
            assert error.remedy
        else:
            raise AssertionError("not refused")


def check_unused() -> None:
    """A layer that has no part in the loss is updated with gradients of zero, as it would be were they there."""
    for kind in STAGES:
        net, method = checks.model(), make(kind)()
        method.prepare(net.train(), TASK, STEPS)
        layers = net.model.layers
        net.model.layers = torch.nn.ModuleList(list(layers)[:1])
        net.model.config.num_hidden_layers = 1
        for batch in checks.batches():
            method.step(batch)
        method.close()
        start, end = checks.model().model.layers[1], layers[1]
        decay = 1.0
        for rate in checks.rates():
            decay *= 1 - rate * checks.DECAY
        pairs = zip(start.parameters(), end.parameters(), strict=True)
        assert all(torch.allclose(a * decay, b, rtol=1e-5, atol=1e-8) for a, b in pairs), kind.name


def check_watched() -> None:
    """A watched step is an ordinary one; what is noted has the engine's peaks, and the layers in their order."""
    for kind in STAGES:
        expected, method = checks.trained(make(kind)())[0], make(kind)()
        method.prepare(checks.model().train(), TASK, STEPS)
        first, *rest = checks.batches()
        losses = [method.step(first).item()]
        before = dict(vars(method.engine))
        with watch(method.engine) as looks:
            losses.append(method.step(rest[0]).item())
        assert vars(method.engine).keys() == before.keys(), "something stays on the engine"
        assert not any("collect" in vars(unit) for unit in method.engine.units)
        seen, noted = method.observed(), len(looks)
        assert max(look.gradient_bytes for look in looks) == seen["gradients_in_flight_bytes"]
        assert max(look.gathered_bytes for look in looks) == seen["gathered_bytes"]
        losses += [method.step(batch).item() for batch in rest[1:]]
        method.close()
        assert losses == expected and len(looks) == noted
        check_looks(looks, kind.stage)


def check_looks(looks, stage: int) -> None:
    reduced = [look.unit for look in looks if look.event == "reduced"]
    assert reduced == ["model.layers.1", "model.layers.0", "root"]
    phases = [look.phase for look in looks]
    assert list(dict.fromkeys(phases)) == ["forward"] * (stage == 3) + ["backward", "after backward"]
    assert phases == sorted(phases, key=["forward", "backward", "after backward"].index)
    needed = [(look.phase, look.unit) for look in looks if look.event == "needed" and look.unit != "root"]
    there = [("forward", 0), ("forward", 1), ("backward", 1), ("backward", 0)] if stage == 3 else []
    assert list(dict.fromkeys(needed)) == [(phase, f"model.layers.{number}") for phase, number in there]


def four() -> dict[str, dict[str, str]]:
    """Sizes, and values of which bits depend on the order of additions."""
    found = {kind.name: verdict(check_values, make(kind)) for kind in STAGES}
    return {"sizes": sizes(("float32",)), "values": found}


def two() -> dict[str, dict[str, str]]:
    """All that runs on two ranks."""
    parts = (values, peers, wrong_values, wrong_bytes, going_on, sizes)
    return {part.__name__: part() for part in parts}
