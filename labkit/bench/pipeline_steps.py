"""What the ranks of table `pipeline` run: one step by a schedule, by tensor parallelism, or on one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from labkit.bench.ranks import settle
from labkit.bench.steps import configuration, median_ms
from labkit.ledger import storage_bytes
from labkit.parallel.group import device, ranks_mesh
from labkit.parallel.pipeline import Pipeline
from labkit.parallel.pipeline_schedule import Ran
from labkit.parallel.pipeline_stage import Stage
from labkit.parallel.tensor_llama import tensor_parallel
from labkit.parallel.tensor_traffic import Messages
from labkit.parallel.zero_torch import local_parts

WARM, TIMED = 2, 3
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """A row: `micro_batches` of `rows` sequences each through the stages; tensor parallelism takes them at once."""

    model: str
    method: str
    dtype: str
    world_size: int
    micro_batches: int
    rows: int
    seq_len: int


def measured(setting: Setting) -> dict[str, Any]:
    """Time, bytes and messages of a step on this rank; of our schedules what ran when, too."""
    here = device()
    model, batch = _model(setting, here), _batch(setting, here)
    if here.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    module, run, timed = MAKERS[setting.method](model, setting, batch)
    del model
    with Messages() as messages:
        run()
    for _ in range(WARM - 1):
        run()
    settle(here)
    if here.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def together() -> None:
        run()
        settle(here)

    step_ms = median_ms(together, TIMED, here.type)
    peak = torch.cuda.max_memory_allocated() / MIB if here.type == "cuda" else None
    found = {
        "backend": dist.get_backend(),
        "step_ms": step_ms,
        "weights_mib": storage_bytes(local_parts(module.parameters())) / MIB,
        "peak_allocated_mib": peak,
        "sent_mib": sum(messages.counts("send")) / MIB,
        "all_reduced_mib": sum(messages.counts("all_reduce")) / MIB,
        "all_reduces": len(messages.counts("all_reduce")),
        "live": None,
        "ran": None,
    }
    if timed is not None:
        step = timed()
        found |= {"live": step.live, "ran": [_plain(ran) for ran in step.ran]}
    return found


def _plain(ran: Ran) -> list[Any]:
    return [ran.stage, ran.action.kind, ran.action.micro_batch, round(ran.start, 3), round(ran.end, 3)]


def _model(setting: Setting, here: torch.device) -> Any:
    """Random weights, the same on every rank."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with here:
        dtype = getattr(torch, setting.dtype)
        return AutoModelForCausalLM.from_config(configuration(setting.model), dtype=dtype).train()


def _batch(setting: Setting, here: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    vocabulary = configuration(setting.model).vocab_size
    ids = torch.randint(vocabulary, (setting.micro_batches * setting.rows, setting.seq_len), generator=generator)
    return {"input_ids": ids.to(here), "labels": ids.to(here)}


Made = tuple[torch.nn.Module, Callable[[], Any], Callable[[], Any] | None]


def _ours(model: Any, setting: Setting, batch: dict[str, Tensor]) -> Made:
    stage = Stage(model, dist.get_rank(), dist.get_world_size())
    pipeline = Pipeline(stage, setting.micro_batches, setting.method)

    def run() -> None:
        stage.zero_grad(set_to_none=True)
        pipeline.step(batch["input_ids"], batch["labels"])

    return stage, run, lambda: pipeline.step(batch["input_ids"], batch["labels"], time=True)


def _torchs(model: Any, setting: Setting, batch: dict[str, Tensor]) -> Made:
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    kind = {"torch.gpipe": ScheduleGPipe, "torch.1f1b": Schedule1F1B}[setting.method]
    stage = Stage(model, dist.get_rank(), dist.get_world_size())
    peer = kind(PipelineStage(stage, stage.index, stage.stages, device()), setting.micro_batches, loss_fn=_mean_loss)
    given = (batch["input_ids"],) if stage.first else ()
    last: dict[str, Any] = {"target": batch["labels"], "losses": []} if stage.last else {}

    def run() -> None:
        stage.zero_grad(set_to_none=True)
        if stage.last:
            last["losses"] = []
        peer.step(*given, **last)

    return stage, run, None


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def _alone(model: Any, setting: Setting, batch: dict[str, Tensor]) -> Made:
    """Accumulation on one device; every rank does the same, and nobody sends."""
    rows = [{name: tensor.chunk(setting.micro_batches)[k] for name, tensor in batch.items()}
            for k in range(setting.micro_batches)]  # fmt: skip

    def run() -> None:
        model.zero_grad(set_to_none=True)
        for micro in rows:
            (model(**micro, use_cache=False).loss / setting.micro_batches).backward()

    return model, run, None


def _tensor(model: Any, setting: Setting, batch: dict[str, Tensor]) -> Made:
    cut = tensor_parallel(model)

    def run() -> None:
        cut.zero_grad(set_to_none=True)
        cut(**batch, use_cache=False).loss.backward()

    return cut, run, None


def _torchs_tensor(model: Any, setting: Setting, batch: dict[str, Tensor]) -> Made:
    """torch's plan for a Llama, each block's input prepared once; the loss on logits that stay cut."""
    from torch.distributed.tensor.parallel import loss_parallel, parallelize_module

    cut = parallelize_module(model, ranks_mesh(), torchs_plan(model.config.num_hidden_layers))
    targets = F.pad(batch["labels"], (0, 1), value=-100)[..., 1:].flatten()

    def run() -> None:
        cut.zero_grad(set_to_none=True)
        with loss_parallel():
            logits = cut(input_ids=batch["input_ids"], use_cache=False).logits
            F.cross_entropy(logits.flatten(0, 1).float(), targets).backward()

    return cut, run, None


def torchs_plan(layers: int, block: bool = True) -> dict[str, Any]:
    """torch's plan for a Llama; with `block` the input of each block is prepared once, as our f does."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel

    whole = Replicate()
    layer: dict[str, Any] = {f"self_attn.{n}_proj": ColwiseParallel() for n in "qkv"}
    layer |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    layer |= {f"mlp.{n}_proj": ColwiseParallel() for n in ("gate", "up")}
    if block:
        layer["self_attn"] = PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": whole}, desired_input_kwarg_layouts={"hidden_states": whole}
        )
        layer["mlp"] = PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole)
    found = {f"model.layers.{i}.{name}": style for i in range(layers) for name, style in layer.items()}
    found["model.embed_tokens"] = RowwiseParallel(input_layouts=whole)
    return found | {"lm_head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)}


MAKERS: dict[str, Callable[[Any, Setting, dict[str, Tensor]], Made]] = {
    "one-process": _alone,
    "gpipe": _ours,
    "1f1b": _ours,
    "torch.gpipe": _torchs,
    "torch.1f1b": _torchs,
    "tensor": _tensor,
    "torch.tensor": _torchs_tensor,
}
