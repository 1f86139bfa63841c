"""A piece while it is on the device: its parameters are views of the place that it has there; it may be coded anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from labkit.zeroth.groups import Group, book_of, bytes_of, copies_of, small_of
from labkit.zeroth.offload.formats import views
from labkit.zeroth.offload.store import Store
from labkit.zeroth.perturb import Weight
from labkit.zeroth.pieces import Piece


class Coder:
    """Codes pieces that are on the device, for the host that holds them both ways.

    Attributes:
        buffer: of the largest piece's codes, on the device.
    """

    def __init__(self, store: Store, device: torch.device):
        self._store, self._last = store, 0
        self._writers: dict[tuple[int, int], Callable[[], None]] = {}
        self.buffer = torch.empty(store.largest[0], dtype=torch.uint8, device=device)

    def code(self, piece: Piece, parameters: Sequence[nn.Parameter], place: int) -> Tensor:
        """The codes of a piece whose parameters are at a place, once those before are on the host."""
        self._store.written[self._last].gate()
        self._last = piece.index
        codes = self.buffer[: len(self._store.payloads[piece.index])]
        if (key := (piece.index, place)) not in self._writers:
            self._writers[key] = self._store.format.writer(piece, [p.detach() for p in parameters], codes)
        self._writers[key]()
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


class Groups:
    """What moves together: a piece at a place, and what stays.

    Args:
        found: of the same run.
        weights: all that trains.
        most: bytes of a piece's tensors that are made at w ± εz in one launch.

    Attributes:
        rest: what trains and stays.
    """

    def __init__(self, found: Found, weights: Sequence[Weight], most: int):
        self._found, self._book, self._most = found, book_of(weights), most
        self.rest = Group(found.rest, self._book)
        self._here: dict[tuple[int, int], Group] = {}
        self._beside: dict[tuple[int, int], Group] = {}
        self._bound: dict[tuple[int, int], list[nn.Parameter] | None] = {}
        self._flat: Tensor | None = None

    def _room(self) -> Tensor | None:
        """For the tensors of any piece that are made together, one piece after the other."""
        if self._flat is None:
            sizes = [bytes_of(self._together(at[0])) for at in self._found.trained]
            lying = [w.tensor.device for at in self._found.trained for w in at[0]]
            self._flat = torch.empty(max(sizes), dtype=torch.uint8, device=lying[0]) if lying else None
        return self._flat

    def _together(self, weights: Sequence[Weight]) -> list[Weight]:
        """All of a piece, where the room takes it; else the small ones, and the large go one by one through a slot."""
        return list(weights) if bytes_of(weights) <= self._most else small_of(weights, self._most)

    def here(self, index: int, place: int) -> Group:
        """A piece's tensors, in place."""
        key = index, place
        if key not in self._here:
            self._here[key] = Group(self._found.trained[index][place], self._book)
        return self._here[key]

    def beside(self, index: int, place: int) -> Group:
        """Copies of them, in the same room for all pieces."""
        key = index, place
        if key not in self._beside:
            some = self._together(self._found.trained[index][place])
            self._beside[key] = Group(some, self._book, copies_of(some, self._room() if some else None))
        return self._beside[key]

    def bound(self, index: int, place: int) -> list[nn.Parameter] | None:
        """What the piece's modules hold in a pass, where all that trains of it is made in the room; else None."""
        key, there = (index, place), self._found.parameters[index][place]
        if key not in self._bound:
            made = self.beside(index, place)
            whole = 0 < len(made.weights) == len(self._found.trained[index][place])
            self._bound[key] = made.held(there) if whole else None
        return self._bound[key]


def _at(weight: Weight, parameter: nn.Parameter) -> Weight:
    """The same tensor where it lies on the device."""
    return Weight(weight.name, parameter.detach(), weight.decayed, frozenset({id(parameter)}))
