"""The ways to train that the planner knows: what decides their bytes, and the lines that run them.

One entry a way. `Way.changes` are fields of a `labkit.ledger.case.Case`; `Way.method` is the Python of a method that
`labkit.train` takes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from labkit.adapters.targets import ALL_LINEAR
from labkit.ledger import MIB
from labkit.ledger.case import BUCKET, Case
from labkit.ledger.shapes import Architecture
from labkit.memory.buckets import bucket_values
from labkit.memory.host_adamw import host_bytes

BF16 = {"weights": "bfloat16"}


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        name: as in tables and on the command line.
        what: in a few words.
        changes: fields of a Case that make it this way.
        imports, method: Python that makes the method.
        job: of several GPUs, the module in `labkit.parallel.jobs` and its options.
        host: bytes on the host for a case, where the way needs any.
    """

    name: str
    what: str
    changes: dict[str, Any]
    method: str
    imports: str = "from labkit.methods import FullFineTuning"
    host: Callable[[Case], int] | None = None
    job: str = ""

    def case(self, arch: Architecture, batch: int, seq_len: int, checkpointing: bool = False) -> Case:
        """The case of this way."""
        segments = arch.layers if checkpointing else 0
        # The matrices of a block have other names in another architecture.
        every = {"targets": tuple(arch.matrices)} if self.changes.get("targets") == ALL_LINEAR else {}
        return Case(arch, batch, seq_len, segments=segments, **{**self.changes, **every})

    def on(self, gpus: int) -> Way:
        """The same way on several GPUs."""
        return replace(self, changes={**self.changes, "world_size": gpus})

    def lines(self, model: str, batch: int, seq_len: int, segments: int = 0, tokenizer: str = "") -> str:
        """Python that trains this way on the course's task.

        Args:
            tokenizer: another model's, for a `model` that is only a configuration: its weights are drawn at random.
        """
        if self.job:
            return self._torchrun(model, batch, seq_len, bool(segments), bool(tokenizer))
        train = f"run = labkit.train(model, task, {self.method}, steps=100, batch_size={batch})"
        imports = ["import labkit", "from labkit import models", self.imports]
        if segments:
            imports.append("from labkit.memory.checkpointed import checkpointed")
            train = f"with checkpointed(model, {segments}):\n    {train}"
        imports += ["from labkit.scale import Scale", "from labkit.tasks import Sentiment"]
        make, quoted = "from_random" if tokenizer else "load", json.dumps(model, ensure_ascii=False)
        if tokenizer:
            imports += ["", "# Only its configuration is known here: random weights, and another model's tokenizer."]
        body = [
            f"model = models.{make}({quoted}, {self._dtype}device=Scale.here().device)",
            f"task = Sentiment.load(model={json.dumps(tokenizer) if tokenizer else quoted})",
            f"task.seq_len = {seq_len}",
            train,
        ]
        return "\n".join([*imports, *([] if tokenizer else [""]), *body])

    @property
    def _dtype(self) -> str:
        """Weights that stay frozen are loaded in the dtype that they will have; in fp32 they might not fit."""
        return f'dtype="{self.changes["weights"]}", ' if self.changes.get("train") == "lora" else ""

    def _torchrun(self, model: str, batch: int, seq_len: int, checkpointed: bool, random: bool) -> str:
        """A command line; `random` where the job will draw weights."""
        ranks = self.changes.get("world_size", 1)
        words = [f"torchrun --standalone --nproc-per-node {ranks} -m labkit.parallel.jobs.{self.job}"]
        words += [f"--model {shlex.quote(model)} --batch {ranks * batch} --seq-len {seq_len} --steps 100"]
        words += ["--checkpointed"] * checkpointed
        told = ["# Only its configuration is known here: random weights, and another model's tokenizer."] * random
        return "\n".join([*told, " \\\n    ".join(words)])


def _host_states(case: Case) -> int:
    """fp32 master weights and two moments, and the buffers through which gradients come (labkit.memory.host_adamw)."""
    count = sum(case.trained)
    capacity = bucket_values(count, getattr(torch, case.weights), BUCKET / MIB)
    return sum(host_bytes(count, len(case.trained), case.stored, capacity, workers=1).values())


LORA = {**BF16, "train": "lora", "adapter": "lora"}
MIXED = "from labkit.numerics.mixed import MixedPrecision"
WAYS = (
    Way("full-fp32", "fp32 weights, AdamW", {}, "FullFineTuning()"),
    Way(
        "full-bf16-autocast",
        "fp32 weights, bf16 products, AdamW",
        {"compute": "bfloat16"},
        'FullFineTuning(compute_dtype="bfloat16")',
    ),
    Way(
        "full-bf16-master",
        "bf16 weights, fp32 master weights, AdamW",
        {**BF16, "master": True},
        'MixedPrecision(weights="bfloat16", compute_dtype="bfloat16", master=True)',
        MIXED,
    ),
    Way(
        "full-adam8bit",
        "fp32 weights, bf16 products, 8-bit moments",
        {"compute": "bfloat16", "optimizer": "adamw8bit"},
        'Adam8bitFineTuning(compute_dtype="bfloat16")',
        "from labkit.numerics.quantize import Adam8bitFineTuning",
    ),
    Way(
        "full-bf16",
        "bf16 weights and moments: updates get lost (lesson 02)",
        BF16,
        'MixedPrecision(weights="bfloat16", compute_dtype="bfloat16")',
        MIXED,
    ),
    Way(
        "offloaded",
        "bf16 weights; master weights, moments and AdamW on the host",
        {**BF16, "offloaded": True},
        'OffloadedFineTuning(weights="bfloat16")',
        "from labkit.memory.offloaded import OffloadedFineTuning",
        _host_states,
    ),
    Way(
        "lora",
        "frozen bf16 weights; LoRA of rank 8 on q and v in fp32",
        LORA,
        'Lora(weights="bfloat16")',
        "from labkit.adapters.tuning import Lora",
    ),
    Way(
        "dora",
        "the same with DoRA",
        {**LORA, "adapter": "dora"},
        'Dora(weights="bfloat16")',
        "from labkit.adapters.dora import Dora",
    ),
    Way(
        "qlora",
        "frozen weights in 4 bits; LoRA of rank 8 on all linear layers in fp32",
        {**LORA, "four_bit": True, "targets": ALL_LINEAR},
        'QLora(weights="bfloat16", dropout=0.0, checkpointing=False)',
        "from labkit.adapters.qlora import QLora",
    ),
)

_ADAPTERS = {**BF16, "train": "lora", "stage": 3, "fsdp": True}
DISTRIBUTED = (
    Way(
        "ddp",
        "fp32 weights, bf16 products, AdamW; everything on each GPU",
        {"compute": "bfloat16"},
        "",
        job="train --method ddp",
    ),
    *(
        Way(
            f"zero{stage}",
            f"bf16 weights, fp32 master weights, AdamW; {what} sharded",
            {**BF16, "master": True, "stage": stage},
            "",
            job=f"train --method zero{stage}",
        )
        for stage, what in ((1, "states"), (2, "states and gradients"), (3, "states, gradients and weights"))
    ),
    Way(
        "torch.fsdp2",
        "fp32 weights, gathered in bf16, AdamW; all sharded by torch",
        {**BF16, "master": True, "stage": 3, "fsdp": True},
        "",
        job="train --method torch.fsdp2",
    ),
    Way(
        "torch.fsdp2+peft.lora",
        "frozen bf16 weights, sharded; LoRA of rank 8 on q and v in fp32",
        _ADAPTERS,
        "",
        job="capstone",
    ),
)
