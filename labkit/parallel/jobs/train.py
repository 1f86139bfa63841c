"""Full fine-tuning on several ranks, by a method's name: the lines that the planner gives for several GPUs.

    torchrun --standalone --nproc-per-node 2 -m labkit.parallel.jobs.train --model tiny --method zero2 --steps 20

Each rank builds the whole model in its host's memory, before the method shards it or the GPU takes it. For a model that
is too large for that, and for training that is saved and gone on with, see `labkit.parallel.jobs.capstone`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from labkit.errors import LabError, UnknownNameError
from labkit.ledger import fit
from labkit.memory.checkpointed import checkpoint_layers
from labkit.parallel.ddp import DDP, TorchDDP
from labkit.parallel.group import device, process_group
from labkit.parallel.jobs.options import at_least_one, parsed
from labkit.parallel.system import leave
from labkit.parallel.zero import Zero1, Zero2, Zero3
from labkit.parallel.zero_torch import TorchFsdp2, TorchZero1
from labkit.run import Run
from labkit.tasks import Sentiment
from labkit.training import train

REPLICATED: dict[str, Any] = {"ddp": DDP, "torch.ddp": TorchDDP, "torch.zero1": TorchZero1}
SHARDED: dict[str, Any] = {"zero1": Zero1, "zero2": Zero2, "zero3": Zero3, "torch.fsdp2": TorchFsdp2}


@dataclass(frozen=True)
class Job:
    """What is trained, and how.

    Attributes:
        model: what `labkit.models` loads, or a published size, which gets random weights.
        method: one of REPLICATED, with fp32 weights, or of SHARDED, with weights of `dtype`.
        batch: sequences a step, over all ranks.
        dtype: of the products.
        checkpointed: compute activations again.
        tests: sentences to be judged on.
    """

    model: str
    method: str = "ddp"
    steps: int = 100
    batch: int = 16
    seq_len: int = 64
    learning_rate: float = 1e-4
    dtype: str = "bfloat16"
    seed: int = 0
    tests: int = 1500
    checkpointed: bool = False

    def checked(self) -> Job:
        """Itself, if it can be run.

        Raises:
            LabError: for an unknown method, or numbers below 1.
        """
        if self.method not in (*REPLICATED, *SHARDED):
            raise UnknownNameError.among("method", self.method, (*REPLICATED, *SHARDED))
        at_least_one(self, "steps", "batch", "seq_len", "tests")
        return self


def trained(job: Job) -> Run:
    """The run, in all ranks alike but for bytes and joules, which are this rank's."""
    from labkit import models, published

    random = published.only_sizes(job.model)
    task = Sentiment.load(model="tiny" if random else job.model)
    task.seq_len, task.test = job.seq_len, task.test[: job.tests]
    model: Any = models.from_random(job.model) if random else models.load(job.model)
    if job.method in REPLICATED:  # the others put their parts on the device themselves
        model = model.to(device())
    if job.checkpointed:
        checkpoint_layers(model)
    sizes: dict[str, Any] = {"steps": job.steps, "batch_size": job.batch, "seed": job.seed}
    return train(model, task, _method(job), model_name=job.model, progress=False, **sizes)


def _method(job: Job) -> Any:
    if job.method in REPLICATED:
        return REPLICATED[job.method](learning_rate=job.learning_rate, compute_dtype=job.dtype)
    return SHARDED[job.method](learning_rate=job.learning_rate, weights=job.dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """As torchrun runs it: rank 0 prints its run; a wrong request is one sentence, and 2."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        job = parsed(Job, "train", __doc__ or "", "--model tiny --method zero2", arguments).checked()
        with process_group():
            run = trained(job)
            if dist.get_rank() == 0:
                print(f"{run}\n\n{run.ledger}")
    except LabError as error:
        if first or isinstance(error, fit.DoesNotFit):
            print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    leave(main())
