"""What is trained: the course's tiny model, SmolLM2-135M, or any Hugging Face causal language model.

- `tiny`: Llama's architecture, 8.0 M parameters, pretrained for this course (`labkit.pretrain`), in `data/models/tiny`.
- `smollm2-135m`: SmolLM2-135M-Instruct (Ben Allal et al. 2025, arXiv:2502.02737; Apache-2.0), from a 4-bit GGUF file.
  Transformers needs some 25 s to unpack that file, so it is unpacked once and kept as fp16 safetensors in the cache;
  the weights carry the 4-bit file's rounding, and fp16 adds less than 2^-11 of it.
- any other name: an id on the Hugging Face hub, or a local folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from labkit import assets, paths
from labkit.errors import LabError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TINY = paths.DATA / "models" / "tiny"
SMOL, SMOL_ASSET = "smollm2-135m", "smollm2-135m-gguf"
DIGESTS = "sha256.json"
ANSWER_SECONDS = 3  # for the hub's first word


def load(name: str, dtype: torch.dtype | str = torch.float32, device: str | None = None) -> PreTrainedModel:
    """Load a causal language model in evaluation mode.

    Args:
        name: `tiny`, `smollm2-135m`, a hub id or a folder.
        dtype: of the weights.
        device: where to put it (default: the CPU).

    Raises:
        LabError: when the files are damaged, or the model cannot be had.
    """
    from transformers import AutoModelForCausalLM

    model = _from_pretrained(AutoModelForCausalLM, name, dtype=_dtype(dtype))
    return model.to(device or "cpu").eval()


def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; it pads on the left, so that the last column holds the last token of every row."""
    from transformers import AutoTokenizer

    tokens = _from_pretrained(AutoTokenizer, name)
    tokens.padding_side = tokens.truncation_side = "left"
    if tokens.pad_token is None:
        tokens.pad_token = tokens.eos_token
    return tokens


def config(name: str) -> PretrainedConfig:
    """The model's configuration, without its weights; also of a published model by its name, and of a `config.json`.

    Raises:
        LabError: when it cannot be had, after seconds where there is no network.
    """
    from transformers import AutoConfig

    from labkit import published

    if name in (*published.OPT, *published.LLAMA):
        return published.config(name)
    if name.endswith(".json"):
        return from_file(Path(name))
    if name not in ("tiny", SMOL) and not Path(name).exists():
        _ask_hub(name)
    return _from_pretrained(AutoConfig, name)


def from_file(path: Path) -> PretrainedConfig:
    """The configuration in a `config.json`.

    Raises:
        LabError: for a file that is not there, or no model's configuration.
    """
    from transformers import AutoConfig

    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        cause = f"{path} is no model's configuration ({type(error).__name__}: {str(error)[:120]})."
        raise LabError(cause, "Give a config.json with its model_type.") from error


def _ask_hub(name: str) -> None:
    """Ask once for a configuration that is not in the hub's cache: the hub's own client asks six times.

    It is right to try again where hundreds of MB are at stake; who made a plan waits for an answer.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(hub.try_to_load_from_cache(name, "config.json"), str):
            return
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json"), timeout=ANSWER_SECONDS)
    except (HfHubHTTPError, HFValidationError):
        return  # the hub has answered, or the name is none: the client says it better
    except Exception as error:  # of one of several HTTP clients, whichever this version of the hub's uses
        raise _unavailable(name, f"the hub does not answer: {error}") from error


def _unavailable(name: str, why: str) -> LabError:
    return LabError(
        f"The model {name!r} could not be loaded ({why.splitlines()[0][:160]}).",
        "Check the id and the network, or use 'tiny' or 'smollm2-135m', which need no hub.",
    )


def from_random(name: str, seed: int = 0, dtype: torch.dtype | str = torch.float32, device: str | None = None):
    """The same architecture with weights drawn anew, as they are before pretraining."""
    from transformers import AutoModelForCausalLM

    shape = config(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape, dtype=_dtype(dtype))
    return model.to(device or "cpu").eval()


def prepare(name: str) -> Path | str:
    """Make a model ready to load offline; return its folder, or its hub id where the hub keeps it."""
    if name == "tiny":
        return _verified(TINY, "Restore it with: git checkout data/models/tiny.")
    return _unpacked_smol() if name == SMOL else name


def parameters(model: torch.nn.Module, trainable: bool = False) -> int:
    """Number of parameters (tied ones once), or of those that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise LabError(f"There is no dtype {dtype!r}.", "Use torch's names, such as float32 or bfloat16.")
    return found


def _from_pretrained(kind, name: str, **options):
    from transformers.utils import logging

    place = prepare(name)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for a load of half a second is noise in a notebook
    try:
        return kind.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        raise _unavailable(name, str(error)) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _sha256(path: Path) -> str:
    facts = path.stat()
    return _digest(path, facts.st_size, facts.st_mtime_ns)


@cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, read once a process as long as its size and time stay the same.

    A task's tokenizer, a configuration and a model come from one folder, and all of it is checked each time.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(folder: Path, remedy: str) -> Path:
    """Check every file in the folder against its recorded SHA-256."""
    try:
        digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        wrong = [file for file, digest in digests.items() if _sha256(folder / file) != digest]
    except (OSError, ValueError) as error:
        raise LabError(f"The model in {folder} is incomplete ({error}).", remedy) from error
    if wrong:
        raise LabError(f"The model in {folder} is damaged: {', '.join(wrong)}.", remedy)
    return folder


def seal(folder: Path) -> None:
    """Record the SHA-256 of every file in a model's folder, as `load` checks it."""
    digests = {p.name: _sha256(p) for p in sorted(folder.iterdir()) if p.suffix in {".json", ".safetensors"}}
    digests.pop(DIGESTS, None)
    digests.pop("training.json", None)
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def _unpacked_smol() -> Path:
    folder = paths.cache_dir() / "models" / f"{SMOL}-{assets.ASSETS[SMOL_ASSET].sha256[:12]}"
    if folder.exists():
        try:
            return _verified(folder, "")
        except LabError:
            shutil.rmtree(folder)  # a damaged copy of what can be made again
    gguf = assets.get(SMOL_ASSET)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
    try:
        _unpack(gguf, part)
        seal(part)
        part.replace(folder)
    except OSError as error:
        if not folder.exists():  # else another process was faster, and its copy is as good
            raise LabError(
                f"SmolLM2 could not be unpacked into {folder.parent} ({error.strerror or error}).",
                "Free 300 MB there, or set LABKIT_CACHE to a folder that you may write to.",
            ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _unpack(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model as fp16 safetensors.

    A model that was loaded from GGUF refuses `save_pretrained`, so its weights move to one built from its config.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    shape = loaded.config
    if hasattr(shape, "quantization_config"):
        del shape.quantization_config
    fresh = AutoModelForCausalLM.from_config(shape)
    fresh.load_state_dict(loaded.state_dict())
    fresh.to(torch.float16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)
