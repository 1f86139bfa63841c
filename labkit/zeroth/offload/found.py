"""A piece while it is on the device: its parameters are views of the place that it has there; it may be coded anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from labkit.zeroth.offload.formats import views
from labkit.zeroth.offload.pieces import Piece
from labkit.zeroth.offload.store import Store
from labkit.zeroth.perturb import Weight


class Coder:
    """Codes pieces that are on the device, for the host that holds them both ways.

    Attributes:
        buffer: of the largest piece's codes, on the device.
    """

    def __init__(self, store: Store, device: torch.device):
        self._store, self._last = store, 0
        self.buffer = torch.empty(store.largest[0], dtype=torch.uint8, device=device)

    def code(self, piece: Piece, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The codes of a piece, once those before are on the host."""
        self._store.written[self._last].gate()
        self._last = piece.index
        codes = self.buffer[: len(self._store.payloads[piece.index])]
        self._store.format.encode(piece, [p.detach() for p in parameters], codes)
        return codes


class Found:
    """What is found where: parameters and trained tensors of each piece at each place, and of what stays.

    Attributes:
        parameters: by piece and place, for the modules.
        trained: by piece and place, for the moves.
        rest: what trains and stays.
        known: all that trains, by `id` of the parameter.
    """

    def __init__(self, store: Store, places: Sequence[Tensor], weights: Sequence[Weight]):
        by_id = {alias: weight for weight in weights for alias in weight.aliases}
        self.parameters: list[list[list[nn.Parameter]]] = []
        self.trained: list[list[list[Weight]]] = []
        travels: set[str] = set()
        for piece in store.pieces:
            there = [[nn.Parameter(v, requires_grad=False) for v in views(piece, place)] for place in places]
            whose = [by_id.get(id(p)) for p in store.parameters[piece.index]]
            travels |= {w.name for w in whose if w is not None}
            self.parameters.append(there)
            self.trained.append([[_at(w, p) for w, p in zip(whose, ps, strict=True) if w is not None] for ps in there])
        self.rest = [w for w in weights if w.name not in travels]
        self.known = {alias: w for w in self.rest for alias in w.aliases}
        self.known |= {next(iter(w.aliases)): w for at in self.trained for ws in at for w in ws}


def _at(weight: Weight, parameter: nn.Parameter) -> Weight:
    """The same tensor where it lies on the device."""
    return Weight(weight.name, parameter.detach(), weight.decayed, frozenset({id(parameter)}))
