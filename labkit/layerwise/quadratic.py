"""Block coordinate descent where every step can be checked: on f(x) = ½ xᵀ A x - bᵀ x, A symmetric and positive.

A step minimizes f over one block of x exactly, the others standing still: with the block's rows of A and b,
A_BB x_B = b_B - A_BR x_R. On blocks in order that is Gauss and Seidel's method, and f falls to its minimum for every
such A; how fast depends on what couples the blocks. (Nutini et al. 2015, arXiv:1506.00552, compare orders.) LISA and
BAdam do the same to a network's layers, with some steps of Adam in the place of the exact minimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError

ORDERS = ("ordered", "permuted", "drawn", "gauss-southwell")


@dataclass
class Quadratic:
    """½ xᵀ A x - bᵀ x, with x cut into blocks of equal size.

    Raises:
        LabError: where A is not symmetric and positive definite, or the blocks do not come out even.
    """

    matrix: Float[Tensor, "d d"]
    offset: Float[Tensor, " d"]
    size: int = 1

    def __post_init__(self) -> None:
        even = len(self.offset) % self.size == 0
        if not even or not torch.allclose(self.matrix, self.matrix.T) or torch.linalg.eigvalsh(self.matrix)[0] <= 0:
            cause = "Blockwise minima need a symmetric, positive definite matrix and blocks of one size."
            raise LabError(cause, "Give B Bᵀ + I, and a size that divides the dimension.")

    @classmethod
    def coupled(cls, blocks: int, size: int, coupling: float, seed: int = 0) -> Quadratic:
        """A random one, whose blocks know nothing of each other at coupling 0, and much near 1."""
        generator = torch.Generator().manual_seed(seed)
        d = blocks * size
        factor = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
        whole = factor @ factor.T + 0.1 * torch.eye(d, dtype=torch.float64)
        same = torch.block_diag(*[torch.ones(size, size, dtype=torch.float64)] * blocks)
        matrix = whole * (same + coupling * (1 - same))
        return cls(matrix, torch.randn(d, generator=generator, dtype=torch.float64), size)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self.offset) // self.size

    def value(self, x: Float[Tensor, " d"]) -> float:
        """f, above its minimum."""
        off = x - torch.linalg.solve(self.matrix, self.offset)
        return 0.5 * float(off @ self.matrix @ off)

    def minimized(self, x: Float[Tensor, " d"], block: int) -> Float[Tensor, " d"]:
        """x with one block at its minimum, the others as they were."""
        rows = slice(block * self.size, (block + 1) * self.size)
        gradient = self.matrix[rows] @ x - self.offset[rows]
        found = x.clone()
        found[rows] -= torch.linalg.solve(self.matrix[rows, rows], gradient)
        return found

    def descend(self, x: Float[Tensor, " d"], blocks: Iterable[int]) -> list[Float[Tensor, " d"]]:
        """x, and x after each block's turn."""
        path = [x]
        for block in blocks:
            path.append(self.minimized(path[-1], block))
        return path

    def steepest(self, x: Float[Tensor, " d"], steps: int) -> list[Float[Tensor, " d"]]:
        """x, and x after each step of gradient descent on all of it, at the rate 1 / (largest eigenvalue)."""
        rate, path = 1 / torch.linalg.eigvalsh(self.matrix)[-1], [x]
        for _ in range(steps):
            path.append(path[-1] - rate * (self.matrix @ path[-1] - self.offset))
        return path

    def in_order(self, x: Float[Tensor, " d"], order: str, turns: int, seed: int = 0) -> list[float]:
        """f above its minimum before and after each of `turns` turns, blocks taken in one of ORDERS."""
        generator, found = torch.Generator().manual_seed(seed), [self.value(x)]
        for turn in range(turns):
            x = self.minimized(x, self._next(x, order, turn, generator))
            found.append(self.value(x))
        return found

    def _next(self, x: Tensor, order: str, turn: int, generator: torch.Generator) -> int:
        if order == "ordered":
            return turn % self.blocks
        if order == "drawn":
            return int(torch.randint(self.blocks, (), generator=generator))
        if order == "permuted":
            if turn % self.blocks == 0:
                self._permutation: Sequence[int] = torch.randperm(self.blocks, generator=generator).tolist()
            return self._permutation[turn % self.blocks]
        gradient = self.matrix @ x - self.offset
        return int(gradient.view(self.blocks, self.size).norm(dim=1).argmax())
