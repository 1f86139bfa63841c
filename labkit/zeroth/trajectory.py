"""A run as its trajectory: 32 bytes a direction, from which the weights come back bitwise.

All that a step adds to the weights is −η/n Σ gᵢ z(seedᵢ) and decay, so seed, g, η and λ are the step. A fine-tuned
model of 13 billion weights in 16 bits, 26 GB, is its pretrained one and 20,000 such rows, 640 kB (Malladi et al. 2023,
arXiv:2305.17333, count less than 0.1 MB: one seed for the run, and 2 bytes for each g).

    header   magic · length · JSON: settings, and a fingerprint of the weights that it began with
    row      step · seed · g · η · λ · loss · flags · checksum      little-endian, appended and synced

g, η and λ are rounded to fp32 before they are used, so that what is stored is what was done. A process killed while it
writes leaves an incomplete last row, or some of a step's rows; both are cut off, and the step is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from labkit.errors import LabError
from labkit.files import write_bytes
from labkit.zeroth.perturb import Weight

MAGIC = b"LABKITZO1\n"
ROW = struct.Struct("<IQffffHH")
SAMPLED = 1024  # values of each tensor in the fingerprint
SKIPPED, MERGED = 1, 2  # flags: no finite loss; the step began in the weights that the last one left, not in w


class Row(NamedTuple):
    """One direction of one step.

    Attributes:
        step, seed: which step, and of its direction.
        projected_gradient: g.
        learning_rate, weight_decay: η and λ in this step.
        loss: mean of both sides.
        flags: of SKIPPED and MERGED.
    """

    step: int
    seed: int
    projected_gradient: float
    learning_rate: float
    weight_decay: float
    loss: float
    flags: int = 0

    def packed(self) -> bytes:
        """The row as it is stored."""
        head = ROW.pack(*self, 0)[:-2]
        return head + struct.pack("<H", zlib.crc32(head) & 0xFFFF)


def rounded(value: float) -> float:
    """To fp32, as a row keeps it; infinite where fp32 ends."""
    return torch.tensor(value, dtype=torch.float32).item()


def fingerprint(weights: Sequence[Weight]) -> str:
    """Of names, shapes, dtypes and some 1,024 values of each tensor: of gigabytes in a moment."""
    digest = hashlib.blake2b(digest_size=16)
    for w in weights:
        flat = w.tensor.reshape(-1)
        digest.update(f"{w.name}{tuple(w.tensor.shape)}{w.tensor.dtype}".encode())
        digest.update(flat[:: max(1, len(flat) // SAMPLED)].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def whole(data: bytes, each: int) -> list[Row]:
    """The rows in `data` up to the first that is damaged, incomplete, or of a step without all its `each` rows."""
    rows: list[Row] = []
    for begin in range(0, len(data) - ROW.size + 1, ROW.size):
        piece = data[begin : begin + ROW.size]
        row = Row(*ROW.unpack(piece)[:-1])
        if row.packed() != piece or row.step != len(rows) // each:
            break
        rows.append(row)
    return rows[: len(rows) // each * each]


class Trajectory:
    """Rows in memory and, where a path is given, in a file that is at no time behind by more than the step being made.

    Args:
        header: what decides the run, with `directions`, the rows of a step, and the `fingerprint`.
        path: of the file; made, or opened and read where it exists.
        writes: False to read only: of several ranks one writes.

    Raises:
        LabError: for a file of another run.
    """

    def __init__(self, header: dict, path: Path | str | None = None, writes: bool = True):
        self.header = json.loads(json.dumps(header))
        self.path = None if path is None else Path(path)
        self.rows: list[Row] = []
        if self.path is not None and self.path.exists():
            self.continue_from(Trajectory.read(self.path))
        self._written = self.path if writes else None
        self._write_whole()

    def continue_from(self, other: Trajectory) -> None:
        """Take over what another run with the same header has done, where it is more than this one has.

        Raises:
            LabError: where the headers differ.
        """
        if other.header != self.header:
            names = [n for n in {**other.header, **self.header} if other.header.get(n) != self.header.get(n)]
            cause = f"The stored trajectory is of another run: {', '.join(sorted(names))} differ."
            raise LabError(cause, "Give another path, or the settings and the model that it was made with.")
        if len(other.rows) > len(self.rows):
            self.rows = list(other.rows)

    def _write_whole(self) -> None:
        # Also cuts off what was being written when a process was killed.
        if self._written is not None:
            write_bytes(self._written, self.packed())

    @classmethod
    def read(cls, path: Path | str) -> Trajectory:
        """A trajectory from its file.

        Raises:
            LabError: where it is none.
        """
        try:
            return cls.unpack(Path(path).read_bytes())
        except OSError as error:
            raise LabError(
                f"{path} cannot be read ({error.strerror}).", "Give a file that a run has written."
            ) from error

    @classmethod
    def unpack(cls, data: bytes) -> Trajectory:
        """A trajectory from a file's bytes.

        Raises:
            LabError: where they are none.
        """
        try:
            begin = len(MAGIC) + 4
            length = int.from_bytes(data[len(MAGIC) : begin], "little")
            if data[: len(MAGIC)] != MAGIC:
                raise ValueError("another kind of file")
            found = cls(json.loads(data[begin : begin + length]))
        except ValueError as error:
            raise LabError(f"This is no trajectory ({error}).", "Give a file that a run has written.") from error
        found.rows = whole(data[begin + length :], found.header["directions"])
        return found

    def packed(self) -> bytes:
        """All of it, as the file holds it."""
        text = json.dumps(self.header).encode()
        return MAGIC + len(text).to_bytes(4, "little") + text + b"".join(row.packed() for row in self.rows)

    def append(self, rows: Iterable[Row]) -> None:
        """A step's rows, on disk when this returns.

        Raises:
            LabError: where they cannot be written; a part of them is cut off when the file is next opened.
        """
        new = list(rows)
        self.rows += new
        if self._written is None:
            return
        try:
            with self._written.open("ab") as file:
                file.write(b"".join(row.packed() for row in new))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            cause = f"A step could not be added to {self._written} ({error.strerror})."
            raise LabError(
                cause, "Free some disk space; the run then goes on from the steps that are stored."
            ) from error

    def steps(self) -> Iterator[list[Row]]:
        """The rows of each step, in order."""
        return (list(group) for _, group in groupby(self.rows, key=lambda row: row.step))

    def __len__(self) -> int:
        return len(self.rows) // self.header["directions"]
