"""What each way to share a model makes a rank send in one step, by formula, so that they can be compared.

For Ψ parameters of b bytes, L layers of width h, N ranks and T tokens in the whole batch:

    ddp        all-reduce of the gradients                               2 b Ψ (N-1)/N
    zero3      all-gather the weights twice, reduce-scatter gradients    3 b Ψ (N-1)/N
    tensor     4 L + 2 all-reduces of T h values, and those of the loss  2 (4 L + 2) b T h (N-1)/N
    pipeline   an activation down and its gradient up, to neighbours     2 b T h

(Rajbhandari et al. 2020, arXiv:1910.02054, section 7; Shoeybi et al. 2019, arXiv:1909.08053, section 3; Narayanan et
al. 2021, arXiv:2104.04473, section 3.) The first two send by parameter, whatever the batch; the others by token,
whatever is in the layers. A layer has about 12 h² parameters, so ddp and tensor meet at about T = 3 h tokens: below,
cutting inside the layers sends less. A collective is a ring here; all ranks of a ring send the same.

A large run nests the cuts (`divided`): t tensor ranks in each of p stages in each of d replicas. A stage's tensor ranks
all have the same activation, and each sends it whole to the next stage. Megatron lets each send a t-th, which the
receivers gather on their fast links (Narayanan et al., section 4.1); not here.

Bytes are half of it. Gradients of ddp hide behind the backward pass and messages of a pipeline behind other
micro-batches, while nothing of a layer can go on until its all-reduce has come.
"""

from __future__ import annotations

from dataclasses import replace

from labkit.errors import LabError, UnknownNameError
from labkit.ledger.shapes import Architecture
from labkit.parallel.tensor_llama import traffic
from labkit.parallel.zero_formula import traffic_per_step

WAYS = ("ddp", "zero3", "tensor", "pipeline")


def sent_per_step(way: str, shape: Architecture, ranks: int, batch: int, seq: int, itemsize: int = 2) -> float:
    """Bytes that the rank which sends most sends in a step.

    Args:
        way: one of WAYS.
        shape: of the model.
        ranks: that share it, N; for `pipeline` as many stages.
        batch, seq: rows of the whole batch, of all ranks together, and their tokens.
        itemsize: bytes of a weight, of a gradient and of a value between layers.

    Raises:
        LabError: for less than one rank, or no tokens; UnknownNameError for another way.
    """
    if way not in WAYS:
        raise UnknownNameError.among("way to share a model", way, WAYS)
    if ranks < 1 or batch < 1 or seq < 1:
        raise LabError(f"{ranks} ranks with {batch} × {seq} tokens send nothing.", "Give at least one of each.")
    if way in ("ddp", "zero3"):
        return traffic_per_step(3 if way == "zero3" else 0, shape.parameters, ranks, itemsize, itemsize)
    if way == "tensor":
        step = traffic(shape, batch, seq, itemsize)
        return 2 * (ranks - 1) / ranks * sum(step.forward + step.backward)
    return _pipeline(shape, ranks, itemsize * batch * seq * shape.hidden, itemsize)


def _pipeline(shape: Architecture, stages: int, activations: int, itemsize: int) -> float:
    """A stage between two others sends both ways; the first or last only one, and a tied weight's gradient."""
    if stages == 1:
        return 0.0
    tied = itemsize * shape.vocab * shape.hidden if shape.tied else 0
    return float(max(activations + tied, 2 * activations if stages > 2 else 0))


def divided(
    shape: Architecture, tensor: int, pipeline: int, data: int, batch: int, seq: int, itemsize: int = 2
) -> dict[str, float]:
    """Bytes that a rank of a nested division sends in a step, by way; `pipeline` over one boundary, in one direction.

    Args:
        tensor, pipeline, data: ranks that share a matrix, stages, and replicas of all of them.
        batch, seq: as in `sent_per_step`; each replica has a share of the rows.

    Raises:
        LabError: for cuts that the heads, layers or rows do not allow.
    """
    for what, size, cut in (("heads", shape.heads, tensor), ("layers", shape.layers, pipeline), ("rows", batch, data)):
        if cut < 1 or size % cut:
            raise LabError(f"{size} {what} cannot be cut into {cut} equal parts.", f"Choose a divisor of {size}.")
    mine = traffic(replace(shape, layers=shape.layers // pipeline), batch // data, seq, itemsize)
    stream = mine.backward[0]
    # Of embedding, head and loss a stage among several has the one, or the other two.
    summed = sum(mine.forward + mine.backward) - (stream if pipeline > 1 else 0)
    return {
        "tensor": 2 * (tensor - 1) / tensor * summed,
        "pipeline": float(stream if pipeline > 1 else 0),
        "data": traffic_per_step(0, shape.parameters / (tensor * pipeline), data, itemsize, itemsize),
    }


def tokens_where_equal(shape: Architecture, itemsize: int = 2) -> float:
    """Tokens in the whole batch from which on `tensor` sends more than `ddp`; the number of ranks cancels."""
    a_token = traffic(shape, 1, 1, itemsize)
    return 2 * itemsize * shape.parameters / (2 * sum(a_token.forward + a_token.backward))
