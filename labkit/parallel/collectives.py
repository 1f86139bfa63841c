"""Collectives from nothing but send and receive: ring reduce-scatter, all-gather and all-reduce, tree broadcast.

A tensor of n bytes lies on each of N ranks; all of them are to hold the sum. If one rank collected everything, its
link would carry (N - 1) n bytes in each direction, the more the more ranks there are. In a ring (Patarasuk & Yuan 2009,
"Bandwidth optimal all-reduce algorithms for clusters of workstations"; brought to deep learning by Gibiansky 2017)
rank r sends to r + 1 only and receives from r - 1 only, and the tensor is cut into N chunks:

    reduce-scatter   chunk c starts at rank c + 1 and goes once around to rank c; each rank on the way adds its own
                     values. All chunks travel at the same time: N - 1 steps, n / N bytes a rank and step.
    all-gather       each finished chunk goes once around again, unchanged: N - 1 steps, n / N bytes a rank and step.

    all-reduce       = reduce-scatter, all-gather: every rank sends 2 (N - 1) / N n bytes, hardly more for many ranks
                     than for three.

Where N does not divide the number of values, the first chunks hold one value more. Rank r then sends all chunks but its
own in the first half and all but its neighbour's in the second: 2 n - |chunk r| - |chunk r + 1|. Nothing is padded, and
all ranks together send exactly 2 (N - 1) n.

Time, with α seconds a message and β bytes a second (Thakur, Rabenseifner & Gropp 2005): a step takes α + n / (N β), so

    ring all-reduce     2 (N - 1) α + 2 (N - 1) / N · n / β      best for large n: the second term hardly grows with N
    tree broadcast      ⌈log₂ N⌉ (α + n / β)                     best for small n: few messages one after another

(The additions cost a third term, (N - 1) / N · n / γ, small beside β between machines.)

Each chunk's values are added in another order, x[c+1] + x[c+2] + … + x[c], and floating-point addition is not
associative: the result may differ in its last bits from torch's, and from the ring of another number of ranks. But each
chunk is finished by one rank and copied by all others, so that all ranks hold the same bits. Replicas that start equal
stay equal. A mean is divided once, by the rank that finished the sum.

The lecture counts "2 bytes per parameter" of communication for data parallelism with fp16 gradients (003). That is the
size of the gradients. A ring moves 2 (N - 1) / N times that: 2 bytes on two ranks, but nearly 4 on many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from labkit.errors import LabError, UnknownNameError

Group = dist.ProcessGroup | None
OPERATIONS = ("sum", "mean")


@dataclass
class Traffic:
    """What this rank has sent.

    Attributes:
        bytes: payload; what a rank receives is some other rank's to count.
        messages: sends; an empty chunk is not sent.
    """

    bytes: int = 0
    messages: int = 0

    def sent(self, tensor: Tensor) -> None:
        """Count one message."""
        self.bytes += tensor.numel() * tensor.element_size()
        self.messages += 1

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(self.bytes - earlier.bytes, self.messages - earlier.messages)


def chunk_sizes(numel: int, world_size: int) -> list[int]:
    """Values in each rank's chunk: as equal as can be, the first ones larger by one."""
    return [numel // world_size + (rank < numel % world_size) for rank in range(world_size)]


def ring_traffic(numel: int, itemsize: int, rank: int, world_size: int) -> Traffic:
    """What `rank` sends in an all-reduce of `numel` values of `itemsize` bytes, by formula."""
    sizes = chunk_sizes(numel, world_size)
    spared = (rank, (rank + 1) % world_size)  # the chunk that it keeps in each half
    sent = [sizes[c] for kept in spared for c in range(world_size) if c != kept]
    return Traffic(itemsize * sum(sent), sum(size > 0 for size in sent))


def ring_seconds(size: float, world_size: int, alpha: float, beta: float) -> float:
    """Time of a ring all-reduce of `size` bytes with `alpha` s a message and `beta` bytes a second, by formula."""
    return 2 * (world_size - 1) * (alpha + size / world_size / beta)


def tree_seconds(size: float, world_size: int, alpha: float, beta: float) -> float:
    """Time of a tree broadcast of `size` bytes with `alpha` s a message and `beta` bytes a second, by formula."""
    return math.ceil(math.log2(world_size)) * (alpha + size / beta)


def reduce_scatter(
    tensor: Tensor, op: str = "sum", group: Group = None, traffic: Traffic | None = None
) -> Shaped[Tensor, " chunk"]:
    """This rank's chunk of the sum or mean of all ranks' tensors, all of one shape; `tensor` stays.

    Args:
        op: "sum", or "mean" for floating-point numbers.
        group: of whose ranks; None for all.
        traffic: what this rank sends is added to it.

    Raises:
        LabError: for a mean of integers.
        UnknownNameError: for another operation.
    """
    _check(op, tensor)
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    own = _flat(tensor).tensor_split(world_size)
    # At every step what came last, with this rank's values added, goes on.
    partial = own[(rank - 1) % world_size]
    for step in range(1, world_size):
        mine = own[(rank - 1 - step) % world_size]
        arriving = torch.empty_like(mine)
        _exchange(partial, arriving, rank, world_size, group, traffic)
        partial = arriving.add_(mine)
    if world_size == 1:
        partial = partial.clone()
    return partial.div_(world_size) if op == "mean" else partial


def all_gather(
    chunk: Shaped[Tensor, " chunk"],
    numel: int,
    group: Group = None,
    traffic: Traffic | None = None,
    out: Shaped[Tensor, " numel"] | None = None,
) -> Shaped[Tensor, " numel"]:
    """All ranks' chunks one behind the other.

    Args:
        chunk: this rank's; as long as `chunk_sizes(numel, world_size)[rank]` says, as from `reduce_scatter`.
        numel: values in all chunks together.
        group, traffic: see `reduce_scatter`.
        out: where to put them, if there is such a place already; its own chunk may be `chunk`.

    Raises:
        LabError: for a chunk or `out` of another length.
    """
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    sizes = chunk_sizes(numel, world_size)
    if chunk.numel() != sizes[rank] or (out is not None and out.shape != (numel,)):
        cause = f"Rank {rank} gathers {numel} values with a chunk of {chunk.numel()}, and its chunk has {sizes[rank]}."
        raise LabError(cause, "Cut as `chunk_sizes` does, and gather into a flat tensor of all values.")
    whole = chunk.new_empty(numel) if out is None else out
    parts = whole.tensor_split(world_size)
    parts[rank].copy_(chunk)
    for step in range(world_size - 1):
        _exchange(
            parts[(rank - step) % world_size], parts[(rank - step - 1) % world_size], rank, world_size, group, traffic
        )
    return whole


def all_reduce(tensor: Tensor, op: str = "sum", group: Group = None, traffic: Traffic | None = None) -> None:
    """Put the sum or mean of all ranks' tensors in the place of each: the same bits on all ranks.

    Beside the tensor itself two chunks are allocated, 2 / N of its bytes.

    Args:
        op, group, traffic: see `reduce_scatter`.

    Raises:
        LabError, UnknownNameError: as `reduce_scatter`.
    """
    flat = _flat(tensor)
    chunk = reduce_scatter(flat, op, group, traffic)
    all_gather(chunk, flat.numel(), group, traffic, out=flat)
    _put_back(flat, tensor)


def broadcast(tensor: Tensor, src: int = 0, group: Group = None, traffic: Traffic | None = None) -> None:
    """Put `src`'s tensor in the place of every rank's, along a binomial tree.

    In round k each of the 2^k ranks that have it sends it to one that has not: ⌈log₂ N⌉ rounds, N - 1 messages in all.

    Args:
        src: the rank that has it, counted within `group`.
        group, traffic: see `reduce_scatter`.

    Raises:
        LabError: for a rank that is not there.
    """
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    if not 0 <= src < world_size:
        raise LabError(f"Rank {src} is not one of {world_size}.", f"Choose a source from 0 to {world_size - 1}.")
    flat, place = _flat(tensor), (rank - src) % world_size  # the source stands at place 0
    for distance in (2**k for k in range((world_size - 1).bit_length())):
        if place < distance and place + distance < world_size:
            _transfer([(dist.isend, flat, (rank + distance) % world_size)], group, traffic)
        elif distance <= place < 2 * distance:
            _transfer([(dist.irecv, flat, (rank - distance) % world_size)], group, traffic)
    _put_back(flat, tensor)


def _exchange(
    leaving: Tensor, arriving: Tensor, rank: int, world_size: int, group: Group, traffic: Traffic | None
) -> None:
    """Send to the next rank of the ring while receiving from the one before."""
    after, before = (rank + 1) % world_size, (rank - 1) % world_size
    _transfer([(dist.isend, leaving, after), (dist.irecv, arriving, before)], group, traffic)


def _transfer(orders: list, group: Group, traffic: Traffic | None) -> None:
    """Start all sends and receives together and wait for all: in any other order a ring of blocking sends locks up.

    On CUDA nothing waits but the current stream. Empty tensors are left out; their receivers know the sizes too.
    """
    orders = [order for order in orders if order[1].numel()]
    peers = [peer if group is None else dist.get_global_rank(group, peer) for _, _, peer in orders]
    starts = [dist.P2POp(way, tensor, peer, group) for (way, tensor, _), peer in zip(orders, peers, strict=True)]
    for work in dist.batch_isend_irecv(starts) if starts else ():
        work.wait()
    if traffic is not None:
        for way, tensor, _ in orders:
            if way is dist.isend:
                traffic.sent(tensor)


def _flat(tensor: Tensor) -> Tensor:
    # Not reshape(-1), which leaves gaps between the values of some strided tensors.
    return tensor.detach().contiguous().view(-1)


def _put_back(flat: Tensor, tensor: Tensor) -> None:
    """A tensor that is not contiguous was worked on in a flat copy."""
    if flat.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(flat.view(tensor.shape))


def _check(op: str, tensor: Tensor) -> None:
    if op not in OPERATIONS:
        raise UnknownNameError.among("operation", op, OPERATIONS)
    if op == "mean" and not tensor.is_floating_point():
        raise LabError(f"A mean of {tensor.dtype} would be rounded.", "Sum, or convert to a float format first.")
