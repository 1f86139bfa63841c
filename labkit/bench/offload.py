"""Table `offload`: a training step with its optimizer, or its activations, in host memory, and what bounds its time.

`offloaded` is our `OffloadedAdamW`, `torch.AdamW` the fused optimizer on the device (with fp32 master weights where
`dtype` has 16 bits, as the offloaded one has), `torch.fsdp2` torch's `fully_shard` with `CPUOffloadPolicy` and one
rank. `offloaded-activations` is our `OffloadedActivations` and `torch.save_on_cpu` torch's hook with pinned memory,
both around a step without any optimizer, which is `none`. Weights and tokens are random, and the same for all. With
`segments`, blocks are checkpointed in so many.

A step is timed from its beginning to the next one's (`step_ms`, median). What could bound it:

- `compute_ms`: the step of `none` at the same size;
- `transfer_ms`: its bytes (`down_gib`, `up_gib`) over the bus as measured in the same run. An optimizer's go both ways
  at once, so the slower way counts; activations go down in the forward pass and up in the backward pass, so both do;
- `host_ms`: AdamW's arithmetic in the host's memory, alone on the machine.

`ratio` is `step_ms` over the larger of the first two, `bound` names the largest of the three, and `ratio_to_bound` is
`step_ms` over that. `overlapped` is the share of the time in copies during which compute went on. Without a GPU the bus
is synthetic (`synthetic_gb_per_s`), copies sleep as long as it would take, and bytes are counted storage by storage.
`host_gib` is what the method keeps there; torch's pinned memory rounds each piece of it up to a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from labkit.bench.steps import attempt, bus_rates, case_of, configuration, is_in, median_ms, rounded

if TYPE_CHECKING:
    from labkit.bench.offload_steps import Plain
    from labkit.ledger.case import Case
    from labkit.scale import Scale

TITLE = "Offloading optimizer and activations: step time beside compute, bus and host, and bytes on both sides."
SEEDS = (0,)
UNITS = {
    "segments": "of checkpointing; 0: none",
    "step_ms": "ms, median",
    "compute_ms": "ms",
    "transfer_ms": "ms",
    "host_ms": "ms",
    "overlapped": "share of copy time",
    "ratio": "step_ms over the larger of compute_ms and transfer_ms",
    "ratio_to_bound": "step_ms over the largest of compute_ms, transfer_ms and host_ms",
    "peak_allocated_mib": "MiB",
    "predicted_mib": "MiB",
    "host_gib": "GiB",
    "down_gib": "GiB a step",
    "up_gib": "GiB a step",
    "download_gb_per_s": "GB/s",
    "upload_gb_per_s": "GB/s",
    "download_both_gb_per_s": "GB/s, both ways at once",
    "upload_both_gb_per_s": "GB/s, both ways at once",
    "synthetic_gb_per_s": "GB/s each way",
}
PUBLISHED = [
    {
        "method": "zero-offload",
        "result": "over 13 billion parameters on one GPU, ten times as many as without; 40 TFLOPS on a V100 with 10 "
        "billion, where PyTorch alone reaches 30 with the 1.4 billion that fit",
        "source": "Ren et al. 2021, arXiv:2101.06840, abstract",
    },
    {
        "method": "vdnn",
        "result": "VGG-16 with 256 images, which needs 28 GB, on a GPU of 12 GB, 18 percent slower than if it had them",
        "source": "Rhu et al. 2016, arXiv:1602.08124, abstract",
    },
]
TIMED_STEPS = 3
NORM = 1.0
MIB, GIB = 2**20, 2**30
_BYTES = (  # column, what it is made of, unit
    ("peak_allocated_mib", "peak", MIB),
    ("predicted_mib", "predicted", MIB),
    ("host_gib", "host", GIB),
    ("down_gib", "down", GIB),
    ("up_gib", "up", GIB),
)
SIZE = ("batch", "seq_len", "segments")
OURS, OURS_ACTIVATIONS = "offloaded", "offloaded-activations"
FSDP, SAVED = "torch.fsdp2", "torch.save_on_cpu"
NEED_A_GPU = {
    FSDP: "FSDP2's CPUOffloadPolicy offloads from a GPU, and there is none",
    SAVED: "save_on_cpu leaves a tensor where it is on a CPU",
}


@dataclass(frozen=True)
class Plan:
    """A model, sizes (sequences, tokens in each, segments) with an optimizer, and sizes with activations moved.

    Attributes:
        synthetic_gb_per_s: of the bus, where there is no GPU.
        bucket_mib: of gradients that our optimizer sends at once.
        min_bytes: of the smallest storage of activations that we send.
    """

    model: str
    sizes: Sequence[tuple[int, int, int]]
    activation_sizes: Sequence[tuple[int, int, int]]
    synthetic_gb_per_s: float | None = None
    bucket_mib: float = 16.0
    min_bytes: int = 2**20


# The largest batch has the compute that a host's arithmetic can hide behind; it fits when blocks are checkpointed.
_GPU = Plan("opt-1.3b", ((8, 512, 0), (24, 1024, 0), (56, 1024, 24)), ((8, 512, 0),))
# Without a GPU it is always the first.
PLANS = {"tiny": Plan("tiny", ((8, 64, 0), (8, 64, 2)), ((8, 64, 0),), 0.2, 1.0, 2**16), "small": _GPU, "full": _GPU}


@dataclass(frozen=True)
class Setting:
    """What tells a row from the others; None where it has no meaning."""

    method: str
    batch: int
    seq_len: int
    segments: int
    transfer: str | None = None
    overlap: bool | None = None
    layerwise: bool | None = None
    max_grad_norm: float | None = None
    reshard: bool | None = None

    def with_(self, size: tuple[int, int, int], **changes: Any) -> Setting:
        """The same at another size, and with other values."""
        batch, seq_len, segments = size
        return replace(self, batch=batch, seq_len=seq_len, segments=segments, **changes)


def rows(scale: Scale, done: Sequence[dict] = ()) -> Iterator[dict]:
    """First `none` at every size, whose times the others are compared with; not the rows that are `done`."""
    from labkit.ledger.case import Case
    from labkit.ledger.shapes import Architecture

    plan = PLANS["tiny" if scale.device == "cpu" else scale.name]
    synthetic = plan.synthetic_gb_per_s if scale.device == "cpu" else None
    config = configuration(plan.model)
    case = Case(Architecture.of(config), 1, 1, scale.dtype, optimizer="sgd", device=scale.device)
    facts = {"model": plan.model, "dtype": scale.dtype, "synthetic_gb_per_s": synthetic}
    rates = bus_rates(scale.device, synthetic)
    compute = {tuple(row[key] for key in SIZE): row["step_ms"] for row in done if row["method"] == "none"}
    for together in sessions(plan, scale.dtype):
        todo = [setting for setting in together if not is_in(setting, done)]
        for setting, found, note in _session(todo, plan, case, config):
            size = (setting.batch, setting.seq_len, setting.segments)
            if setting.method == "none":
                compute[size] = rounded(found.get("step_ms"))
            yield facts | _row(setting, found, rates, compute.get(size), note)


def sessions(plan: Plan, dtype: str) -> Iterator[list[Setting]]:
    """Settings that share a model and its optimizer, small batches first."""
    wide = None if dtype == "float32" else "float32"
    every = sorted({*plan.sizes, *plan.activation_sizes})
    yield [Setting("none", *size) for size in every]
    for overlap in (True, False):
        yield [Setting(OURS_ACTIVATIONS, *size, overlap=overlap) for size in plan.activation_sizes]
    yield [Setting(SAVED, *size) for size in plan.activation_sizes]
    yield [Setting("torch.AdamW", *size) for size in plan.sizes]
    for transfer in dict.fromkeys((wide, None)):
        norms = (None, NORM) if transfer == wide else (None,)
        ours = Setting(OURS, *plan.sizes[0], transfer, overlap=True, layerwise=True)
        yield [ours.with_(size, max_grad_norm=norm) for size in plan.sizes for norm in norms]
    in_order = Setting(OURS, *plan.sizes[0], wide, overlap=False, layerwise=False)
    yield [in_order.with_(size) for size in plan.sizes]
    for reshard in (True, False):
        yield [Setting(FSDP, *size, wide, reshard=reshard) for size in plan.sizes]


def _session(todo: list[Setting], plan: Plan, case: Case, config: Any) -> Iterator[tuple[Setting, dict, str]]:
    """Settings of one session with what was found; a failure ends it, since larger batches follow."""
    from labkit.bench.workers import clear

    if not todo:
        return
    method, rig, note = todo[0].method, None, ""
    if case.device == "cpu" and method in NEED_A_GPU:
        note = NEED_A_GPU[method]
    else:
        rig, note = _tried(partial(_rig, todo[0], plan, case, config), case.device, method)
    try:
        for setting in todo:
            found = None
            if rig is not None:
                found, note = _tried(partial(_measured, rig, setting), case.device, method)
                if found is None:
                    rig.close()
                    rig = None
            yield setting, found or {}, note
    finally:
        if rig is not None:
            rig.close()
        del rig
        clear(case.device)


def predictions(rows: Sequence[dict]) -> list[dict]:
    """The peak by formula where activations move; for the others nothing is computed again."""
    from labkit.bench.offload_steps import on_their_way

    def peak(row: dict) -> float:
        return round(on_their_way(case_of(row, [PLANS["tiny"].model])) / MIB, 4)

    return [{"predicted_mib": peak(row)} if row["method"] == OURS_ACTIVATIONS else {} for row in rows]


def _tried(work: Any, device: str, method: str) -> tuple[Any, str]:
    """As `attempt`; where a library cannot do it for another reason, that is a note as well and not the table's end."""
    from labkit.bench.workers import clear

    try:
        return attempt(work, device)
    except Exception as error:
        if method != FSDP:
            raise
        note = f"failed with {type(error).__name__}: {str(error)[:160]}"
    clear(device)
    return None, note


