"""Small packages, made on the spot, for tests in which a real pip fetches from a folder."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

from labkit.assets import Asset

CONTENT = bytes(range(256)) * 1000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, content: bytes = CONTENT) -> Asset:
    """A wheel `labkit-test-wheel` 1.0 in `folder`, and the asset that pins its member pack/weights.bin."""
    path = folder / "labkit_test_wheel-1.0-py3-none-any.whl"
    info = "labkit_test_wheel-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("pack/weights.bin", content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: labkit-test-wheel\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return _asset("wheel-asset", "labkit-test-wheel", path, "pack/weights.bin", content)


_BACKEND = """
import os, time
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    {before}
    info = os.path.join(directory, "labkit_test_source-1.0.dist-info")
    os.mkdir(info)
    with open(os.path.join(info, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: labkit-test-source\\nVersion: 1.0\\n")
    return os.path.basename(info)
def build_wheel(*_):
    raise RuntimeError("nothing should be built")
"""


def make_sdist(folder: Path, before: str = "pass", content: bytes = CONTENT) -> Asset:
    """A source package 1.0 in `folder` that runs the statement `before` when pip prepares its metadata."""
    path = folder / "labkit_test_source-1.0.tar.gz"
    top = "labkit_test_source-1.0"
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: labkit-test-source\nVersion: 1.0\n",
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": _BACKEND.format(before=before).encode(),
        "extra/sentences.tar.gz": content,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return _asset("source-asset", "labkit-test-source", path, f"{top}/extra/sentences.tar.gz", content, True)


def _asset(name: str, package: str, path: Path, member: str, content: bytes, sdist: bool = False) -> Asset:
    archive = path.read_bytes()
    return Asset(
        name=name,
        title="a test file",
        version="1.0",
        package=package,
        archive_sha256=sha256(archive),
        archive_size=len(archive),
        member=member,
        size=len(content),
        sha256=sha256(content),
        licence="MIT",
        citation="nobody",
        sdist=sdist,
    )
