"""Wrong answers to lab 16 that look right: each loses exactly the graded cells named here."""

from __future__ import annotations

from .answers import Answers

LAB = "16-zo-offload"
_wrong = Answers(LAB).wrong

SWEEP, FLUSH, WAITS, TRAFFIC, BEST = "ex1-sweep", "ex2-flush", "ex3-waits", "ex4-traffic", "ex5-best-k"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

_SUMMED = """\
for i in range(len(versions)):
    block = host.upload(i)
    due_now = updates[versions[i] :]
    for name, tensor in block.items():
        total = torch.zeros_like(tensor, dtype=torch.float64)
        for seed, by in due_now:
            nudge(total, name, seed, by)
        tensor.copy_(tensor.double() + total)
    compute(i, block)
    if due(i) and due_now:
        host.download(i, block)
        versions[i] = len(updates)"""
_TWICE = """\
for i in range(len(versions)):
    block = host.upload(i)
    for seed, by in updates[versions[i] :]:
        for name, tensor in block.items():
            nudge(tensor, name, seed, by)
    compute(i, block)
for i in range(len(versions)):
    if due(i) and versions[i] < len(updates):
        block = host.upload(i)
        for seed, by in updates[versions[i] :]:
            for name, tensor in block.items():
                nudge(tensor, name, seed, by)
        host.download(i, block)
        versions[i] = len(updates)"""