def _rig(first: Setting, plan: Plan, case: Case, config: Any) -> Plain:
    from labkit.bench import offload_peers as peers
    from labkit.bench import offload_steps as steps

    synthetic = plan.synthetic_gb_per_s if case.device == "cpu" else None
    if first.method == OURS:
        return steps.OnHost(case, config, bool(first.overlap), synthetic, plan.bucket_mib, first.transfer)
    if first.method == OURS_ACTIVATIONS:
        return steps.ActivationsOnHost(case, config, bool(first.overlap), synthetic, plan.min_bytes)
    if first.method == FSDP:
        return peers.Fsdp(case, config, bool(first.reshard))
    kinds: dict[str, Any] = {"none": steps.Plain, "torch.AdamW": steps.OnDevice, SAVED: peers.SavedOnHost}
    made: Plain = kinds[first.method](case, config)
    return made


def _measured(rig: Plain, setting: Setting) -> dict[str, Any]:
    """Time and bytes of some steps in the middle of a training."""
    import torch

    from labkit.bench.offload_steps import OnHost, counted, watch
    from labkit.memory.timeline import overlapped

    rig.resize(setting.batch, setting.seq_len, setting.segments)
    if isinstance(rig, OnHost):
        rig.choose(bool(setting.layerwise), setting.max_grad_norm)
    rig.run()
    rig.settle()
    if rig.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.reset_peak_host_memory_stats()
    rig.run()  # not awaited: the first step that is timed finds the one before it on its way, as every other one does
    step_ms = median_ms(rig.run, TIMED_STEPS, rig.case.device)
    rig.settle()
    peak = torch.cuda.max_memory_allocated() if rig.on_gpu else counted(rig)
    facts = {"peak": peak, "predicted": rig.predicted(), "host": rig.host_bytes(), "host_ms": rig.host_ms()}
    share = overlapped(watch(rig).spans()) if rig.bus is not None else None
    return facts | {"step_ms": step_ms, "overlapped": share, "down": rig.down, "up": rig.up, "turns": rig.turns}


