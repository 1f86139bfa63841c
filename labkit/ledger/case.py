"""Everything that decides the bytes of one training step, as one value that is checked before anything is allocated.

One step is: forward and loss over all tokens, backward, update, gradients dropped. The bytes meant are those of a
step in the middle of a training, when optimizer states exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from labkit.errors import LabError, UnknownNameError
from labkit.ledger.shapes import Architecture

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
TRAINS = ("full", "lora", "nothing")
BUCKET, BUCKETS = 16 * 2**20, 2  # of gradients on their way to the host (labkit.memory.offload_optimizer)
# Bytes of states a trained value: SGD, with momentum, AdamW's two moments, and the same in 8 bits (lesson 09).
OPTIMIZERS = {"sgd": 0, "momentum": 1, "adamw": 2, "adamw8bit": 2}
ATTENTION = ("flash", "eager")
STAGES = (0, 1, 2, 3)
PEFT = "peft.lora"
ADAPTERS = (PEFT, "lora", "dora")


@dataclass(frozen=True)
class Case:
    """A model, what of it trains and how, and the size of a batch.

    Attributes:
        arch: sizes of the model.
        batch, seq_len: sequences a step, and tokens in each.
        weights: dtype in which the weights are stored.
        compute: dtype of matrix products under autocast; empty: as the weights, without autocast.
        train: "full"; "lora": matrices of rank `rank` beside those named in `targets`; "nothing": forward only.
        adapter: whose: peft's LoRA, or our LoRA or DoRA (`labkit.adapters`), which keep less for the backward pass.
        four_bit: the blocks' matrices are NF4 codes with doubly quantized scales, and read back for each product.
        optimizer: one of OPTIMIZERS.
        master: fp32 master weights beside 16-bit weights; gradients and states are then fp32.
        segments: of checkpointing; 0 keeps every activation, `arch.layers` keeps one tensor a block.
        attention: "flash" keeps no scores where a kernel for that exists (`keeps_scores`); "eager" keeps them.
        stage: of ZeRO: 1 shards optimizer states (and master weights), 2 gradients too, 3 weights too.
        world_size: GPUs among which the stage shards; with stage 0 each holds everything, gradients in buckets.
        device: "cuda" or "cpu": a few operations keep other bytes there.
        fsdp: torch's `fully_shard`, as stage 3: where all weights train, the shards are the fp32 masters, and 16-bit
            weights exist only while they are gathered; adapters are gathered in the frozen weights' dtype.
        offloaded: optimizer states and master weights live on the host, gradients pass through buckets on their way.
    """

    arch: Architecture
    batch: int
    seq_len: int
    weights: str = "float32"
    compute: str = ""
    train: str = "full"
    optimizer: str = "adamw"
    master: bool = False
    rank: int = 8
    targets: tuple[str, ...] = ("q", "v")
    adapter: str = PEFT
    four_bit: bool = False
    segments: int = 0
    attention: str = "flash"
    stage: int = 0
    world_size: int = 1
    device: str = "cuda"
    fsdp: bool = False
    offloaded: bool = False

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("dtype of weights", self.weights, DTYPES),
            ("dtype of products", self.compute or self.weights, DTYPES),
            ("way to train", self.train, TRAINS),
            ("adapter", self.adapter, ADAPTERS),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("kind of attention", self.attention, ATTENTION),
        ):
            if given not in known:
                raise UnknownNameError.among(kind, given, known)
        for name in ("batch", "seq_len", "rank", "world_size"):
            _at_least_one(name, getattr(self, name))
        if self.stage not in STAGES:
            raise LabError(f"ZeRO has no stage {self.stage!r}.", "Give 0 for none, or 1, 2 or 3.")
        if self.fsdp and self.stage != 3:
            raise LabError("fully_shard is stage 3.", "Set stage=3, or leave fsdp out.")
        if self.four_bit and (self.train == "full" or self.fsdp):
            raise LabError("Codes of 4 bits cannot train, nor be gathered here.", "Set train='lora', without fsdp.")
        if not 0 <= self.segments <= self.arch.layers:
            cause = f"{self.arch.layers} layers cannot be cut into {self.segments} segments."
            raise LabError(cause, f"Give 0 for no checkpointing, or 1 to {self.arch.layers}.")
        if self.master and self.weights == "float32":
            raise LabError("Master weights are fp32 copies of 16-bit weights.", "Set weights to bfloat16 or float16.")
        unknown = set(self.targets) - set(self.arch.matrices)
        if unknown:
            raise LabError(
                f"A block has no matrix {', '.join(sorted(unknown))}.", "Choose from q, k, v, o, gate, up, down."
            )

    def with_(self, **changes: Any) -> Case:
        """The same case with other values."""
        return replace(self, **changes)

    @property
    def bucketed(self) -> bool:
        """Whether this is data parallelism, whose gradients are views of buckets that stay from step to step."""
        return self.world_size > 1 and not self.stage and self.train == "full"

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.batch * self.seq_len

    @property
    def stored(self) -> int:
        """Bytes of a stored weight."""
        return DTYPES[self.weights]

    @property
    def product(self) -> int:
        """Bytes of a value that comes out of a matrix product."""
        return DTYPES[self.compute or self.weights]

    @property
    def autocast(self) -> bool:
        """Whether products run in another dtype than the weights'."""
        return bool(self.compute) and self.compute != self.weights

    @property
    def wide_adapters(self) -> bool:
        """Whether fp32 adapters stand beside products of another dtype; `fully_shard` gathers them in that dtype."""
        return self.product < 4 and not self.fsdp

    @property
    def keeps_scores(self) -> bool:
        """Whether backward finds softmax's T × T probabilities kept.

        On CUDA none of torch's fused kernels takes fp32 queries that share keys: they are repeated, and the scores
        written out, as in the eager way.
        """
        shared = self.arch.kv_heads < self.arch.heads
        return self.attention == "eager" or (self.device == "cuda" and self.product == 4 and shared)

    @property
    def trained(self) -> tuple[int, ...]:
        """Sizes of the trained tensors, one number of values each."""
        if self.train == "full":
            return tuple(w.numel for w in self.arch.weights)
        return self.adapters if self.train == "lora" else ()

    @property
    def adapters(self) -> tuple[int, ...]:
        """Sizes of LoRA's A and B beside every target (Hu et al. 2021, arXiv:2106.09685), and of DoRA's lengths."""
        block = []
        for rows, columns in (self.arch.matrices[name].shape for name in self.targets):
            block += [self.rank * columns, self.rank * rows, *([rows] if self.adapter == "dora" else [])]
        return tuple(block) * self.arch.layers

    @property
    def frozen_bytes(self) -> tuple[int, ...]:
        """Bytes of the model's own tensors, one number each."""
        matrices = {id(w) for w in self.arch.matrices.values()} if self.four_bit else set()
        return tuple(four_bit_bytes(w.numel) if id(w) in matrices else w.numel * self.stored for w in self.arch.weights)

    @property
    def updated(self) -> int:
        """Bytes of a value as the optimizer updates it: adapters and master weights are fp32."""
        return 4 if self.master or self.train == "lora" else self.stored


def four_bit_bytes(count: int, double: bool = True) -> int:
    """Bytes of `count` values in 4 bits with a 32-bit scale for each block of 64, or (`double`) with an 8-bit scale
    for each, a 32-bit scale for 256 of those, and their 32-bit mean (Dettmers et al. 2023, arXiv:2305.14314)."""
    blocks = -(-count // 64)
    return -(-count // 2) + (blocks + 4 * -(-blocks // 256) + 4 if double else 4 * blocks)


def _at_least_one(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise LabError(f"{value!r} is no {name.replace('_', ' ')}.", "Give a whole number of at least 1.")
