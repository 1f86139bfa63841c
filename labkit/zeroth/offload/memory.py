"""Host memory for what travels: exact to the page, pinned in place; or a file, where memory does not suffice.

Copies between host and GPU are asynchronous, and as fast as the bus, from pinned memory only. Torch's own allocator of
pinned memory rounds up to a power of two: a block of OPT-13B, 629 MB, would take 1,074. Here each piece is a mapping of
its own, rounded up to a page of 4 KiB, which the driver is asked to pin where it lies (cudaHostRegister), several at a
time, since pinning has to touch every page. Pieces are pinned as they are made, so that the memory that a model comes
from can be given back piece by piece.

The file is one that `safetensors` reads, a tensor of bytes for each piece. It is made at its full size before anything
is written (a disk that is too small is found out then), and mapped: the system reads ahead and keeps what fits. A
thread copies between the mapping and a few pinned buffers.
"""

from __future__ import annotations

import json
import mmap
import os
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from torch import Tensor

from labkit.errors import LabError
from labkit.memory.lanes import Bus, Ticket

GIB = 2**30
PAGE = 4096
WORKERS = 8
DECLARED = "LABKIT_HOST_GIB"
PATIENCE_S = 30.0


def room() -> int:
    """Bytes of memory that this process may still take: the machine's, or what its container's limit leaves."""
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no such limit
        return free


def declared() -> int | None:
    """Bytes that the user says the machine has for a model; a virtual machine may show less until it is used."""
    given = os.environ.get(DECLARED, "").strip()
    try:
        return round(float(given) * GIB) if given else None
    except ValueError as error:
        raise LabError(f"{DECLARED}={given} is no number of GiB.", "Give a number, such as 128.") from error


def check_room(nbytes: int) -> None:
    """Raise LabError where `nbytes` are more than there is; before anything is taken."""
    have = declared()
    have = room() if have is None else have
    if nbytes > have:
        cause = f"The blocks need {nbytes / GIB:.1f} GiB of host memory, and {have / GIB:.1f} GiB are free."
        remedy = 'Use a smaller model, fewer bits (transfer="int8") or a file (folder="…")'
        raise LabError(cause, f"{remedy}; {DECLARED} says how much a machine has that grows.")


def _register(address: int, nbytes: int) -> int:
    """Have the driver pin memory; its error code, 0 for none."""
    return int(torch.cuda.cudart().cudaHostRegister(address, nbytes, 0))


def _unregister(pinned: list[Tensor]) -> None:
    for flat in pinned:
        torch.cuda.cudart().cudaHostUnregister(flat.data_ptr())
    pinned.clear()