def _row(
    setting: Setting, found: dict[str, Any], rates: dict[str, float], compute: float | None, note: str
) -> dict[str, Any]:
    """What was found, beside what could bound it."""
    step = rounded(found.get("step_ms"))
    times = {"compute_ms": compute, "transfer_ms": _transfer_ms(found, rates), "host_ms": rounded(found.get("host_ms"))}
    known = {name: value for name, value in times.items() if value is not None}
    # Without the time of its compute a step has nothing to be compared with.
    both = [value for name, value in known.items() if name != "host_ms" and compute is not None]
    bound = max(known, key=known.__getitem__) if both and step is not None else None
    return {
        **asdict(setting),
        "step_ms": step,
        **times,
        "overlapped": rounded(found.get("overlapped")),
        "ratio": round(step / max(both), 3) if step is not None and both else None,
        "bound": bound,
        "ratio_to_bound": round(step / known[bound], 3) if step is not None and bound else None,
        **{name: rounded(found[key] / unit, 4) if found.get(key) is not None else None for name, key, unit in _BYTES},
        **{f"{name}_gb_per_s": round(rate, 3) for name, rate in rates.items()},
        "note": note,
    }


def _transfer_ms(found: dict[str, Any], rates: dict[str, float]) -> float | None:
    """Milliseconds on the bus, or None where nothing crosses it."""
    if not found.get("down"):
        return None
    down, up = found["down"] / 1e6, found["up"] / 1e6
    if found["turns"]:
        return round(down / rates["download"] + up / rates["upload"], 3)
    return round(max(down / rates["download_both"], up / rates["upload_both"]), 3)
