"""Make the tiny model from nothing: `python -m labkit.pretrain --out DIR` (a CUDA GPU, about ten minutes).

SmolLM2-135M-Instruct writes the text, a tokenizer is trained on it, a Llama of 8 M parameters is pretrained on it.
The folder then holds the model, its tokenizer, `training.json` (recipe, sizes, curve) and, beside them, the text.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from labkit import assets, models
from labkit.pretrain.corpus import Corpus, ahead, collect, write
from labkit.pretrain.fit import Recipe, pack, pretrain, tiny_config
from labkit.pretrain.tokenizer import train_tokenizer
from labkit.sentences import read_archive, split

VOCAB, TEXT_FILES = 8192, 4


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m labkit.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--archive", type=Path, help="the rated sentences (default: fetched)")
    parser.add_argument("--writer", help="folder of SmolLM2-135M-Instruct (default: fetched)")
    parser.add_argument("--text", type=Path, help="folder of an earlier run whose text is used again")
    parser.add_argument("--writing-seconds", type=float, default=220)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--batch", type=int, default=2048, help="documents written at once")
    parser.add_argument("--rows", type=int, default=512, help="sequences in a training step")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _written(arguments: argparse.Namespace, sentences: list[str], device: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    folder = arguments.writer or models.prepare(models.SMOL)
    writer: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    writer.to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(arguments.seed)
    batches = write(writer, tokenizer, sentences, arguments.writing_seconds, arguments.batch, arguments.seed)
    return itertools.chain.from_iterable(ahead(batches))


def _save_text(corpus: Corpus, out: Path) -> None:
    """Keep the text, compressed, for another pretraining run."""
    pieces = {f"text-{i}": corpus.documents[i::TEXT_FILES] for i in range(TEXT_FILES)}
    pieces |= {f"held-out-{kind}": documents for kind, documents in corpus.held_out.items()}
    for name, piece in pieces.items():
        with gzip.open(out / f"{name}.jsonl.gz", "wt", encoding="utf-8", compresslevel=6) as file:
            file.writelines(json.dumps(document) + "\n" for document in piece)


def _load_text(folder: Path) -> Corpus:
    """Read what `_save_text` kept."""
    corpus = Corpus()
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            documents = [json.loads(line) for line in file]
        kind = path.name.removesuffix(".jsonl.gz").removeprefix("held-out-")
        if kind in corpus.held_out:
            corpus.held_out[kind] = documents
        else:
            corpus.documents += documents
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    corpus.kinds, corpus.left_out = Counter(facts["documents"]), Counter(facts["left_out"])
    return corpus


def _corpus(arguments: argparse.Namespace, device: str) -> Corpus:
    if arguments.text:
        return _load_text(arguments.text)
    rated = read_archive(arguments.archive or assets.get("vader-archive"))
    return collect(_written(arguments, [r.text for r in split(rated)["train"]], device), rated)


def main() -> None:
    """Write, clean, tokenize, pretrain, save."""
    arguments, device = _arguments(), "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def say(what) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}", flush=True)

    corpus = _corpus(arguments, device)
    say({"documents": len(corpus.documents), "kinds": dict(corpus.kinds), "left_out": dict(corpus.left_out)})
    tokenizer = train_tokenizer(corpus.documents[:: max(1, len(corpus.documents) // 200_000)], VOCAB)
    tokenizer.save_pretrained(arguments.out)
    train = pack(tokenizer, corpus.documents, arguments.seed)
    held_out = {
        kind: pack(tokenizer, documents, arguments.seed) for kind, documents in corpus.held_out.items() if documents
    }
    say({"tokens": len(train), **{f"held_out_{kind}": len(row) for kind, row in held_out.items()}})
    from transformers import LlamaForCausalLM

    torch.manual_seed(arguments.seed)
    model: Any = LlamaForCausalLM(tiny_config(VOCAB, tokenizer.eos_token_id))
    model.to(device)
    recipe = Recipe(epochs=arguments.epochs, rows=arguments.rows, seed=arguments.seed)
    curve = pretrain(model, train, held_out, recipe, say)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    facts = {
        "documents": dict(corpus.kinds), "left_out": dict(corpus.left_out), "tokens": len(train),
        "characters": sum(map(len, corpus.documents)), "recipe": vars(recipe), "curve": curve,
        "machine": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__,
    }  # fmt: skip
    models.seal(arguments.out)
    (arguments.out / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    _save_text(corpus, arguments.out)
    say("saved")


if __name__ == "__main__":
    main()
