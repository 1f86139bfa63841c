"""Wrong answers to lab 15 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole15
from .answers import Answers

LAB = "15-mezo"
_answers = Answers(LAB)
_wrong = _answers.wrong

NUDGE, STEP, READ, REPLAY = "ex1-nudge", "ex2-step", "ex3-read", "ex4-replay"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

RIGHT = {
    "nudge-by-split": (NUDGE, whole15.BY_SPLIT),
    "step-in-four-moves": (STEP, whole15.FOUR_MOVES),
    "read-by-iter-unpack": (READ, whole15.READ_BY_ITER),
    "replay-by-groups": (REPLAY, whole15.REPLAY_BY_GROUPS),
}

_Z = "normal(seed, name, start, len(here))"
_G = "(plus - float(loss())) / (2 * eps)"
_ROUNDED = f"torch.tensor({_G}, dtype=torch.float32).item()"

# fmt: off
MUTANTS = {
    "nudge-z-stored": _wrong(
        NUDGE, BOTH, "All of z is put together and kept.", code=whole15.WHOLE_NOISE),
    "nudge-z-at-once": _wrong(
        NUDGE, BOTH, "One chunk, however long the tensor is.", "range(0, flat.numel(), 256)", "(0,)",
        "flat[start : start + 256]", "flat"),
    "nudge-start-forgotten": _wrong(
        NUDGE, BOTH, "Each chunk gets the first chunk's noise.", "name, start,", "name, 0,"),
    "nudge-rest-forgotten": _wrong(
        NUDGE, BOTH, "The last, shorter chunk stays.",
        "range(0, flat.numel(), 256)", "range(0, flat.numel() - 255, 256)"),
    "nudge-name-forgotten": _wrong(
        NUDGE, BOTH, "Every tensor has the same noise.", "normal(seed, name,", "normal(seed, '',"),
    "nudge-seed-of-the-chunk": _wrong(
        NUDGE, BOTH, "A generator that runs on: each chunk has a seed of its own.", "normal(seed,",
        "normal(seed + start // 256,"),
    "nudge-first-term-only": _wrong(
        NUDGE, HIDDEN, "One direction only.", "for seed, by in terms:", "for seed, by in terms[:1]:"),
    "nudge-backwards": _wrong(
        NUDGE, BOTH, "The sign is wrong.", "alpha=by", "alpha=-by"),
    "nudge-not-scaled": _wrong(
        NUDGE, BOTH, "z is added whole.", ", alpha=by", ""),
    "nudge-rounded-each-time": _wrong(
        NUDGE, HIDDEN, "Each term is rounded.", code=whole15.ROUND_EACH),
    "nudge-in-the-tensors-format": _wrong(
        NUDGE, BOTH, "Sums are formed in 16 bits.", code=whole15.IN_DTYPE),
    "nudge-always-float32": _wrong(
        NUDGE, HIDDEN, "A float64 tensor loses half its digits.",
        "torch.promote_types(tensor.dtype, torch.float32)", "torch.float32"),
    "nudge-copies-the-tensor": _wrong(
        NUDGE, BOTH, "A copy of the whole tensor in fp32, and a rounding for each term.", code=whole15.BY_TERMS),
    "nudge-written-elsewhere": _wrong(
        NUDGE, BOTH, "A copy is moved, and the tensor stays.", "tensor.view(-1)", "tensor.flatten().clone()"),
    "nudge-vectors-only": _wrong(
        NUDGE, BOTH, "Wrong for anything but vectors: the first dimension only.",
        "flat.numel(), 256)", "len(tensor) if tensor.dim() else 1, 256)"),
    "nudge-drawn-twice": _wrong(
        NUDGE, BOTH, "The noise is drawn once more for nothing.", "for seed, by in terms:",
        "for seed, by in terms:\n        " + _Z),
    "nudge-all-terms-drawn-first": _wrong(
        NUDGE, HIDDEN, "The noise of all terms is drawn before any is added: memory grows with their number.",
        "for seed, by in terms:", "noise = [normal(seed, name, start, len(here)) for seed, _ in terms]\n"
        "    for z, (_, by) in zip(noise, terms, strict=True):",
        _Z + ".to(wide)", "z.to(wide)"),
    "step-two-eps-forgotten": _wrong(
        STEP, BOTH, "The second query is at w.", "move(-2 * eps)", "move(-eps)"),
    "step-not-restored": _wrong(
        STEP, BOTH, "The update starts from w − εz.", "move(eps - rate * g)", "move(-rate * g)"),
    "step-uphill": _wrong(
        STEP, BOTH, "The step goes uphill.", "move(eps - rate * g)", "move(eps + rate * g)"),
    "step-no-two": _wrong(
        STEP, BOTH, "Divided by ε and not by 2ε.", "/ (2 * eps)", "/ eps"),
    "step-posters-formula": _wrong(
        STEP, BOTH, "The poster's estimate, without ε.", "/ (2 * eps)", "/ 2"),
    "step-fresh-seed-to-restore": _wrong(
        STEP, BOTH, "The way back has another z.", "move(eps - rate * g)", "seed += 1\nmove(eps - rate * g)"),
    "step-update-along-another-z": _wrong(
        STEP, BOTH, "Restored, and then updated along another z.", "move(eps - rate * g)",
        "move(eps)\nseed = seed + 1\nmove(-rate * g)"),
    "step-by-the-loss": _wrong(
        STEP, BOTH, "The update has the loss in the place of g.", "move(eps - rate * g)", "move(eps - rate * plus)"),
    "step-no-update": _wrong(
        STEP, BOTH, "Nothing is learned.", "move(eps - rate * g)", "move(eps)"),
    "step-tied-twice": _wrong(
        STEP, BOTH, "A tied weight moves under each of its names.", "for p, name in names.items():",
        "for name, p in named:"),
    "step-first-registered-name": _wrong(
        STEP, BOTH, "The first name in the order of registration.", whole15.NAMED, whole15.DEDUPLICATED),
    "step-last-name": _wrong(
        STEP, BOTH, "The last name in alphabetical order.", "min(name", "max(name"),
    "step-numbered": _wrong(
        STEP, BOTH, "Tensors are named by their place in the order.",
        "for p, name in names.items():\n        nudge(p.detach(), name,",
        "for place, p in enumerate(names):\n        nudge(p.detach(), str(place),"),
    "step-frozen-moves": _wrong(
        STEP, BOTH, "Frozen parameters are perturbed too.", " if p.requires_grad]", "]"),
    "step-copies": _wrong(
        STEP, BOTH, "A copy of all weights is kept.", code=whole15.COPIES),
    "step-with-autograd": _wrong(
        STEP, BOTH, "Autograd is on while the loss is computed.", "with torch.no_grad():", "if True:"),
    "step-stays-after-an-error": _wrong(
        STEP, BOTH, "An error leaves the weights perturbed.", "move(-away)\n", "pass\n"),
    "step-home-from-the-wrong-side": _wrong(
        STEP, BOTH, "After the second query the way home goes further away.", "away = -eps", "pass"),
    "step-error-swallowed": _wrong(
        STEP, BOTH, "The error is swallowed.", "        raise\n", "        return 0.0\n"),
    "step-not-finite": _wrong(
        STEP, HIDDEN, "One NaN, and every weight is NaN.", "g if math.isfinite(g) else 0.0", "g"),
    "step-nan-only": _wrong(
        STEP, HIDDEN, "An infinite g moves the weights.",
        "g if math.isfinite(g) else 0.0", "0.0 if math.isnan(g) else g"),
    "step-finite-before-rounding": _wrong(
        STEP, HIDDEN, "g is looked at before it is rounded, and becomes infinite afterwards.", _ROUNDED, _G,
        "g if math.isfinite(g) else 0.0",
        "torch.tensor(g if math.isfinite(g) else 0.0, dtype=torch.float32).item()"),
    "step-packed": _wrong(
        STEP, HIDDEN, "struct raises where a little-endian float32 ends.", _ROUNDED,
        f'struct.unpack("<f", struct.pack("<f", {_G}))[0]'),
    "step-autograd-left-off": _wrong(
        STEP, BOTH, "Autograd is switched off for good.", "with torch.no_grad():",
        "torch.set_grad_enabled(False)\nif True:"),
    "step-autograd-left-off-after-an-error": _wrong(
        STEP, BOTH, "An error leaves autograd off.", "with torch.no_grad():", "torch.set_grad_enabled(False)\nif True:",
        "return g", "torch.set_grad_enabled(True)\nreturn g"),
    "step-g-not-rounded": _wrong(
        STEP, BOTH, "g has more digits than a row keeps.", _ROUNDED, _G),
    "step-g-rounded-when-returned": _wrong(
        STEP, BOTH, "The update has a g of more digits than the one that is stored.",
        _ROUNDED, _G, "return g", "return torch.tensor(g, dtype=torch.float32).item()"),
    "step-returns-a-tensor": _wrong(
        STEP, BOTH, "A tensor is returned.", "return g", "return torch.tensor(g)"),
    "read-no-checksum": _wrong(
        READ, BOTH, "Damaged rows are taken.", "zlib.crc32(piece[:28]) != check or ", ""),
    "read-damaged-skipped": _wrong(
        READ, BOTH, "Rows after a damaged one are taken.", code=whole15.READ_AND_SKIP),
    "read-checksum-of-all": _wrong(
        READ, BOTH, "The checksum is of the whole row, itself included.", "piece[:28]", "piece"),
    "read-steps-not-counted": _wrong(
        READ, HIDDEN, "A missing step goes unseen.", " or step != len(rows) // n", ""),
    "read-one-row-a-step": _wrong(
        READ, BOTH, "As if each step had one row.", "step != len(rows) // n", "step != len(rows)"),
    "read-half-a-step": _wrong(
        READ, BOTH, "A step without all its rows is taken.", "rows[: len(rows) // n * n]", "rows"),
    "read-incomplete-row": _wrong(
        READ, BOTH, "The incomplete row is unpacked, which raises.", "len(data) - 31", "len(data)"),
    "read-last-row-forgotten": _wrong(
        READ, BOTH, "A file's last row is left out.", "len(data) - 31", "len(data) - 32"),
    "read-big-endian": _wrong(
        READ, BOTH, "Big-endian numbers.", '"<IQfffII"', '">IQfffII"'),
    "read-aligned": _wrong(
        READ, BOTH, "The machine's own alignment, which leaves a gap before the seed.", '"<IQfffII"', '"IQfffI"',
        "rate, _, _, check", "rate, _, check"),
    "read-free-bytes-checked": _wrong(
        READ, HIDDEN, "A row with something in the free bytes is refused.",
        "rate, _, _, check", "rate, _, free, check", "step != len(rows) // n", "step != len(rows) // n or free"),
    "read-signed-seed": _wrong(
        READ, BOTH, "Half of all seeds are negative.", '"<IQfffII"', '"<IqfffII"'),
    "read-the-loss": _wrong(
        READ, BOTH, "The loss in the place of g.", "g, rate, _, _, check", "_, rate, g, _, check"),
    "read-infinite-dropped": _wrong(
        READ, HIDDEN, "Rows whose g is not finite are left out.", "return rows[: len(rows) // n * n]",
        "return [row for row in rows[: len(rows) // n * n] if math.isfinite(row[2])]"),
    "replay-sum": _wrong(
        REPLAY, BOTH, "The sum in the place of the mean.", " / len(good)", ""),
    "replay-mean-over-all": _wrong(
        REPLAY, BOTH, "Rows that are not finite count in the mean.", "len(good)",
        "sum(row[0] == rows[0][0] for row in rows)"),
    "replay-nan": _wrong(
        REPLAY, BOTH, "A NaN goes into the weights.", " and math.isfinite(g)", ""),
    "replay-infinities": _wrong(
        REPLAY, BOTH, "Infinite slopes are taken.", "math.isfinite(g)", "g == g"),
    "replay-row-by-row": _wrong(
        REPLAY, BOTH, "Every direction is rounded.", code=whole15.ROW_BY_ROW),
    "replay-all-at-once": _wrong(
        REPLAY, BOTH, "All steps are rounded once.", code=whole15.ALL_AT_ONCE),
    "replay-backwards": _wrong(
        REPLAY, BOTH, "The last step first: other roundings.", code=whole15.BACKWARDS),
    "replay-from-the-start": _wrong(
        REPLAY, BOTH, "Steps that are done are made again.", "step >= done and ", ""),
    "replay-rows-for-steps": _wrong(
        REPLAY, BOTH, "As many rows are left out as steps are done.", "step >= done and ", "",
        "in rows:", "in rows[done:]:"),
    "replay-done-is-a-step-too-many": _wrong(
        REPLAY, BOTH, "The first step that is due is left out.", "step >= done", "step > done"),
    "replay-uphill": _wrong(
        REPLAY, BOTH, "The sign is wrong.", "-rate * g", "rate * g"),
    "replay-without-the-rate": _wrong(
        REPLAY, BOTH, "Every step has a rate of 1.", "-rate * g", "-g"),
    "replay-first-rate": _wrong(
        REPLAY, BOTH, "The first row's rate for all.", "-rate * g", "-rows[0][3] * g"),
    "replay-one-tensor": _wrong(
        REPLAY, BOTH, "Only the first tensor moves.", "in weights.items()", "in list(weights.items())[:1]"),
    "replay-one-name": _wrong(
        REPLAY, BOTH, "All tensors get one tensor's noise.", "nudge(tensor, name,", "nudge(tensor, 'a',"),
}
# fmt: on