class HostMemory:
    """Memory for pieces, each its own mapping.

    Args:
        pin: whether copies from and to a GPU are to be asynchronous.

    Attributes:
        nbytes: of all mappings.
    """

    def __init__(self, pin: bool):
        self.nbytes, self._patience = 0, PATIENCE_S
        # The list outlives this object as long as it has to: memory is unpinned before it is unmapped.
        self._pinned: list[Tensor] = []
        self._pin = pin
        if pin:
            torch.cuda.init()
        self._release = weakref.finalize(self, _unregister, self._pinned)

    def allocate(self, sizes: Sequence[int], fill: Callable[[int, Tensor], None]) -> list[Tensor]:
        """Memory of each size in bytes, uint8, pinned and then filled, some at a time.

        Args:
            fill: is given a number and the memory of that number; called from threads.

        Raises:
            LabError: where there is too little, or the driver refuses to pin it; nothing is kept then.
        """
        check_room(sum(sizes))
        before = len(self._pinned)
        workers = max(1, min(WORKERS, os.cpu_count() or 1, len(sizes)))
        with ThreadPoolExecutor(workers, "labkit-pin") as pool:
            waiting = [pool.submit(self._one, number, size, fill, workers) for number, size in enumerate(sizes)]
            try:
                return [found.result() for found in waiting]
            except BaseException:
                for found in waiting:
                    found.cancel()
                pool.shutdown(wait=True)
                _unregister(self._pinned[before:])
                del self._pinned[before:]
                raise

    def _one(self, number: int, size: int, fill: Callable[[int, Tensor], None], workers: int) -> Tensor:
        if declared() is not None:
            self._wait_for(workers * size + GIB)
        length = max(PAGE, -(-size // PAGE) * PAGE)
        try:
            mapping = mmap.mmap(-1, length)
        except OSError as error:
            raise LabError(f"Host memory for a piece of {size / GIB:.2f} GiB is refused ({error}).", _LESS) from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        flat = torch.frombuffer(mapping, dtype=torch.uint8)
        if self._pin:
            self._register(flat)
        self.nbytes += length
        fill(number, flat[:size])
        return flat[:size]

    def _register(self, flat: Tensor) -> None:
        if code := _register(flat.data_ptr(), len(flat)):
            cause = f"The driver refuses to pin {len(flat) / GIB:.2f} GiB of host memory (error {code})."
            raise LabError(cause, _LESS)
        self._pinned.append(flat)

    def _wait_for(self, nbytes: int) -> None:
        """Give a machine that grows the time to; where it does not, go on: it was said to have the memory."""
        while room() < nbytes and self._patience > 0:
            time.sleep(0.1)
            self._patience -= 0.1

    def bus(self, bus: Bus) -> Bus:
        """The bus that pieces of this memory take."""
        return bus


_LESS = 'Close other programs, or use fewer bits (transfer="int8") or a file (folder="…").'


class _Promised(Ticket):
    """A copy that a thread will queue once it has what to copy."""

    def __init__(self, promise: Future):
        self._promise = promise

    def wait(self) -> None:
        self._promise.result().wait()

    def gate(self) -> None:
        self._promise.result().gate()

    def done(self) -> bool:
        return bool(self._promise.done() and self._promise.result().done())


class _FileBus:
    """A bus between a file's mapping and the device, by way of pinned buffers."""

    def __init__(self, bus: Bus, size: int, count: int):
        self._bus = bus
        self._thread = ThreadPoolExecutor(1, "labkit-file")
        self._staging = [torch.empty(size, dtype=torch.uint8, pin_memory=bus.on_gpu) for _ in range(count)]
        self._last = [Ticket() for _ in range(count)]
        self._turn = 0

    def _buffer(self) -> tuple[int, Tensor]:
        self._turn = (self._turn + 1) % len(self._staging)
        self._last[self._turn].wait()
        return self._turn, self._staging[self._turn]

    def upload(self, copies: Sequence[tuple[Tensor, Tensor]], name: str, after: Sequence[Ticket] = ()) -> Ticket:
        """As `Bus.upload`, of one tensor."""

        def read() -> Ticket:
            [(target, source)] = copies
            number, buffer = self._buffer()
            buffer[: len(source)].copy_(source)
            self._last[number] = self._bus.upload([(target, buffer[: len(source)])], name, after)
            return self._last[number]

        return _Promised(self._thread.submit(read))

    def download(self, copies: Sequence[tuple[Tensor, Tensor]], name: str, after: Sequence[Ticket] = ()) -> Ticket:
        """As `Bus.download`, of one tensor."""

        def write() -> Ticket:
            [(target, source)] = copies
            number, buffer = self._buffer()
            ticket = self._bus.download([(buffer[: len(source)], source)], name, after)
            ticket.wait()
            target.copy_(buffer[: len(source)])
            self._last[number] = ticket
            return ticket

        return _Promised(self._thread.submit(write))

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True)


class FileMemory:
    """A file for pieces.

    Args:
        path: of the file, which is made; it belongs to this run and can be deleted after it.
    """

    def __init__(self, path: Path):
        self.path, self.nbytes, self._largest = Path(path), 0, 0

    def allocate(self, sizes: Sequence[int], fill: Callable[[int, Tensor], None]) -> list[Tensor]:
        """As `HostMemory.allocate`, one after the other.

        Raises:
            LabError: where the disk has not so much room.
        """
        header, begins, end = {}, [], 0
        for number, size in enumerate(sizes):
            begins.append(end)
            header[f"piece.{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % PAGE)
        try:
            mapping = self._mapped(len(text).to_bytes(8, "little") + text, end)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            cause = f"A file of {end / GIB:.1f} GiB for the blocks cannot be made at {self.path} ({error.strerror})."
            raise LabError(cause, "Free some disk space, or choose another folder.") from error
        whole = torch.frombuffer(mapping, dtype=torch.uint8)[8 + len(text) :]
        found = [whole[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]
        for number, flat in enumerate(found):
            fill(number, flat)
        self.nbytes, self._largest = end, max(sizes)
        return found

    def _mapped(self, head: bytes, size: int) -> mmap.mmap:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, len(head) + size)
            else:
                file.truncate(len(head) + size)
            file.write(head)
            file.flush()
            return mmap.mmap(file.fileno(), len(head) + size)

    def bus(self, bus: Bus) -> _FileBus:
        """The bus that pieces of this memory take."""
        return _FileBus(bus, self._largest, 3)
