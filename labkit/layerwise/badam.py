"""BAdam: Adam on one block at a time, in turn (Luo, Yu & Li 2024, arXiv:2404.02827).

    repeat: take the next block; K steps of Adam on it, from fresh moments; everything else is frozen

Block coordinate descent with Adam as the inner solver. Of N values of which the largest block has ψ, a step holds 4 N +
12 ψ bytes in fp32. Every block gets its turn before one gets a second, which sets it apart from LISA's draws: "ordered"
goes up from the first layer, "descending" down from the last (so that the first blocks to train need the least of the
backward pass), "random" takes a new permutation in each round. "gauss-southwell" takes the block with the largest
gradient (Nutini et al. 2015, arXiv:1506.00552), and may take one again at once; it pays a backward pass through the
whole model at each choice, in which every gradient is freed as soon as its norm is known.

The published code leaves embedding and head out unless asked; so does `outside`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.errors import UnknownNameError
from labkit.layerwise.awake import OUTSIDE
from labkit.layerwise.turns import InTurns
from labkit.tasks import Batch

ORDERS = ("ordered", "descending", "random", "gauss-southwell")


@dataclass
class BAdam(InTurns):
    """AdamW on one block for `period` steps, then on the next.

    Attributes:
        order: one of ORDERS.
        outside: whether embedding, last norm and head are a block too.

    Raises:
        UnknownNameError: from `prepare`, for another order.
    """

    learning_rate: float = 5e-4
    order: str = "random"
    outside: bool = False
    name: str = "badam"

    def check(self) -> None:
        """The order is known; the first round has all blocks."""
        super().check()
        if self.order not in ORDERS:
            raise UnknownNameError.among("order of blocks", self.order, ORDERS)

    def _candidates(self) -> list[str]:
        return [*self._layers, *([OUTSIDE] if self.outside else [])]

    def next_blocks(self, batch: Batch | None) -> list[str]:
        """The next block."""
        names = self._candidates()
        if self.order == "gauss-southwell" and batch is not None:
            norms = self.gradient_norms(batch)
            return [max(names, key=lambda name: norms[name])]
        turn, place = divmod(self._done // self.period, len(names))
        if self.order == "random":
            return [names[self._permutation(turn, len(names))[place]]]
        return [names[place if self.order != "descending" else len(names) - 1 - place]]

    def _permutation(self, turn: int, count: int) -> list[int]:
        """Of a round; it depends on the seed and the round alone, so that a run can go on in its middle."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
        return torch.randperm(count, generator=generator).tolist()

    def gradient_norms(self, batch: Batch) -> dict[str, float]:
        """The norm of the loss's gradient with respect to each block, with one gradient there at a time."""
        squares = {name: 0.0 for name in self._blocks}
        hooks = []
        for name, params in self._blocks.items():
            for parameter in params:
                parameter.requires_grad_(True)
                parameter.grad = None

                def note(parameter: torch.nn.Parameter, name: str = name) -> None:
                    assert parameter.grad is not None
                    squares[name] += parameter.grad.float().square().sum().item()
                    parameter.grad = None

                hooks.append(parameter.register_post_accumulate_grad_hook(note))
        self._loss(batch).backward()
        for hook in hooks:
            hook.remove()
        return {name: square**0.5 for name, square in squares.items()}
