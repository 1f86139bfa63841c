"""The dual forward pass over a model whose blocks come and go (algorithm 1 of the ZO-Offload poster, and beyond it).

    for each piece:    upload · make the moves that are due · pass at w + εz · pass at w − εz · write back, if due

The moves of step t are known when its losses are; they are made when the piece is next on the device, in step t + 1.
Both passes share the piece: "exact" computes at round(w ± εz) beside it, as `labkit.zeroth.restore.Exact` does on one
device, with a slot of the same size, so that every matrix product has the same shape and gives the same bits; "walk"
moves the piece itself to w + εz, then on to w − εz.

What stays on the device (embedding, last norm, head) is used by both passes at both ends of the model. In a walk it
can be only at one of the two points: it stays at w + εz while the other pass looks its embeddings up beside it, moves
when the first pass has its loss, and is at w − εz for the head of the second. A head that shares the embedding's weight
thus moves once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labkit.memory.timeline import COMPUTE
from labkit.zeroth.offload.found import Coder, Found, Groups
from labkit.zeroth.offload.moves import Moves
from labkit.zeroth.offload.relay import BEGIN, END, TAIL, Crew, Relay
from labkit.zeroth.offload.slots import Slots, phases
from labkit.zeroth.offload.store import Store
from labkit.zeroth.perturb import Terms, Weight
from labkit.zeroth.pieces import Piece, blocks
from labkit.zeroth.restore import Perturbed

WHOLE = 2**62  # bytes of a slot that takes any weight


@dataclass(frozen=True)
class Side:
    """One of the points that a pass computes at.

    Attributes:
        terms: of the point beside the weights, where the weights themselves stay ("exact").
        version: how many moves the weights have made there.
    """

    terms: Terms
    version: int


class Engine:
    """A model's passes.

    Args:
        model: whose blocks are in `store`; the rest is on the device.
        store: its pieces.
        slots: what they go through.
        weights: what trains, all of it.
        moves: of the run.
        slot_bytes: see `labkit.zeroth.restore.Exact`.
        write_back: at which of a piece's uploads it is written back: every k-th. 0: at none, but to be read. Where the
            host has pieces as they are beside coded ones, that is when one comes up as it is, and is coded anew.

    Attributes:
        work: where coded pieces are read back into; None where nothing is coded.
        coder: codes pieces anew; None where none is.
        settle: makes every move; a walk goes home before.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        slots: Slots,
        weights: Sequence[Weight],
        moves: Moves,
        slot_bytes: int,
        write_back: int,
    ):
        # Not the model: it is known by its store, which the hooks on its blocks lead to, and would never be freed.
        self.store, self.slots, self.moves = store, slots, moves
        self.device, self.bus = slots.bus.device, slots.bus
        self._slot_bytes = slot_bytes
        self._found = Found(store, self._places(), weights)
        self._groups, self._readers = Groups(self._found, weights, slot_bytes), dict[tuple[int, int], Any]()
        self.write_back_every(write_back)
        self._resident, self._resident_version = self._found.rest, moves.made
        self._sweeps, self._place, self._version, self._slot, self._bound = 0, BEGIN, 0, 0, False
        self._relay: Relay | None = None
        self._crew = Crew()
        self.settle: Callable[[], None] = self.flush
        self._sides: Sequence[Side] = ()
        self._sights: list[Perturbed] = []
        self._span: AbstractContextManager = nullcontext()
        self._hooks = ExitStack()
        self._watch(model)

    def _places(self) -> list[Tensor]:
        """Where pieces are found; of coded ones, first where they are read back into."""
        store = self.store
        self.coder = Coder(store, self.device) if store.wholes else None
        self._whole, self._all_whole, self._asked = False, False, [0] * len(store.pieces)
        self.slots.comes_whole, self.work = self._comes_whole, None
        if not store.format.coded:
            return list(self.slots.places)
        self.work = torch.empty(store.largest[1], dtype=torch.uint8, device=self.device)
        return [self.work, *self.slots.places] if store.wholes else [self.work]

    def _watch(self, model: nn.Module) -> None:
        for piece in self.store.pieces:
            for door in piece.doors:
                hook = door.register_forward_pre_hook(lambda *_, place=piece.index: self._need(place))
                self._hooks.callback(hook.remove)
        last = blocks(model)[-1].register_forward_hook(lambda *_: self._need(TAIL))
        self._hooks.callback(last.remove)

    def write_back_every(self, count: int) -> None:
        """From the next sweep on, write back at every so many of a piece's uploads; nothing that is due is lost."""
        self._every = 0 if self.store.hollow else count
        self._phases = phases([len(payload) for payload in self.store.payloads], self._every)

    # A pass has come to a place.

    def _need(self, place: int) -> None:
        if self._relay is not None:
            self._sights[self._relay.reach(place)].pause(self._bound)
        elif self._place != place:
            self._change(place)
            self._catch_up(self.moves.made)

    def _change(self, place: int) -> None:
        """From one piece to the next."""
        self._span.__exit__(None, None, None)
        self._span = nullcontext()
        self._leave(self._due())
        if place >= 0:
            self._enter(place)
        self._place = BEGIN if place == END else place

    def _enter(self, index: int) -> None:
        piece, loaded, self._place = self.store.pieces[index], self.slots.take(index), index
        self._slot, self._version, self._freed, self._whole = loaded.place, loaded.version, None, loaded.whole
        if self.work is not None and not loaded.whole:
            self._reader(index, loaded.place)()
            self._slot, self._freed = 0, self.bus.here()
        elif self.work is not None:
            self._slot += 1
        made = self._groups.bound(index, self._slot) if self._sides and self._sides[0].terms else None
        self._bound = made is not None
        self.store.bind(piece, made or self._found.parameters[index][self._slot])

    def _reader(self, index: int, place: int) -> Callable[[], None]:
        """What reads a coded piece back from a place."""
        if (index, place) not in self._readers:
            out = [p.detach() for p in self._found.parameters[index][0]]
            made = self.store.format.reader(self.store.pieces[index], self.slots.places[place], out)
            self._readers[index, place] = made
        return self._readers[index, place]

    def _leave(self, write: bool) -> None:
        if self._place < 0:
            return
        piece = self.store.pieces[self._place]
        self.store.bind(piece)
        write = write and self._version > self.store.versions[piece.index]
        here = self._found.parameters[piece.index][self._slot]
        codes = self.coder.code(piece, here, self._slot) if self.coder and write else None
        self.slots.give(piece.index, self._version if write else None, self._freed, codes)
        self._place, self._bound = BEGIN, False

    def _comes_whole(self, index: int) -> bool:
        """Asked once for each upload, which is some pieces ahead of its use."""
        if self._all_whole or not self._every:
            return self._all_whole
        self._asked[index] += 1
        return (self._asked[index] - 1 + self._phases[index]) % self._every == 0

    def _due(self) -> bool:
        """Whether this is the upload of a piece at which it is written back."""
        if self._relay is None or self._place < 0:
            return False
        if self.store.wholes:
            return self._whole
        return self._every > 0 and (self._sweeps + self._phases[self._place]) % self._every == 0

    def _catch_up(self, version: int) -> None:
        if self._place >= 0 and version > self._version and self._found.trained[self._place][self._slot]:
            self.moves.make(self._groups.here(self._place, self._slot), self._version, version)
            self._version = version

    # Passes.

    def sweep(self, sides: Sequence[Side], objective: Callable[[], Any]) -> list[Any]:
        """The objective at each of the points, in one way through all pieces.

        Args:
            sides: with the same version, or rising ones, of which there may be two.
        """
        self._all_whole = False
        self._catch_up_resident(sides[0].version)
        self._sides, self._sights = sides, [self._sight(side) for side in sides]
        ordered = len({side.version for side in sides}) > 1
        relay = self._relay = Relay(len(sides), self._change, self._turn, ordered)

        def seen(number: int) -> Any:
            with self._sights[number]:
                return objective()

        try:
            return relay.run([lambda n=number: seen(n) for number in range(len(sides))], self.device, self._crew)  # type: ignore[misc]
        except BaseException:
            self._leave(False)
            raise
        finally:
            self._span.__exit__(None, None, None)
            self._span, self._relay, self._sides, self._sights = nullcontext(), None, (), []
            self._sweeps += 1
            self._forget()

    def _sight(self, side: Side) -> Perturbed:
        """Weights at a side's point: beside those that are here, or beside what stays where the first side needs it."""
        if side.terms:
            sight = Perturbed((), side.terms, self._slot_bytes)
            sight.known = self._found.known
            return sight
        ahead = self.moves.between(self._resident_version, side.version)
        assert len(ahead) <= 1
        return Perturbed(self._resident, ahead[0].terms if ahead else (), WHOLE)

    def _turn(self, number: int) -> None:
        """A pass goes on: what it finds is at its point."""
        self._span.__exit__(None, None, None)
        side, name = self._sides[number], self._name()
        self._span = self.bus.span(COMPUTE, f"{name} {'+-'[number % 2]}")
        self._span.__enter__()
        self._catch_up(side.version)
        beside = self._groups.beside(self._place, self._slot) if side.terms and self._place >= 0 else None
        if beside and self._bound:
            beside.write([(side.terms, 1.0)])
        self._sights[number].prepare(beside)
        assert self._relay is not None
        if side.version > self._resident_version and all(place == END for place in self._relay.places[:number]):
            self._catch_up_resident(side.version)
            self._sights[number].terms = []

    def _name(self) -> str:
        names = {BEGIN: "embedding", TAIL: "head", END: "head"}
        return names[self._place] if self._place < 0 else self.store.pieces[self._place].name

    def _catch_up_resident(self, version: int) -> None:
        self.moves.make(self._groups.rest, self._resident_version, version)
        self._resident_version = version

    def _forget(self) -> None:
        travelling = [v for v, piece in zip(self.store.versions, self._found.trained, strict=True) if piece[0]]
        self.moves.forget(min([self._resident_version, *travelling]))

    def flush(self) -> None:
        """Make every move everywhere and write it back; the host's pieces are what was trained when this returns.

        Pieces that the host has coded alone are never written: their moves are made whenever they are used. What it has
        both ways comes as it is from now on, to the next sweep: what is looked at is what was trained.
        """
        self._leave(False)
        self._place = BEGIN
        if self.store.wholes:
            self._all_whole = True
            self.slots.afresh()
        made = self.moves.made
        self._catch_up_resident(made)
        behind = [n for n, trained in enumerate(self._found.trained) if trained[0] and self.store.versions[n] < made]
        if behind and not self.store.hollow:
            first, count = self.slots.expected, len(self.store.pieces)
            for step in range(count):
                self._enter((first + step) % count)
                self._catch_up(made)
                self._leave(True)
        self._forget()
        self.store.wait()

    def read(self, piece: Piece) -> list[Tensor]:
        """A piece's values as they are now, on the host."""
        if not self.store.hollow:
            return [p.detach() for p in self.store.parameters[piece.index]]
        self._leave(False)
        self._enter(piece.index)
        self._catch_up(self.moves.made)
        found = [p.detach().to("cpu", copy=True) for p in self._found.parameters[piece.index][self._slot]]
        self._leave(False)
        return found

    def close(self) -> None:
        """Take the hooks off, and give the places back. Moves that were not made are lost: `flush` comes before."""
        self._leave(False)
        self._crew.close()
        self._hooks.close()
        self.slots.close()
        self.work = self.coder = None
