"""The capstone: bf16, FSDP2 and LoRA on a model that is built in shards: train, judge, save, go on, generate.

    torchrun --standalone --nproc-per-node 2 -m labkit.parallel.jobs.capstone --model tiny --steps 20 --out run
    torchrun --standalone --nproc-per-node 4 -m labkit.parallel.jobs.capstone --model tiny --steps 40 --resume run
    torchrun --standalone --nproc-per-node 1 -m labkit.parallel.jobs.capstone --model tiny --resume run \
        --generate "A film of rare beauty. It was"

    from labkit.parallel.jobs.capstone import Recipe, capstone
    launch(capstone, 2, Recipe("tiny", steps=20, out="run"))

A folder goes on at any number of ranks. A model of which only the sizes are known (`opt-30b`, say) gets random weights
and the tiny model's tokenizer: its bytes and its times are true, what it learns means nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from labkit.energy import EnergyMeter
from labkit.errors import LabError
from labkit.files import write_text
from labkit.ledger import Ledger, fit
from labkit.parallel import fsdp_checkpoint
from labkit.parallel.data import shard_batch
from labkit.parallel.fsdp_lora import FsdpLora
from labkit.parallel.group import device, process_group
from labkit.parallel.jobs.options import at_least_one, parsed
from labkit.parallel.progress import report
from labkit.parallel.sharded_weights import skeleton
from labkit.parallel.system import leave
from labkit.tasks import Sentiment
from labkit.training import order

RECIPE = "recipe.json"
WORDS = 12  # that are generated
_DECIDES = ("model", "dtype", "rank", "batch", "seed")  # what a folder cannot be gone on with otherwise


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how.

    Attributes:
        model: what `labkit.models` loads, or a published size.
        steps: in all, those of a folder that is resumed among them.
        stop: after so many of them, as if time were over; 0 for the last.
        batch: sequences a step, over all ranks.
        dtype: of the frozen weights and of the products.
        rank: of the adapters.
        checkpointed: compute activations again.
        tests: sentences to be judged on, before and after; 0 for none.
        out, resume: folder to write to, and to go on from; empty for none.
        generate: a prompt to go on with, without and with the adapters, in place of a training.
    """

    model: str
    steps: int = 100
    stop: int = 0
    batch: int = 16
    seq_len: int = 64
    learning_rate: float = 1e-3
    dtype: str = "bfloat16"
    rank: int = 8
    checkpointed: bool = False
    seed: int = 0
    tests: int = 400
    out: str = ""
    resume: str = ""
    generate: str = ""

    @property
    def last(self) -> int:
        """The step after which this run ends."""
        return min(self.stop or self.steps, self.steps)

    def checked(self) -> Recipe:
        """Itself, if it can be run.

        Raises:
            LabError: for numbers below 1, or a folder that holds another recipe or none.
        """
        at_least_one(self, "steps", "batch", "seq_len", "rank")
        if self.generate and not self.resume:
            raise LabError("There is nothing to generate from.", "Name the folder of a training with --resume.")
        if self.resume:
            _same(self, Path(self.resume))
        return self


def _same(recipe: Recipe, folder: Path) -> None:
    try:
        before = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"{folder} holds no training.", "Name the folder that --out named.") from error
    for name in _DECIDES:
        if before.get(name) != getattr(recipe, name):
            cause = f"{folder} was trained with {name} {before.get(name)}, and this run has {getattr(recipe, name)}."
            raise LabError(cause, f"Give --{name} {before.get(name)}, or train anew.")


def capstone(recipe: Recipe) -> dict[str, Any]:
    """Run a recipe in all ranks; what this rank found.

    Returns:
        with `generate`: `before` and `after`, texts. Else: `accuracy_before`, `accuracy`; `losses` of the steps made
        here; `predicted`, `measured`: bytes of this rank by category; `peak_allocated`, `joules`: on a GPU;
        `step_seconds`, `tokens` of all ranks, `build_s`, `save_s`, `trainable_params`, `world_size`, `done`.
    """
    recipe.checked()
    task, method, net, build_s = _built(recipe)
    try:
        done = fsdp_checkpoint.load(method, recipe.resume) if recipe.resume else 0
        if recipe.generate:
            return _generated(method, task, recipe.generate)
        if done >= recipe.last:
            raise LabError(f"{recipe.resume} has {done} steps already.", f"Give --steps above {done}.")
        found: dict[str, Any] = {"world_size": dist.get_world_size(), "done": done, "build_s": build_s}
        found["trainable_params"] = sum(p.numel() for p in net.parameters() if p.requires_grad)
        found["accuracy_before"] = judged(net, task, recipe.tests)
        found |= _trained(recipe, method, task, done)
        found["accuracy"] = judged(net, task, recipe.tests)
        return found | {"save_s": _saved(recipe, method)}
    finally:
        method.close()


def _saved(recipe: Recipe, method: FsdpLora) -> float | None:
    """Seconds that saving took; None where there is no folder to save in."""
    folder, begun = recipe.out or recipe.resume, time.perf_counter()
    if not folder:
        return None
    fsdp_checkpoint.save(method, folder)
    if dist.get_rank() == 0:
        write_text(Path(folder) / RECIPE, json.dumps(asdict(recipe), indent=1) + "\n")
    dist.barrier()  # whoever goes on from the folder finds it whole
    return time.perf_counter() - begun


