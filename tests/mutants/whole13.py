"""Whole answers to lab 13, right and wrong, that are no small change of its solution."""

from __future__ import annotations

_HEAD = """
if not 1 <= awake <= layers:
    raise ValueError("cannot be")

class Sampler:
    def __init__(self):
"""
_TAIL = """
return Sampler()
"""

# Right ones.
WITH_PYTHON = (
    _HEAD
    + """        self.random = random.Random(seed)

    def draw(self):
        return sorted(self.random.sample(range(layers), awake))

    def state(self):
        return self.random.getstate()

    def load(self, state):
        self.random.setstate(state)
"""
    + _TAIL
)

BY_COUNT = (
    _HEAD
    + """        self.seed, self.done = seed, 0

    def draw(self):
        self.done += 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.done)
        return torch.randperm(layers, generator=generator)[:awake].sort().values.tolist()

    def state(self):
        return self.seed, self.done

    def load(self, state):
        self.seed, self.done = state
"""
    + _TAIL
)

MULTINOMIAL = (
    _HEAD
    + """        self.generator = torch.Generator()
        self.generator.manual_seed(seed)

    def draw(self):
        even = torch.ones(layers)
        return sorted(torch.multinomial(even, awake, generator=self.generator).tolist())

    def state(self):
        return {"generator": self.generator.get_state().clone()}

    def load(self, state):
        self.generator.set_state(state["generator"].clone())
"""
    + _TAIL
)

IN_TWO_PASSES = """
missing = set(names) - set(blocks)
if missing:
    raise KeyError(sorted(missing)[0])
for name, params in blocks.items():
    for parameter in params:
        if name in names:
            parameter.requires_grad = True
        else:
            parameter.requires_grad, parameter.grad = False, None
            if parameter in optimizer.state:
                del optimizer.state[parameter]
group = optimizer.param_groups[0]
group["params"].clear()
for name in blocks:
    if name in names:
        group["params"].extend(blocks[name])
"""

TOLD_APART = """
bytes_after, ever = [], [False] * len(layers)
for names in schedule:
    now = [number in names for number in range(len(layers))]
    ever = [(old and kept) or new for old, new in zip(ever, now)]
    total = 12 * outside
    for size, awake, moments in zip(layers, now, ever):
        total += 4 * size * awake + 8 * size * moments
    bytes_after.append(total)
return bytes_after
"""

ON_ONE_SIDE = """
with torch.no_grad():
    left = gradient.shape[0] < gradient.shape[1]
    if not state:
        state.update(count=0, moments=None)
    if state["count"] % period == 0:
        u, s, vh = torch.linalg.svd(gradient.detach(), full_matrices=False)
        state["p"] = torch.empty_like(u[:, :rank] if left else vh[:rank]).copy_(u[:, :rank] if left else vh[:rank])
    p = state["p"]
    r = p.mT @ gradient if left else gradient @ p.mT
    if state["moments"] is None:
        state["moments"] = [torch.zeros_like(r), torch.zeros_like(r)]
    first, second = state["moments"]
    state["count"] += 1
    t = state["count"]
    first.lerp_(r, 0.1)
    second.mul_(0.999).addcmul_(r, r, value=0.001)
    n = first / second.sqrt().add(1e-8)
    factor = rate * scale * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
    weight.sub_(p @ n if left else n @ p, alpha=factor)
    return weight
"""

# Wrong ones.
KEPT_ON_THE_PARAMETER = """
for name in names:
    blocks[name]
awake = [p for name, params in blocks.items() if name in names for p in params]
stay = set(awake)
for parameter in (p for params in blocks.values() for p in params):
    parameter.requires_grad_(parameter in stay)
    if parameter not in stay:
        parameter.grad = None
        state = optimizer.state.pop(parameter, {})
        parameter.asleep = {name: value.clone() for name, value in state.items()}
    elif getattr(parameter, "asleep", None):
        optimizer.state[parameter] = parameter.asleep
        parameter.asleep = None
optimizer.param_groups[0]["params"] = awake
"""

WINDOW = (
    _HEAD
    + """        self.generator = torch.Generator().manual_seed(seed)

    def draw(self):
        first = int(torch.randint(layers, (), generator=self.generator))
        return sorted((first + k) % layers for k in range(awake))

    def state(self):
        return self.generator.get_state()

    def load(self, state):
        self.generator.set_state(state)
"""
    + _TAIL
)