# fmt: off
MUTANTS = {
    "sweep-last-update-only": _wrong(
        SWEEP, BOTH, "As if each block had been written back a step ago.", "updates[versions[i] :]", "updates[-1:]"),
    "sweep-from-the-start": _wrong(
        SWEEP, BOTH, "Updates that the host's copy has made already are made again.", "updates[versions[i] :]",
        "updates"),
    "sweep-latest-first": _wrong(
        SWEEP, BOTH, "Another order rounds otherwise.", "updates[versions[i] :]", "updates[versions[i] :][::-1]"),
    "sweep-one-rounding": _wrong(
        SWEEP, BOTH, "The sum of all updates is rounded once.", code=_SUMMED),
    "sweep-one-name": _wrong(
        SWEEP, BOTH, "All tensors of a block get one tensor's noise.", "nudge(tensor, name,",
        "nudge(tensor, 'block',"),
    "sweep-update-after-compute": _wrong(
        SWEEP, BOTH, "The block computes where it was before the updates that are due.",
        "    for seed, by in updates", "    compute(i, block)\n    for seed, by in updates",
        "    compute(i, block)\n    if due", "    if due"),
    "sweep-always-written": _wrong(
        SWEEP, BOTH, "Every block is written back each time.", "if due(i) and", "if"),
    "sweep-written-in-vain": _wrong(
        SWEEP, BOTH, "What has not changed is written back.", " and versions[i] < len(updates)", ""),
    "sweep-version-without-writing": _wrong(
        SWEEP, BOTH, "The version is of the copy on the GPU, which is thrown away.",
        "        versions[i] = len(updates)", "    versions[i] = len(updates)"),
    "sweep-version-forgotten": _wrong(
        SWEEP, BOTH, "Written back, and the version stays: the next visit makes all updates again.",
        "        versions[i] = len(updates)", "        pass"),
    "sweep-version-by-one": _wrong(
        SWEEP, BOTH, "A block that has made several updates says that it has made one more.",
        "versions[i] = len(updates)", "versions[i] += 1"),
    "sweep-written-before-compute": _wrong(
        SWEEP, BOTH, "The block goes back before it computes.", "    compute(i, block)\n", "",
        "        versions[i] = len(updates)", "        versions[i] = len(updates)\n    compute(i, block)"),
    "sweep-two-uploads": _wrong(
        SWEEP, BOTH, "Blocks come once more to be written back.", code=_TWICE),
    "sweep-updates-consumed": _wrong(
        SWEEP, BOTH, "The list is emptied, though other blocks lack its updates.",
        "        versions[i] = len(updates)", "        versions[i] = len(updates)\nupdates.clear()"),
    "flush-everything": _wrong(
        FLUSH, BOTH, "Blocks that are up to date travel too.", "continue", "pass"),
    "flush-nothing-made": _wrong(
        FLUSH, BOTH, "Blocks go up and come back as they were.", "updates[version:]", "updates[len(updates) :]"),
    "flush-not-written": _wrong(
        FLUSH, BOTH, "Up to date on the GPU, and never written back.", "host.download(i, block)", "pass"),
    "flush-version-first": _wrong(
        FLUSH, BOTH, "A block whose download fails says that it is up to date.",
        "block = host.upload(i)", "versions[i] = len(updates)\n    block = host.upload(i)"),
    "flush-versions-at-the-end": _wrong(
        FLUSH, HIDDEN, "An error leaves the versions of blocks that were written: their updates are made twice.",
        "    versions[i] = len(updates)\n", "",
        "return count", "versions[:] = [len(updates)] * len(versions)\nreturn count"),
    "flush-version-by-update": _wrong(
        FLUSH, BOTH, "Versions count updates on the GPU: the block whose download fails says that it is up to date.",
        "in updates[version:]:\n", "in updates[version:]:\n        versions[i] += 1\n"),
    "flush-error-swallowed": _wrong(
        FLUSH, BOTH, "A full disk is nobody's concern.",
        "    host.download(i, block)\n",
        "    try:\n        host.download(i, block)\n    except OSError:\n        continue\n"),
    "flush-counts-all": _wrong(
        FLUSH, BOTH, "Blocks that did not travel are counted.", "return count", "return len(versions)"),
    "waits-only-uploads": _wrong(
        WAITS, BOTH, "Compute waits for uploads, and uploads for nothing.", "if old >= 0:", "if False:",
        "former >= 0 and due(former)", "False"),
    "waits-slot-in-use": _wrong(
        WAITS, BOTH, "An upload overwrites the block that computes, where that is not written back.",
        "if old >= 0:", "if old >= 0 and due(old):"),
    "waits-slot-on-its-way-down": _wrong(
        WAITS, BOTH, "An upload overwrites a block that is on its way down.", "(old, v - n)", "(v - n,)"),
    "waits-stale-host": _wrong(
        WAITS, BOTH, "An upload reads a host's copy that is being written.", "(old, v - n)", "(old,)"),
    "waits-no-upload": _wrong(
        WAITS, BOTH, "Blocks compute before they are there.", '[("U", v)]', "[]"),
    "waits-download-at-once": _wrong(
        WAITS, BOTH, "Blocks go back while they compute.", '[("C", v)]', '[("U", v)]'),
    "waits-one-slot": _wrong(
        WAITS, BOTH, "As if there were one slot: right, and slow.", "v - slots", "v - 1"),
    "waits-a-slot-too-many": _wrong(
        WAITS, BOTH, "As if there were one slot more.", "v - slots", "v - slots - 1"),
    "waits-all-downloads": _wrong(
        WAITS, BOTH, "An upload waits for the latest download, whosever it is.",
        "for former in (old, v - n):", "for former in (v - 1, old, v - n):"),
    "waits-compute-for-downloads": _wrong(
        WAITS, BOTH, "Compute waits until the block before has gone back.",
        '[("U", v)]', '[("U", v)] + [("O", v - 1)] * (v > 0 and due(v - 1))'),
    "waits-for-what-never-happens": _wrong(
        WAITS, BOTH, "Waits for downloads that are not due.", "former >= 0 and due(former)", "former >= 0"),
    "waits-own-stream": _wrong(
        WAITS, BOTH, "Streams wait for themselves.", '[("U", v)]', '[("U", v)] + [("C", v - 1)] * (v > 0)'),
    "traffic-dual-uploads": _wrong(
        TRAFFIC, BOTH, "As if each pass had uploads of its own.", "(sum(sizes), down)", "(2 * sum(sizes), down)"),
    "traffic-first-step-writes": _wrong(
        TRAFFIC, BOTH, "Blocks go back before there was an update.", " if k and t else 0", " if k else 0",
    ) | {"at_least": True},
    "traffic-no-zero": _wrong(
        TRAFFIC, HIDDEN, "k = 0 divides by zero.", "if k and t else", "if t else"),
    "traffic-all-at-once": _wrong(
        TRAFFIC, BOTH, "All blocks go back in the same step, and none in the others.", "(t + i) % k", "t % k"),
    "traffic-mean": _wrong(
        TRAFFIC, BOTH, "The mean over the steps in each of them.",
        "sum(size for i, size in enumerate(sizes) if (t + i) % k == 0)", "sum(sizes) / k"),
    "traffic-phase-backwards": _wrong(
        TRAFFIC, BOTH, "Blocks take turns the other way round.", "(t + i) % k", "(t - i) % k"),
    "best-one-rate": _wrong(
        BEST, BOTH, "Both directions at once are taken to be as fast as one.", "down / both", "down / up"),
    "best-all-at-the-slow-rate": _wrong(
        BEST, BOTH, "All uploads are at the rate of both ways at once.", "(nbytes - down) / up",
        "(nbytes - down) / both"),
    "best-added-up": _wrong(
        BEST, BOTH, "Bus and arithmetic one after the other.", "max(bus, 2", "sum((bus, 2", "* noise_ms)",
        "* noise_ms))"),
    "best-one-pass": _wrong(
        BEST, BOTH, "One pass in the place of two.", "2 * tokens * token_us", "tokens * token_us"),
    "best-replay-forgotten": _wrong(
        BEST, BOTH, "Updates that are made again cost nothing.", "(2 + (k + 1) / 2)", "3"),
    "best-replay-at-worst": _wrong(
        BEST, BOTH, "Every upload makes k updates.", "(k + 1) / 2", "k"),
    "best-largest-of-equal": _wrong(
        BEST, BOTH, "Of equally short steps that of the largest k.", "best = min(k", "best = max(k"),
    "best-floats-compared": _wrong(
        BEST, VISIBLE, "Rounding decides between equally short steps.", "step_ms(k) - shortest < 1e-6",
        "step_ms(k) == shortest"),
    "best-rounded": _wrong(
        BEST, HIDDEN, "Times that differ in the fourth place are taken to be equal.",
        "step_ms(k) - shortest < 1e-6", "round(step_ms(k), 3) == round(shortest, 3)"),
    "best-tolerance-in-seconds": _wrong(
        BEST, HIDDEN, "In seconds, and compared as if in milliseconds.",
        "step_ms(k) - shortest < 1e-6", "step_ms(k) / 1e3 - shortest / 1e3 < 1e-6"),
}
# fmt: on