def _built(recipe: Recipe) -> tuple[Sentiment, FsdpLora, nn.Module, float]:
    """Task, method and model, which is sharded and filled, and the seconds that it took."""
    from labkit import models, published

    random = published.only_sizes(recipe.model)
    task = Sentiment.load(model="tiny" if random else recipe.model)
    task.seq_len = recipe.seq_len
    method = FsdpLora(
        weights=recipe.dtype,
        learning_rate=recipe.learning_rate,
        rank=recipe.rank,
        checkpointed=recipe.checkpointed,
        base="" if random else recipe.model,
        seed=recipe.seed,
    )
    begun = time.perf_counter()
    net = skeleton(models.config(recipe.model), getattr(torch, recipe.dtype)).train()
    method.prepare(net, task, recipe.steps)
    return task, method, net, time.perf_counter() - begun


def _trained(recipe: Recipe, method: FsdpLora, task: Sentiment, done: int) -> dict[str, Any]:
    """The steps that are still to be made."""
    here, losses, seconds, tokens, end = device(), [], [], 0, recipe.last
    ledger = Ledger(predicted=method.predicted_bytes())
    if here.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    meter = EnergyMeter(str(here))
    with fit.explained(ledger, here):
        for number, examples in enumerate(order(task, recipe.batch, recipe.seed, end)):
            if number < done:
                continue
            begun, batch = time.perf_counter(), task.batch(examples)
            last = number + 1 == end
            losses.append((method.measured_step(batch, ledger) if last else method.step(batch)).item())
            seconds.append(time.perf_counter() - begun)
            tokens += batch.tokens
            report(number + 1 - done, end - done)
    return {
        "losses": losses,
        "predicted": ledger.predicted,
        "measured": ledger.measured,
        "peak_allocated": torch.cuda.max_memory_allocated() if here.type == "cuda" else None,
        "joules": meter.joules(),
        "step_seconds": seconds,
        "tokens": tokens,
    }


@torch.no_grad()
def judged(model: nn.Module, task: Sentiment, count: int, batch_size: int = 64) -> float | None:
    """Share of the first `count` test sentences that the model gets right; each rank asks it about its part.

    All ranks have to call a sharded model equally often, and so one without a sentence left asks about one that does
    not count. (`labkit.training.evaluate` runs in inference mode, whose tensors a later backward pass refuses.)
    """
    examples = sorted(task.test[:count], key=lambda e: len(e.text))
    if not examples:
        return None
    training = model.training
    model.eval()
    right = torch.zeros(1, dtype=torch.float64)
    for batch in task.batches(examples, batch_size):
        mine = shard_batch(batch, dist.get_rank(), dist.get_world_size())
        hits, _ = task.score(model, mine.batch.to(device()))
        right += hits * (mine.weight > 0)
    model.train(training)
    total = right.to(device(), torch.float32)
    dist.all_reduce(total)
    return total.item() / len(examples)


@torch.no_grad()
def _generated(method: FsdpLora, task: Sentiment, prompt: str) -> dict[str, Any]:
    """The likeliest next words, without the adapters and with them."""
    method._model.eval()
    ids = task.tokenizer(prompt, return_tensors="pt").to(device())
    count = ids["input_ids"].shape[1]

    def text() -> str:
        out = method.peft.generate(
            **ids, max_new_tokens=WORDS, do_sample=False, pad_token_id=task.tokenizer.pad_token_id
        )
        return str(task.tokenizer.decode(out[0, count:], skip_special_tokens=True)).strip()

    with method.peft.disable_adapter(), method.computing():
        before = text()
    with method.computing():
        return {"before": before, "after": text()}


def told(reports: list[dict[str, Any]]) -> str:
    """What rank 0 prints of what all ranks found."""
    first = reports[0]
    if "after" in first:
        return f"without adapters: {first['before']}\nwith adapters:    {first['after']}"
    few = max(1, len(first["losses"]) // 4)
    early, late = (sum(part) / few for part in (first["losses"][:few], first["losses"][-few:]))
    mib = [sum(found["measured"].values()) / 2**20 for found in reports]
    asked = [sum(found["predicted"].values()) / 2**20 for found in reports]
    lines = [
        f"ranks: {first['world_size']}; trained: {first['trainable_params']:,}; built in {first['build_s']:.1f} s",
        f"steps {first['done'] + 1} to {first['done'] + len(first['losses'])}: "
        f"mean loss {early:.3f} of the first {few}, {late:.3f} of the last {few}",
        f"standing on a rank: {max(mib):.2f} MiB measured, {max(asked):.2f} MiB predicted",
    ]
    if first["accuracy"] is not None:
        lines.append(f"accuracy: {first['accuracy_before']:.3f} before, {first['accuracy']:.3f} after")
    if None not in (joules := [found["joules"] for found in reports]):
        lines.append(f"energy: {sum(joules) / len(first['losses']):.1f} J a step")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """As torchrun runs it: rank 0 prints what came out; a wrong request is one sentence, and 2."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        recipe = parsed(Recipe, "capstone", __doc__ or "", "--model tiny --steps 20 --out run", arguments).checked()
        with process_group():
            reports: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(reports, capstone(recipe))
            if dist.get_rank() == 0:
                print(told(reports))
    except LabError as error:
        if first or isinstance(error, fit.DoesNotFit):  # which may happen to one rank; the rest happens to all
            print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    leave(main())
