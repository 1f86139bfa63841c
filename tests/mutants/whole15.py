"""Whole answers to lab 15 that are not the solution with a piece replaced."""

from __future__ import annotations

BY_SPLIT = """\
wide = torch.promote_types(tensor.dtype, torch.float32)
place = 0
for piece in tensor.view(-1).split(100):
    sums = piece.to(wide)
    for seed, by in terms:
        sums = sums + by * normal(seed, name, place, piece.numel()).to(wide)
    piece[:] = sums
    place += piece.numel()"""

WHOLE_NOISE = """\
flat, wide = tensor.view(-1), torch.promote_types(tensor.dtype, torch.float32)
total = flat.to(wide, copy=True)
for seed, by in terms:
    z = torch.cat([normal(seed, name, s, min(256, len(flat) - s)) for s in range(0, len(flat), 256)])
    total.add_(z.to(wide), alpha=by)
flat.copy_(total)"""

ROUND_EACH = """\
flat, wide = tensor.view(-1), torch.promote_types(tensor.dtype, torch.float32)
for start in range(0, flat.numel(), 256):
    here = flat[start : start + 256]
    for seed, by in terms:
        here.copy_(here.to(wide).add(normal(seed, name, start, len(here)).to(wide), alpha=by))"""

IN_DTYPE = """\
flat = tensor.view(-1)
for start in range(0, flat.numel(), 256):
    here = flat[start : start + 256]
    for seed, by in terms:
        here.add_(normal(seed, name, start, len(here)).to(here.dtype), alpha=by)"""

BY_TERMS = """\
flat, wide = tensor.view(-1), torch.promote_types(tensor.dtype, torch.float32)
for seed, by in terms:
    total = flat.to(wide, copy=True)
    for start in range(0, flat.numel(), 256):
        here = total[start : start + 256]
        here.add_(normal(seed, name, start, len(here)).to(wide), alpha=by)
    flat.copy_(total)"""

FOUR_MOVES = """\
groups = {}
for name, p in model.named_parameters(remove_duplicate=False):
    if p.requires_grad:
        groups.setdefault(id(p), (p, set()))[1].add(name)

def go(by):
    for p, names in groups.values():
        nudge(p.data, sorted(names)[0], [(seed, by)])

with torch.no_grad():
    go(eps)
    try:
        plus = loss()
    except Exception:
        go(-eps)
        raise
    go(-2 * eps)
    try:
        minus = loss()
    finally:
        go(eps)
g = struct.unpack("f", struct.pack("f", (float(plus) - float(minus)) / eps / 2))[0]
if math.isnan(g) or math.isinf(g):
    return 0.0
go(-rate * g)
return g"""

COPIES = """\
named = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
names = {p: min(name for name, q in named if q is p) for _, p in named}
old = {p: p.detach().clone() for p in names}

def move(by):
    for p, name in names.items():
        p.data.copy_(old[p])
        nudge(p.detach(), name, [(seed, by)])

with torch.no_grad():
    try:
        move(eps)
        plus = float(loss())
        move(-eps)
        g = torch.tensor((plus - float(loss())) / (2 * eps), dtype=torch.float32).item()
    except BaseException:
        move(0.0)
        raise
g = g if math.isfinite(g) else 0.0
move(-rate * g)
return g"""

DEDUPLICATED = """\
names = {p: name for name, p in model.named_parameters() if p.requires_grad}
away = eps"""

NAMED = """\
named = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
names, away = {p: min(name for name, q in named if q is p) for _, p in named}, eps"""

READ_BY_ITER = """\
rows, whole = [], len(data) // 32 * 32
layout = struct.Struct("<IQffffI")
for place, found in enumerate(layout.iter_unpack(data[:whole])):
    good = zlib.crc32(data[32 * place : 32 * place + 28]) == found[-1]
    if not good or found[0] * n > place or (found[0] + 1) * n <= place:
        break
    rows.append(found[:4])
del rows[len(rows) - len(rows) % n :]
return rows"""

READ_AND_SKIP = """\
rows = []
for begin in range(0, len(data) - 31, 32):
    piece = data[begin : begin + 32]
    step, seed, g, rate, _, _, check = struct.unpack("<IQfffII", piece)
    if zlib.crc32(piece[:28]) == check:
        rows.append((step, seed, g, rate))
return rows[: len(rows) // n * n]"""

REPLAY_BY_GROUPS = """\
from itertools import groupby
for step, rows_of_step in groupby(rows, key=lambda row: row[0]):
    finite = [row for row in rows_of_step if not (math.isnan(row[2]) or math.isinf(row[2]))]
    if step < done or not finite:
        continue
    for name in sorted(weights):
        nudge(weights[name], name, [(seed, -rate * g / len(finite)) for _, seed, g, rate in finite])"""

ROW_BY_ROW = """\
steps = {}
for step, seed, g, rate in rows:
    if step >= done and math.isfinite(g):
        steps.setdefault(step, []).append((seed, g, rate))
for good in steps.values():
    for seed, g, rate in good:
        for name, tensor in weights.items():
            nudge(tensor, name, [(seed, -rate * g / len(good))])"""

ALL_AT_ONCE = """\
steps = {}
for step, seed, g, rate in rows:
    if step >= done and math.isfinite(g):
        steps.setdefault(step, []).append((seed, g, rate))
terms = [(seed, -rate * g / len(good)) for good in steps.values() for seed, g, rate in good]
for name, tensor in weights.items():
    nudge(tensor, name, terms)"""

BACKWARDS = """\
steps = {}
for step, seed, g, rate in reversed(rows):
    if step >= done and math.isfinite(g):
        steps.setdefault(step, []).append((seed, g, rate))
for good in steps.values():
    terms = [(seed, -rate * g / len(good)) for seed, g, rate in good]
    for name, tensor in weights.items():
        nudge(tensor, name, terms)"""
