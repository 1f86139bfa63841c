"""Models made in pieces: from a checkpoint's shards or at random, block after block into host memory; and saved so.

The model's frame (embedding, last norm, head, and no block) is made by transformers where it is to compute. Blocks are
made without memory (torch's device "meta"), and their values go from the shard, or from a generator on the device,
straight to the host memory that they stay in, in the format that they travel in. At no time is there a second copy of
more than a few blocks.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labkit.errors import LabError
from labkit.zeroth import noise
from labkit.zeroth.offload.store import Lodging, Store
from labkit.zeroth.pieces import Entry, Piece, blocks, cut, resident

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARD_BYTES = 4 * 2**30


def frame(config: PretrainedConfig, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model whose blocks have no memory; the rest is drawn at random on `device`, in evaluation mode.

    Raises:
        LabError: for a model without a list of decoder layers.
    """
    from transformers import AutoModelForCausalLM

    short = copy.deepcopy(config)
    layers = short.num_hidden_layers
    short.num_hidden_layers = 1
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(short, dtype=dtype)
    stack, shape = blocks(model), model.config
    shape.num_hidden_layers = layers
    kind: Any = type(stack[0])
    with torch.device("meta"):
        made = [kind(shape, layer_idx=number).to(dtype) for number in range(layers)]
    del stack[:]
    stack.extend(made)
    return model.eval()


def at_random(config: PretrainedConfig, dtype: torch.dtype, lodging: Lodging, seed: int = 0) -> PreTrainedModel:
    """A model with random weights: matrices normal, as the configuration says, biases 0, norms 1.

    Raises:
        LabError: where there is no room.
    """
    torch.manual_seed(seed)
    model = frame(config, dtype, lodging.device)
    draw = _drawing(model, lodging.device, seed)
    return _stored(model, lodging, lambda piece: [draw(entry) for entry in piece.entries])


def on_device(config: PretrainedConfig, dtype: torch.dtype, device: str, seed: int = 0) -> PreTrainedModel:
    """The same model with all its weights on the device, made there."""
    torch.manual_seed(seed)
    model = frame(config, dtype, device)
    draw = _drawing(model, device, seed)
    for entry in [entry for piece in cut(model) for entry in piece.entries]:
        entry.module._parameters[entry.attribute] = nn.Parameter(draw(entry))
    return model


def _drawing(model: nn.Module, device: str, seed: int) -> Callable[[Entry], Tensor]:
    """What draws a parameter's values: the same ones in whatever pieces it travels."""
    shape: Any = model.config
    std = float(getattr(shape, "init_std", getattr(shape, "initializer_range", 0.02)))
    names = {(id(m), a): f"{path}.{a}" for path, m in model.named_modules() for a in m._parameters}

    def draw(entry: Entry) -> Tensor:
        value = torch.empty(entry.shape, dtype=entry.dtype, device=device)
        if len(entry.shape) < 2:
            return value.fill_(float(entry.attribute == "weight"))
        own, _ = noise.key(seed, names[id(entry.module), entry.attribute])
        return value.normal_(0, std, generator=torch.Generator(device).manual_seed(own))

    return draw


def _stored(model: Any, lodging: Lodging, fill: Any) -> Any:
    Store(model, lodging, fill)
    if lodging.device != "cpu":
        torch.cuda.empty_cache()  # what the blocks were made in
    return model


def from_checkpoint(folder: Path | str, dtype: torch.dtype, lodging: Lodging) -> PreTrainedModel:
    """A model from a folder of safetensors, as `save_pretrained` writes it.

    Raises:
        LabError: for a shard or a tensor that is missing or of another shape, before anything is loaded; where there
            is no room.
    """
    from labkit import models

    folder = Path(folder)
    model = frame(models.from_file(folder / "config.json"), dtype, lodging.device)
    shelf = Shelf(folder)
    names = _names(model)
    shelf.check({name: p.shape for name, p in model.named_parameters()}, names)
    with torch.no_grad():
        for identity, p in resident(model, cut(model, lodging.parts)).items():
            p.copy_(shelf.read(names[identity]))
    by_entry = {(id(m), a): names[id(p)] for m in model.modules() for a, p in m._parameters.items() if p is not None}
    return _stored(
        model, lodging, lambda piece: [shelf.read(by_entry[id(e.module), e.attribute]) for e in piece.entries]
    )


