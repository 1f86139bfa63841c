"""Which messages a block of code really sends, ours or a library's: collectives seen where torch dispatches them.

Every collective of torch.distributed, called directly or by DTensor, goes through torch's dispatcher as an operation of
its own. A dispatch mode sees it there with its tensors, also in the backward pass, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Which argument holds what this rank brings, by the operation's name within torch.ops; the rest are not messages.
_BROUGHT = {
    ("c10d", "allreduce_"): ("all_reduce", 0),
    ("c10d", "broadcast_"): ("broadcast", 0),
    ("c10d", "allgather_"): ("all_gather", 1),
    ("c10d", "_allgather_base_"): ("all_gather", 1),
    ("c10d", "reduce_scatter_"): ("reduce_scatter", 1),
    ("c10d", "_reduce_scatter_base_"): ("reduce_scatter", 1),
    ("c10d", "send"): ("send", 0),
    ("c10d", "recv_"): ("receive", 0),
    ("_c10d_functional", "all_reduce"): ("all_reduce", 0),
    ("_c10d_functional", "all_reduce_"): ("all_reduce", 0),
    ("_c10d_functional", "all_gather_into_tensor"): ("all_gather", 0),
    ("_c10d_functional", "reduce_scatter_tensor"): ("reduce_scatter", 0),
}


@dataclass(frozen=True)
class Message:
    """A collective, send or receive, with the bytes of the tensors that this rank brought, or took."""

    operation: str
    count: int


class Messages(TorchDispatchMode):
    """Collects what is sent while the block runs, in order, in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Message] = []

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        # DTensor turns this operation into several first, and those come here again.
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        space, _, name = func._schema.name.partition("::")
        if brought := _BROUGHT.get((space, name)):
            tensors = [leaf for leaf in tree_leaves(args[brought[1]]) if isinstance(leaf, Tensor)]
            self.seen.append(Message(brought[0], sum(t.nbytes for t in tensors)))
        return func(*args, **(kwargs or {}))

    def counts(self, operation: str) -> list[int]:
        """Bytes of each message of one operation (all_reduce, all_gather, reduce_scatter, broadcast, send, receive)."""
        return [message.count for message in self.seen if message.operation == operation]


def messages_of(work: Callable[[], Any]) -> tuple[Any, list[Message]]:
    """What `work` returns, and the messages that it sent."""
    with Messages() as messages:
        result = work()
    return result, messages.seen
