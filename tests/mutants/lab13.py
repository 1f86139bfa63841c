"""Wrong answers to lab 13 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole13
from .answers import Answers

LAB = "13-lisa"
_answers = Answers(LAB)
_wrong = _answers.wrong

SAMPLER, SWITCH, BYTES, GALORE = "ex1-sampler", "ex2-switch", "ex3-bytes", "ex4-galore"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

RIGHT = {
    "sampler-with-python": (SAMPLER, whole13.WITH_PYTHON),
    "sampler-by-count": (SAMPLER, whole13.BY_COUNT),
    "sampler-multinomial": (SAMPLER, whole13.MULTINOMIAL),
    "switch-in-two-passes": (SWITCH, whole13.IN_TWO_PASSES),
    "bytes-told-apart": (BYTES, whole13.TOLD_APART),
    "galore-on-one-side": (GALORE, whole13.ON_ONE_SIDE),
}

_OWN = "self.generator = torch.Generator().manual_seed(seed)"
_PERM = "torch.randperm(layers, generator=self.generator)[:awake]"

# fmt: off
MUTANTS = {
    "sampler-with-replacement": _wrong(
        SAMPLER, BOTH, "A layer can be drawn twice.",
        _PERM, "torch.randint(layers, (awake,), generator=self.generator)"),
    "sampler-window": _wrong(
        SAMPLER, BOTH, "Neighbours only: each layer is drawn equally often, but not each set.", code=whole13.WINDOW),
    "sampler-rounds": _wrong(
        SAMPLER, BOTH, "Each layer once a round, as BAdam has it: a draw depends on the one before.",
        code=whole13.ROUNDS),
    "sampler-never-the-last": _wrong(
        SAMPLER, BOTH, "The last layer is never drawn.", "torch.randperm(layers,", "torch.randperm(layers - 1,"),
    "sampler-same-each-time": _wrong(
        SAMPLER, BOTH, "The generator is seeded anew at each draw.",
        "return sorted(", "self.generator.manual_seed(7)\n        return sorted("),
    "sampler-global-generator": _wrong(
        SAMPLER, BOTH, "torch's global generator is seeded, and shared by all samplers.", code=whole13.GLOBAL),
    "sampler-seeds-torch-too": _wrong(
        SAMPLER, BOTH, "torch's global generator is seeded beside its own.",
        _OWN, _OWN + "\n            torch.manual_seed(seed)"),
    "sampler-seeds-python-too": _wrong(
        SAMPLER, BOTH, "Python's global generator is seeded beside its own.",
        _OWN, _OWN + "\n            random.seed(seed)"),
    "sampler-state-draws": _wrong(
        SAMPLER, BOTH, "The state is a new seed, drawn and set: to ask for it changes the draws.",
        "return self.generator.get_state()",
        "new = int(torch.randint(2**31, (1,), generator=self.generator))\n"
        "        self.generator.manual_seed(new)\n        return new",
        "self.generator.set_state(state)", "self.generator.manual_seed(state)"),
    "sampler-no-seed": _wrong(
        SAMPLER, BOTH, "The seed is ignored.", "manual_seed(seed)", "manual_seed(0)"),
    "sampler-unsorted": _wrong(
        SAMPLER, BOTH, "Not in ascending order.", "sorted(" + _PERM + ".tolist())", _PERM + ".tolist()"),
    "sampler-state-alive": _wrong(
        SAMPLER, BOTH, "The state that was taken goes on with the sampler.", code=whole13.ALIASED),
    "sampler-load-starts-again": _wrong(
        SAMPLER, BOTH, "Loading a state begins the sequence anew.",
        "self.generator.set_state(state)", "self.generator.manual_seed(self.generator.initial_seed())"),
    "sampler-takes-any-number": _wrong(
        SAMPLER, HIDDEN, "More layers than there are can be asked for.",
        "if not 1 <= awake <= layers:", "if awake < 1:"),
    "switch-frozen-only": _wrong(
        SWITCH, BOTH, "requires_grad is set, and the optimizer keeps every state.", code=whole13.FROZEN_ONLY),
    "switch-state-zeroed": _wrong(
        SWITCH, BOTH, "The states are set to zero and keep their bytes.",
        "optimizer.state.pop(parameter, None)",
        "[v.zero_() for v in optimizer.state[parameter].values()]"),
    "switch-hidden-cache": _wrong(
        SWITCH, BOTH, "The states move to a dictionary on the optimizer, and stay alive there.",
        code=whole13.HIDDEN_CACHE),
    "switch-all-states-cleared": _wrong(
        SWITCH, BOTH, "Who stays awake loses its moments too.",
        "optimizer.param_groups[0]", "optimizer.state.clear()\noptimizer.param_groups[0]"),
    "switch-group-keeps-all": _wrong(
        SWITCH, BOTH, "The sleeping parameters stay in the group.",
        'optimizer.param_groups[0]["params"] = awake', "pass"),
    "switch-gradients-kept": _wrong(
        SWITCH, BOTH, "Sleeping parameters keep their gradients.", "        parameter.grad = None\n", ""),
    "switch-all-gradients-dropped": _wrong(
        SWITCH, HIDDEN, "Who stays awake loses its gradient.",
        "    parameter.requires_grad_(id(parameter) in stay)\n",
        "    parameter.requires_grad_(id(parameter) in stay)\n    parameter.grad = None\n"),
    "switch-gradients-zeroed": _wrong(
        SWITCH, HIDDEN, "The gradients of who stays awake are set to zero.",
        'optimizer.param_groups[0]["params"] = awake',
        'optimizer.param_groups[0]["params"] = awake\noptimizer.zero_grad(set_to_none=False)'),
    "switch-group-of-defaults": _wrong(
        SWITCH, HIDDEN, "The new group has the optimizer's defaults, not the settings of the old one.",
        code=whole13.ANOTHER_GROUP),
    "switch-state-waits": _wrong(
        SWITCH, HIDDEN, "A copy of the state hangs on the parameter, and is back when it wakes.",
        code=whole13.KEPT_ON_THE_PARAMETER),
    "switch-state-stays-in-numpy": _wrong(
        SWITCH, HIDDEN, "A copy of the state hangs on the parameter as numpy's, for ever.",
        "optimizer.state.pop(parameter, None)",
        "state = optimizer.state.pop(parameter, {})\n"
        "        parameter.asleep = {name: value.numpy().copy() for name, value in state.items()}"),
    "switch-gradients-dropped-too-soon": _wrong(
        SWITCH, HIDDEN, "Gradients are gone before an unknown name is found.",
        "for name in names:\n    if name not in blocks:",
        "for name, params in blocks.items():\n    for parameter in params:\n"
        "        parameter.grad = parameter.grad if name in names else None\n"
        "for name in names:\n    if name not in blocks:"),
    "switch-another-group": _wrong(
        SWITCH, BOTH, "The new group has the default learning rate.",
        code=whole13.ANOTHER_GROUP + "\noptimizer.param_groups[0]['lr'] = 1e-3"),
    "switch-half-done": _wrong(
        SWITCH, HIDDEN, "An unknown name is found when states are gone already.",
        "for name in names:\n    if name not in blocks:\n        raise KeyError(name)\n", "",
        'optimizer.param_groups[0]["params"] = awake',
        'optimizer.param_groups[0]["params"] = awake\nfor name in names:\n    blocks[name]'),
    "switch-order-of-names": _wrong(
        SWITCH, HIDDEN, "The group is in the order of the names.",
        "[p for name, params in blocks.items() if name in names for p in params]",
        "[p for name in names for p in blocks[name]]"),
    "bytes-kept-gradients": _wrong(
        BYTES, BOTH, "Gradients are kept like the moments.",
        "gradients = outside + sum(layers[name] for name in names)",
        "gradients = outside + sum(layers[name] for name in ever)"),
    "bytes-never-kept": _wrong(
        BYTES, BOTH, "Nothing is ever kept.", "ever | set(names) if kept else set(names)", "set(names)"),
    "bytes-counted-again": _wrong(
        BYTES, BOTH, "A layer that wakes again is counted again.",
        "set()", "[]", "ever | set(names) if kept else set(names)", "ever + list(names) if kept else list(names)"),
    "bytes-all-layers-alike": _wrong(
        BYTES, BOTH, "All layers have the first one's size.",
        "moments = outside + sum(layers[name] for name in ever)", "moments = outside + layers[0] * len(ever)"),
    "bytes-no-outside": _wrong(
        BYTES, BOTH, "What lies outside has no moments.", "moments = outside + sum(", "moments = sum("),
    "bytes-one-moment": _wrong(
        BYTES, BOTH, "One moment, where AdamW has two.", "8 * moments", "4 * moments"),
    "galore-other-side": _wrong(
        GALORE, BOTH, "The longer side is projected.", "gradient.shape[0] >= gradient.shape[1]",
        "gradient.shape[0] < gradient.shape[1]"),
    "galore-square-from-the-left": _wrong(
        GALORE, HIDDEN, "A square matrix is projected from the left.", "shape[0] >= gradient", "shape[0] > gradient"),
    "galore-slice-kept": _wrong(
        GALORE, BOTH, "A slice keeps all singular vectors alive.",
        "(vh[:rank].T if tall else u[:, :rank]).clone()", "vh[:rank].T if tall else u[:, :rank]"),
    "galore-moments-of-full-size": _wrong(
        GALORE, BOTH, "The gradient is projected and turned back before the moments: nothing is saved.",
        code=whole13.FULL_MOMENTS),
    "galore-no-refresh": _wrong(
        GALORE, BOTH, "The directions of the first step are used for ever.", "if done % period == 0:", "if not done:"),
    "galore-refresh-each-step": _wrong(
        GALORE, BOTH, "New directions in every step.", "if done % period == 0:", "if True:"),
    "galore-refresh-too-soon": _wrong(
        GALORE, BOTH, "The refresh comes one step too early.",
        "if done % period == 0:", "if not done or (done + 1) % period == 0:"),
    "galore-moments-reset": _wrong(
        GALORE, BOTH, "The moments are thrown away at each refresh.",
        "basis = state[\"basis\"]\n",
        'basis = state["basis"]\nif done % period == 0:\n    state.pop("m", None), state.pop("v", None)\n'),
    "galore-no-scale": _wrong(
        GALORE, BOTH, "The scale is forgotten.", "length * scale *", "length *"),
    "galore-no-correction": _wrong(
        GALORE, BOTH, "The moments' bias is not corrected.",
        "rate * (1 - 0.999 ** (done + 1)) ** 0.5 / (1 - 0.9 ** (done + 1))", "rate"),
    "galore-directions-of-the-weight": _wrong(
        GALORE, BOTH, "The singular vectors are the weight's.",
        "torch.linalg.svd(gradient,", "torch.linalg.svd(weight.detach(),"),
    "galore-last-directions": _wrong(
        GALORE, BOTH, "The last singular vectors in the place of the first.",
        "(vh[:rank].T if tall else u[:, :rank])", "(vh[-rank:].T if tall else u[:, -rank:])"),
    "galore-not-in-place": _wrong(
        GALORE, BOTH, "A new weight is made, and the old one stays.", "weight -= length", "weight = weight - length"),
    "galore-data-replaced": _wrong(
        GALORE, BOTH, "The weight gets another tensor for its data: nothing is written into the old one.",
        "weight -= length", "weight.data = weight.data - length"),
    "galore-rank-as-asked": _wrong(
        GALORE, HIDDEN, "Moments of `rank` directions, where the matrix has fewer.",
        'state.get("m", torch.zeros_like(low)), state.get("v", torch.zeros_like(low))',
        'state.get("m", torch.zeros((len(low), rank) if tall else (rank, low.shape[1]))), '
        'state.get("v", torch.zeros_like(low))'),
    "galore-one-for-all": _wrong(
        GALORE, HIDDEN, "All matrices share the directions of the last refresh.", code=whole13.SHARED_BASIS),
}
# fmt: on
