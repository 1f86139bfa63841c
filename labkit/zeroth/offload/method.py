"""ZO-Offload as a method: MeZO's numbers, in the device memory of a few blocks.

(Wang et al. 2025, arXiv:2503.12668; the poster of the seed lectures, whose estimator lacks ε in its denominator.)
Losses, projected gradients and weights are those of `labkit.zeroth.mezo.Mezo` with the same settings, bit for bit, and
so are their trajectories: a run of one goes on with the other. What differs is where the weights are, and when they
move (`labkit.zeroth.offload.engine`).

Of P bytes of blocks, S slots of p bytes and R bytes that stay, a step holds R + S p on the device (and the activations
of both sides of one block), moves P up and P / k down, and makes (k + 1) / 2 moves of every block on average.

The journal is the trajectory: a step's seeds and scalars are on the disk before they act. A process that is killed at
any moment is replaced by another with the same settings and the model as it was loaded, which makes the steps again
from their rows, all of a block's at its next upload, and goes on.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from labkit.errors import LabError, UnknownNameError
from labkit.ledger import Ledger, storage_bytes
from labkit.memory.lanes import Bus
from labkit.memory.timeline import Timeline
from labkit.tasks import Batch
from labkit.zeroth.groups import slot_of
from labkit.zeroth.mezo import RESTORES, Mezo
from labkit.zeroth.mezo_adapters import MezoLora
from labkit.zeroth.offload.choose import MEASURED, Chooser
from labkit.zeroth.offload.engine import Engine, Side
from labkit.zeroth.offload.load import save
from labkit.zeroth.offload.moves import LateExact, LateWalk, Moves
from labkit.zeroth.offload.slots import Slots
from labkit.zeroth.offload.store import Lodging, Store
from labkit.zeroth.perturb import Weight, trained
from labkit.zeroth.pieces import resident
from labkit.zeroth.restore import Restore
from labkit.zeroth.scale_check import check_scale
from labkit.zeroth.trajectory import fingerprint


@dataclass
class ZoOffload(Mezo):
    """Zeroth-order training of every weight, blocks on the host.

    Attributes:
        parts: 1: blocks travel whole; 3: in thirds, so that slots are a third as large.
        slots: places for blocks, or parts of them, on the device. Two overlap upload and compute; where blocks are
            written back, the third lets the next upload begin meanwhile.
        write_back: k: a block is written back at every k-th upload. "measured": the first 33 steps try some, and
            the fastest stays (`labkit.zeroth.offload.choose`); the numbers are the same with each.
        transfer: format that crosses the bus: "" for that of the weights, or one of
            `labkit.zeroth.offload.formats`, in which blocks are never written back.
        renew: k, of coded blocks: at every k-th upload a block comes up as it is, is brought up to date, written back
            and coded anew; the host then holds it both ways. 0: the first codes stay, and moves pile up.
        folder: of a file that holds the blocks where host memory does not; "" for host memory.
        device: that is computed on; "" for the GPU where there is one.
        overlap, synthetic_gb_per_s: see `labkit.memory.lanes.Bus`.
        bus: another bus, such as `labkit.zeroth.offload.simulate.SimulatedBus`.

    Parts, transfer, folder and device are a model's own where it was made in pieces (`labkit.zeroth.offload.load`).
    """

    parts: int = 1
    slots: int = 3
    write_back: int | str = MEASURED
    transfer: str = ""
    renew: int = 0
    folder: str = ""
    device: str = ""
    overlap: bool = True
    synthetic_gb_per_s: float | None = None
    bus: Any = None
    name: str = "zo-offload"

    def watch(self, timeline: Timeline | None) -> None:
        """Record the steps from now on in `timeline`, or no longer."""
        self._timeline = timeline
        if engine := getattr(self, "_engine", None):
            engine.bus.timeline = timeline

    def _check(self) -> None:
        super()._check()
        whole = isinstance(self.write_back, int) and not isinstance(self.write_back, bool) and self.write_back >= 0
        if not whole and self.write_back != MEASURED:
            cause = f"Blocks cannot be written back at every {self.write_back!r}-th upload."
            raise LabError(cause, f'Give a whole number, 1 for every upload, 0 for none, or "{MEASURED}".')
        if not isinstance(self.renew, int) or isinstance(self.renew, bool) or self.renew < 0:
            raise LabError(f"Blocks cannot be coded anew at every {self.renew!r}-th upload.", "Give a whole number.")
        if self.restore not in RESTORES:
            raise UnknownNameError.among("restore", self.restore, RESTORES)

    def _begin(self, model: torch.nn.Module) -> tuple[list[Weight], Restore]:
        """Blocks to the host, the rest to the device."""
        self._origin = next(model.parameters()).device
        store = self._store = Store.of(model) or Store.taking(model, self._lodging())
        if store.engine is not None:
            store.engine.settle()
            store.engine.close()
        device = torch.device(store.lodging.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self._move_rest(model, device)
        weights = self._weights_of(model, store)
        check_scale([w for w in weights if w.tensor.is_contiguous()], self.perturbation_scale, self.seed)
        bus = self.bus or Bus(device, self.overlap, self.synthetic_gb_per_s, getattr(self, "_timeline", None))
        slot = slot_of(weights) if self.slot_mib is None else round(self.slot_mib * 2**20)
        self._moves, store.versions = Moves(), [0] * len(store.pieces)
        places = Slots(store, bus, self.slots)
        fixed = self.write_back if isinstance(self.write_back, int) else 1
        fixed = self.renew if store.format.coded else fixed
        self._engine = Engine(model, store, places, weights, self._moves, slot, fixed)
        tries = self.write_back == MEASURED and not store.format.coded
        self.chooser = Chooser(self._engine.write_back_every) if tries else None
        store.engine = self._engine
        restore: LateWalk | LateExact = LateExact(weights, slot, self._moves, self._engine.flush)
        if self.restore == "walk":
            restore = LateWalk(weights, self._moves, self._engine.flush)
        self._engine.settle = torch.no_grad()(restore.settle)
        return weights, restore

    def _lodging(self) -> Lodging:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return Lodging(self.parts, self.transfer, self.folder, device, both=bool(self.renew))

    def _move_rest(self, model: torch.nn.Module, device: torch.device) -> None:
        """Parameters that do not travel, and all buffers."""
        self._rest = list(resident(model, self._store.pieces).values())
        for p in self._rest:
            p.data = p.data.to(device)
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)

    def _weights_of(self, model: torch.nn.Module, store: Store) -> list[Weight]:
        if not store.hollow:
            return trained(model)
        away = {id(p): p for parameters in store.parameters for p in parameters}
        names = {id(p): name for name, p in model.named_parameters()}
        coded = [Weight(names[n], p.detach(), p.dim() >= 2, frozenset({n})) for n, p in away.items() if p.requires_grad]
        return sorted([*trained(model, away), *coded], key=lambda w: w.name)

    def _fingerprint(self) -> str:
        """Of coded blocks that of their codes."""
        store = self._store
        if not store.hollow:
            return super()._fingerprint()
        codes = [
            Weight(f"{store.lodging.transfer} {piece.name}", payload, True, frozenset())
            for piece, payload in zip(store.pieces, store.payloads, strict=True)
        ]
        return fingerprint([*(w for w in self._weights if w.tensor.is_contiguous()), *codes])

    @property
    def engine(self) -> Engine:
        """What runs the passes, after `prepare`."""
        return self._engine

    def queue(self, seeds: list[int], batch: Batch) -> list[Any]:
        """Queue the objective at both sides of each direction; nothing waits for the device unless it does.

        Returns: ℓ₊ and ℓ₋ of the first direction, and so on; of the objective "loss" as tensors on the device.
        """
        eps, made = self.perturbation_scale, self._moves.made

        def objective() -> Any:
            if self.objective == "loss":
                return self._task.loss(self._model, batch)
            return self._objective(self._model, self._task, batch)

        if self.restore == "exact":
            points = [Side([(seed, side)], made) for seed in seeds for side in (eps, -eps)]
            return self._engine.sweep(points, objective)
        found = []
        for seed in seeds:
            versions = []
            for side in (eps, -eps):
                with self._restore.at([(seed, side)]):
                    versions.append(self._moves.made)
            found += self._engine.sweep([Side((), version) for version in versions], objective)
        return found

    def _evaluate(self, seeds: list[int], batch: Batch) -> list[tuple[float, float]]:
        """Both sides of each direction, read at once."""
        begin = time.perf_counter()
        found = self.queue(seeds, batch)
        values = torch.stack(found).tolist() if isinstance(found[0], Tensor) else list(map(float, found))
        if self.chooser is not None:
            self.chooser.note(time.perf_counter() - begin)
        return list(zip(values[::2], values[1::2], strict=True))

    def measured_step(self, batch: Batch, ledger: Ledger) -> Float[Tensor, ""]:
        """The same step; weights on the device and on the host are counted apart."""
        loss = self.step(batch)
        ledger.measured = {**self.predicted_bytes(), "weights": self.device_bytes(), "activations": 0}
        ledger.host = {"weights": self._store.memory.nbytes}
        return loss

    def device_bytes(self) -> int:
        """Bytes of weights on the device: what stays, and the slots."""
        engine = self._engine
        coding = [] if engine.coder is None else [engine.coder.buffer]
        work = [] if engine.work is None else [engine.work]
        return storage_bytes([*self._rest, *engine.slots.places, *work, *coding])

    def predicted_bytes(self) -> dict[str, int]:
        """By the formula of this file's head; coded blocks are read back into one slot more, and coded into another."""
        (payload, whole), both = self._store.largest, bool(self._store.wholes)
        slots = self.slots * (max(payload, whole) if both else payload) + both * payload
        slots += whole if self._store.format.coded else 0
        rest = sum(p.numel() * p.element_size() for p in self._rest)
        return {"weights": rest + slots, "gradients": 0, "optimizer_states": 0}

    def computing(self) -> AbstractContextManager:
        """Every move made and every block written back; a forward pass fetches blocks one after the other."""
        return super().computing()

    def save(self, folder: Path | str) -> Path:
        """Write the model as it is trained so far, block by block; see `labkit.zeroth.offload.load.save`."""
        return save(self._model, folder)

    def abandon(self) -> None:
        """Give the device's memory back, the blocks as they are: of no use but to be thrown away."""
        self._engine.close()
        self._store.engine = None

    @torch.no_grad()
    def close(self) -> None:
        """Make every move, and take the hooks off. A model that was whole is so again, where it came from."""
        super().close()
        if (engine := getattr(self, "_engine", None)) is None or self._store.engine is not engine:
            return
        if self._store.borrowed:
            self._store.leave(self._model, self._origin, engine.read)
            self._move_rest(self._model, self._origin)
        engine.close()
        self._store.engine = None


@dataclass
class ZoOffloadLora(ZoOffload, MezoLora):
    """Zeroth-order training of adapters of low rank on the device; the frozen blocks only come up, in any format."""

    learning_rate: float = 1e-3
    perturbation_scale: float = 1e-2
    name: str = "zo-offload-lora"
