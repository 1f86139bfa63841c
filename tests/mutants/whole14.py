"""Whole answers to lab 14 that are not the solution with a piece replaced."""

from __future__ import annotations

NORMAL_RIGHT = """\
wide = torch.promote_types(x.dtype, torch.float32)
z = torch.empty(x.shape, dtype=wide).normal_(generator=generator)
values = [float(f(torch.add(x, z, alpha=sign * tau).to(x.dtype))) for sign in (1.0, -1.0)]
return z.mul(values[0] - values[1]).div(2 * tau)"""

BEHIND_FIRST = """\
z = torch.randn(x.shape, generator=generator, dtype=torch.promote_types(x.dtype, torch.float32))
behind = float(f((x + (-tau) * z).to(x.dtype)))
ahead = float(f((x + tau * z).to(x.dtype)))
return z * ((ahead - behind) / tau / 2)"""

IN_PLACE = """\
z = torch.randn(x.shape, generator=generator, dtype=torch.promote_types(x.dtype, torch.float32))
x += tau * z
ahead = float(f(x))
x -= 2 * tau * z
behind = float(f(x))
x += tau * z
return (ahead - behind) / (2 * tau) * z"""

LIST_OF_POINTS = """\
if n < 1:
    raise ValueError("n")
u = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(n)]
u = [v / v.norm() for v in u]
here = float(f(x))
return sum(x.numel() * (float(f(x + tau * v)) - here) / tau * v for v in u) / n"""

STACKED_WEIGHTS = """\
if n <= 0:
    raise ValueError("no directions")
g, at_x = torch.zeros_like(x), float(f(x))
for _ in range(n):
    u = torch.randn(len(x), generator=generator, dtype=torch.float64)
    u.div_(u.norm())
    change = float(f(torch.add(x, u, alpha=tau))) - at_x
    g += u.mul_(len(x) * change / tau)
return g.div_(n)"""

ADVERSE_SUM = """\
if n < 1:
    raise ValueError("n")
here, total, mean = float(f(x)), torch.zeros_like(x), 0.0
for _ in range(n):
    u = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    u /= u.norm()
    mean += (float(f(x + tau * u)) - here) / tau / n
    total += u / n
return x.numel() * mean * total"""

NEXT_UP = """\
if not third:
    raise ValueError("third")
info = torch.finfo(x.dtype)
least = math.pow(1.5 * info.eps * math.fabs(value / third), 1 / 3)
power = -60
while power <= 0:
    share = (torch.add(x, z, alpha=math.ldexp(1.0, power)).to(x.dtype) == x).double().mean().item()
    if share <= 0.01:
        return max(least, math.ldexp(1.0, power))
    power += 1
raise ValueError("stuck")"""

HALF_SPACING = """\
u = torch.finfo(x.dtype).eps / 2
best = (3 * u * abs(value) / abs(third)) ** (1 / 3)
floor = 2 * u * float(x.abs().max()) / float(z.abs().mean())
return max(best, 2.0 ** math.ceil(math.log2(floor)))"""

DRIFTING = """\
with torch.no_grad():
    try:
        for p, z in zip(parameters, directions, strict=True):
            p.add_(tau * z)
        ahead = float(loss())
        for p, z in zip(parameters, directions, strict=True):
            p.sub_(2 * tau * z)
        behind = float(loss())
    finally:
        pass
    slope = (ahead - behind) / (2 * tau)
    for p, z in zip(parameters, directions, strict=True):
        p.add_(tau * z)
        p.sub_((rate * slope) * z)
return slope"""

DRIFTING_RESTORED = """\
old = [p.detach().clone() for p in parameters]
with torch.no_grad():
    def move(by):
        for p, z in zip(parameters, directions, strict=True):
            p.add_(by * z)
    try:
        move(tau)
        ahead = float(loss())
        move(-2 * tau)
        behind = float(loss())
    except BaseException:
        for p, x in zip(parameters, old, strict=True):
            p.copy_(x)
        raise
    slope = (ahead - behind) / (2 * tau)
    move(tau)
    move(-rate * slope)
return slope"""

_COPIED = """\
old = [p.detach().clone() for p in parameters]
with torch.no_grad():
    try:
        for p, x, z in zip(parameters, old, directions, strict=True):
            p.copy_(x).add_(z, alpha=tau)
        ahead = float(loss())
        for p, x, z in zip(parameters, old, directions, strict=True):
            p.copy_(x).sub_(z, alpha=tau)
        behind = float(loss())
    except BaseException:
        for p, x in zip(parameters, old, strict=True):
            p.copy_(x)
        raise
    s = (ahead - behind) / (2 * tau)
    for p, x, z in zip(parameters, old, directions, strict=True):
        UPDATE
return s"""
BY_ALPHA = _COPIED.replace("UPDATE", "p.copy_(x).sub_(z, alpha=rate * s)")
PRODUCT_FIRST = _COPIED.replace("UPDATE", "p.copy_(x - rate * (s * z))")

_TENSORS = """\
with torch.no_grad():
    old = [p.clone() for p in parameters]
    try:
        for p, x, z in zip(parameters, old, directions, strict=True):
            p.copy_(x + tau * z)
        plus = loss()
        for p, x, z in zip(parameters, old, directions, strict=True):
            p.copy_(x - tau * z)
        minus = loss()
    except BaseException:
        for p, x in zip(parameters, old, strict=True):
            p.copy_(x)
        raise
    s = (plus - minus) / (2 * tau)
    for p, x, z in zip(parameters, old, directions, strict=True):
        p.copy_(x - rate * s * z)
return float(s)"""
FLOAT32_SLOPE = _TENSORS.replace("s = (plus - minus) / (2 * tau)", "s = ((plus - minus) / (2 * tau)).item()")
TENSOR_SLOPE = _TENSORS

SECOND_ONLY = """\
old = [p.detach().clone() for p in parameters]
with torch.no_grad():
    for p, x, z in zip(parameters, old, directions, strict=True):
        p.copy_(x + tau * z)
    ahead = float(loss())
    try:
        for p, x, z in zip(parameters, old, directions, strict=True):
            p.copy_(x - tau * z)
        behind = float(loss())
    finally:
        for p, x in zip(parameters, old, strict=True):
            p.copy_(x)
    slope = (ahead - behind) / (2 * tau)
    for p, z in zip(parameters, directions, strict=True):
        p.sub_((rate * slope) * z)
return slope"""

FINALLY = """\
kept = [p.detach().clone() for p in parameters]
values = []
with torch.no_grad():
    try:
        for sign in (1, -1):
            for p, x, z in zip(parameters, kept, directions):
                p.copy_(x).add_(z * (sign * tau))
            values.append(loss().item())
    finally:
        for p, x in zip(parameters, kept):
            p.copy_(x)
    s = (values[0] - values[1]) / (2 * tau)
    for p, z in zip(parameters, directions):
        p.sub_(z * (rate * s))
return s"""

BY_PAIRS = """\
bent = sum(
    (torch.trace(H) * v.dot(v) + 2 * v @ H @ v if i == j else v @ H @ v) for i in range(n) for j in range(n)
) / n**2
eta = (v.dot(v) / bent).item()
return eta, (eta * v.dot(v) - eta**2 / 2 * bent).item()"""
