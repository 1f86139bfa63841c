"""ZeRO's arithmetic: bytes a rank holds, and bytes it sends in a step (Rajbhandari et al. 2020, arXiv:1910.02054).

Mixed-precision training of Ψ parameters holds 2Ψ bytes of 16-bit weights, 2Ψ of 16-bit gradients, and KΨ of what the
optimizer updates: for AdamW K = 12, fp32 master weights and two moments. Data parallelism holds all of it on each of N
ranks. A stage leaves a rank an N-th of what it shards:

    stage 0 (none)  (2 + 2 + K) Ψ           stage 2 (+ gradients)   2 Ψ + (2 + K) Ψ / N
    stage 1         (2 + 2) Ψ + K Ψ / N     stage 3 (+ weights)     (2 + 2 + K) Ψ / N

What a rank sends, by collectives that move no byte twice (rings): reduce-scatter and all-gather of V bytes send
V (N-1)/N each, and an all-reduce is the one after the other. With b-byte weights and gradients:

    stage 0         all-reduce of gradients                            2 b Ψ (N-1)/N
    stages 1, 2     reduce-scatter gradients, all-gather weights       2 b Ψ (N-1)/N
    stage 3         all-gather weights twice, reduce-scatter           3 b Ψ (N-1)/N

Weights that stay gathered from the forward to the backward pass are gathered once only: 3 b Ψ - b Ψ_kept. Of M
micro-batches whose gradients are added up, stages 0 and 1, which have whole gradients, send once. Stage 2 reduces every
one of them, M + 1 copies in all; stage 3 gathers for each as well, M (3 b Ψ - b Ψ_kept). The lecture
gives 2 bytes a parameter for data parallelism; that is the gradient's size. A rank sends nearly twice as much, since
what it has sent away to be summed must come back. (Its table ends at stage 2; stage 3 is the paper's 1.9 GB.)
"""

from __future__ import annotations

from labkit.errors import LabError
from labkit.ledger.case import STAGES
from labkit.ledger.predict import SHARDED


def _check(stage: int, world_size: int) -> None:
    if stage not in STAGES:
        raise LabError(f"ZeRO has no stage {stage!r}.", "Give 0 for none, or 1, 2 or 3.")
    if world_size < 1:
        raise LabError(f"{world_size!r} ranks cannot hold anything.", "Give a world size of at least 1.")


def bytes_by_category(
    stage: int,
    params: float,
    world_size: int,
    weight_bytes: float = 2,
    gradient_bytes: float = 2,
    k: float = 12,
) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer states (with master weights) on one rank, without any padding.

    Args:
        stage: 0 for none, 1, 2 or 3.
        params: number of parameters, Ψ.
        weight_bytes, gradient_bytes, k: bytes a parameter of each category.

    Raises:
        LabError: for another stage or world size.
    """
    _check(stage, world_size)
    whole = {"weights": weight_bytes, "gradients": gradient_bytes, "optimizer_states": k}
    return {name: size * params / (world_size if stage >= SHARDED[name] else 1) for name, size in whole.items()}


def bytes_per_rank(
    stage: int,
    params: float,
    world_size: int,
    weight_bytes: float = 2,
    gradient_bytes: float = 2,
    k: float = 12,
) -> float:
    """All categories of `bytes_by_category` together, in bytes."""
    return sum(bytes_by_category(stage, params, world_size, weight_bytes, gradient_bytes, k).values())


def traffic_per_step(
    stage: int,
    params: float,
    world_size: int,
    weight_bytes: float = 2,
    gradient_bytes: float = 2,
    kept: float = 0,
    micro_batches: int = 1,
) -> float:
    """Bytes that one rank sends in a step, scalars (loss and norm) apart.

    Args:
        stage, params, world_size, weight_bytes, gradient_bytes: as in `bytes_by_category`.
        kept: parameters which stage 3 leaves gathered between forward and backward.
        micro_batches: M, whose gradients are added up.

    Raises:
        LabError: for another stage or world size.
    """
    _check(stage, world_size)
    moved = {
        0: 2 * gradient_bytes * params,
        1: (weight_bytes + gradient_bytes) * params,
        2: (weight_bytes + micro_batches * gradient_bytes) * params,
        3: micro_batches * ((2 * weight_bytes + gradient_bytes) * params - weight_bytes * kept),
    }
    return moved[stage] * (world_size - 1) / world_size