def _names(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter."""
    found: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(p), []).append(name)
    return found


class Shelf:
    """A checkpoint's tensors, read one at a time.

    Raises:
        LabError: for a folder without safetensors, or where a shard is missing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            if (folder / INDEX).exists():
                index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            else:
                index = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        except (OSError, ValueError, KeyError) as error:
            raise LabError(
                f"{folder} holds no safetensors ({error}).", "Give a folder with a model's files."
            ) from error
        self._where: dict[str, str] = index
        if missing := sorted({file for file in index.values() if not (folder / file).exists()}):
            cause = f"{len(missing)} of the checkpoint's files are missing in {folder}: {', '.join(missing[:3])}."
            raise LabError(cause, "Fetch them again; nothing was loaded.")

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self._folder / file, framework="pt")
        except SafetensorError as error:
            raise LabError(f"{self._folder / file} is damaged ({error}).", "Fetch it again.") from error

    def _name(self, names: list[str]) -> str:
        """The one that the files have: some were saved without the outermost module."""
        for name in (*names, *(n.removeprefix("model.") for n in names)):
            if name in self._where:
                return name
        raise LabError(f"The checkpoint in {self._folder} has no {names[0]}.", "Give the files of this very model.")

    def check(self, shapes: dict[str, torch.Size], names: dict[int, list[str]]) -> None:
        """Raise LabError where a tensor is missing or of another shape."""
        of = {name: group for group in names.values() for name in group}
        files: dict[str, Any] = {}
        for name, shape in shapes.items():
            found = self._name(of[name])
            if (where := self._where[found]) not in files:
                files[where] = self._open(where)
            file = files[where]
            if found not in file.keys() or (have := tuple(file.get_slice(found).get_shape())) != tuple(shape):  # noqa: SIM118
                what = "missing" if found not in file.keys() else f"of shape {have}, not {tuple(shape)}"  # noqa: SIM118
                raise LabError(f"{found} is {what} in {self._where[found]}.", "Give the files of this very model.")

    def read(self, names: list[str]) -> Tensor:
        """A tensor, on the host."""
        name = self._name(names)
        with self._open(self._where[name]) as file:
            found: Tensor = file.get_tensor(name)
        return found


def save(model: Any, folder: Path | str, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a model as `save_pretrained` would, a shard at a time; an old folder is replaced when all are written.

    Moves that are noted down are made before, and a walk goes home.

    Raises:
        LabError: where it cannot be written; the folder is as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    store = Store.of(model)
    if store is not None and store.engine is not None:
        store.engine.settle()
    part: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        where: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(_shards(model, store, shard_bytes)):
            file = f"model-{number + 1:05d}.safetensors"
            save_file(shard, part / file, metadata={"format": "pt"})
            where |= dict.fromkeys(shard, file)
            total += sum(t.nbytes for t in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        part.chmod(0o755)  # a temporary folder is its owner's alone
        (part / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        model.config.save_pretrained(part)
        return _replaced(folder, part)
    except (OSError, SafetensorError) as error:
        cause = f"The model could not be written to {folder} ({error})."
        raise LabError(cause, "Free some disk space, or choose another folder; what was there is as it was.") from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _replaced(folder: Path, part: Path) -> Path:
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _shards(model: nn.Module, store: Store | None, shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Named tensors, each once, in groups of about so many bytes."""
    shard: dict[str, Tensor] = {}
    for name, value in _tensors(model, store):
        if shard and sum(t.nbytes for t in shard.values()) + value.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = value.contiguous()
    if shard:
        yield shard


def _tensors(model: nn.Module, store: Store | None) -> Iterator[tuple[str, Tensor]]:
    names = {(id(m), a): f"{path}.{a}" for path, m in model.named_modules() for a in m._parameters}
    away = set() if store is None else {names[id(e.module), e.attribute] for p in store.pieces for e in p.entries}
    for name, p in model.named_parameters():
        if name not in away:
            yield name, p.detach().cpu()
    for piece in store.pieces if store is not None else ():
        for entry, value in zip(piece.entries, _values(store, piece), strict=True):
            yield names[id(entry.module), entry.attribute], value


def _values(store: Any, piece: Piece) -> list[Tensor]:
    if store.engine is not None:
        return list(store.engine.read(piece))
    if not store.hollow:
        return [p.detach() for p in store.parameters[piece.index]]
    whole = [torch.empty(e.shape, dtype=e.dtype) for e in piece.entries]
    store.format.decode(piece, store.payloads[piece.index], whole)
    return whole