ROUNDS = (
    _HEAD
    + """        self.generator, self.rest = torch.Generator().manual_seed(seed), []

    def draw(self):
        if len(self.rest) < awake:
            self.rest = torch.randperm(layers, generator=self.generator).tolist()
        drawn, self.rest = self.rest[:awake], self.rest[awake :]
        return sorted(drawn)

    def state(self):
        return self.generator.get_state(), list(self.rest)

    def load(self, state):
        self.generator.set_state(state[0])
        self.rest = list(state[1])
"""
    + _TAIL
)

GLOBAL = (
    _HEAD
    + """        torch.manual_seed(seed)

    def draw(self):
        return sorted(torch.randperm(layers)[:awake].tolist())

    def state(self):
        return torch.get_rng_state()

    def load(self, state):
        torch.set_rng_state(state)
"""
    + _TAIL
)

ALIASED = (
    _HEAD
    + """        self.place = {"seed": seed, "done": 0}

    def draw(self):
        self.place["done"] += 1
        generator = torch.Generator().manual_seed(self.place["seed"] * 1_000_003 + self.place["done"])
        return sorted(torch.randperm(layers, generator=generator)[:awake].tolist())

    def state(self):
        return self.place

    def load(self, state):
        self.place = state
"""
    + _TAIL
)

FROZEN_ONLY = """
for name in names:
    if name not in blocks:
        raise KeyError(name)
for name, params in blocks.items():
    for parameter in params:
        parameter.requires_grad_(name in names)
        if name not in names:
            parameter.grad = None
"""

HIDDEN_CACHE = """
for name in names:
    if name not in blocks:
        raise KeyError(name)
cache = optimizer.__dict__.setdefault("_asleep", {})
awake = [p for name, params in blocks.items() if name in names for p in params]
stay = {id(p) for p in awake}
for parameter in (p for params in blocks.values() for p in params):
    parameter.requires_grad_(id(parameter) in stay)
    if id(parameter) not in stay:
        parameter.grad = None
        if parameter in optimizer.state:
            cache[parameter] = optimizer.state.pop(parameter)
    elif parameter in cache:
        optimizer.state[parameter] = cache.pop(parameter)
optimizer.param_groups[0]["params"] = awake
"""

ANOTHER_GROUP = """
for name in names:
    if name not in blocks:
        raise KeyError(name)
awake = [p for name, params in blocks.items() if name in names for p in params]
stay = {id(p) for p in awake}
for parameter in (p for params in blocks.values() for p in params):
    parameter.requires_grad_(id(parameter) in stay)
    if id(parameter) not in stay:
        parameter.grad = None
        optimizer.state.pop(parameter, None)
optimizer.param_groups.clear()
optimizer.add_param_group({"params": awake})
"""

FULL_MOMENTS = """
done = state.get("step", 0)
tall = gradient.shape[0] >= gradient.shape[1]
if done % period == 0:
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    state["basis"] = (vh[:rank].T if tall else u[:, :rank]).clone()
basis = state["basis"]
whole = gradient @ basis @ basis.T if tall else basis @ (basis.T @ gradient)
m, v = state.get("m", torch.zeros_like(whole)), state.get("v", torch.zeros_like(whole))
state["m"], state["v"], state["step"] = 0.9 * m + 0.1 * whole, 0.999 * v + 0.001 * whole**2, done + 1
length = rate * (1 - 0.999 ** (done + 1)) ** 0.5 / (1 - 0.9 ** (done + 1))
with torch.no_grad():
    weight -= length * scale * state["m"] / (state["v"].sqrt() + 1e-8)
"""

SHARED_BASIS = """
done = state.get("step", 0)
tall = gradient.shape[0] >= gradient.shape[1]
if done % period == 0:
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    my_galore_step.basis = (vh[:rank].T if tall else u[:, :rank]).clone()
basis = my_galore_step.basis
low = gradient @ basis if tall else basis.T @ gradient
m, v = state.get("m", torch.zeros_like(low)), state.get("v", torch.zeros_like(low))
state["m"], state["v"], state["step"] = 0.9 * m + 0.1 * low, 0.999 * v + 0.001 * low**2, done + 1
direction = state["m"] / (state["v"].sqrt() + 1e-8)
length = rate * (1 - 0.999 ** (done + 1)) ** 0.5 / (1 - 0.9 ** (done + 1))
with torch.no_grad():
    weight -= length * scale * (direction @ basis.T if tall else basis @ direction)
"""
