"""What each rank does in the tests of pipelines: our stages beside the whole model and beside torch's."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.errors import LabError
from labkit.ledger import storage_bytes
from labkit.parallel.pipeline import Pipeline
from labkit.parallel.pipeline_schedule import BACKWARD, FORWARD, Action, schedule
from labkit.parallel.pipeline_stage import Stage
from labkit.parallel.tensor import gathered
from labkit.parallel.tensor_traffic import Messages

ROWS, SEQ, WIDTH, LAYERS, MICRO = 16, 8, 16, 5, 8
NAMES = ("gpipe", "1f1b")


def here():
    nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def llama(tied=False):
    """Five layers, which two stages cannot share equally, nor four."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=32, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.2, tie_word_embeddings=tied,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(shape).to(here())


def data(masked=False):
    """A batch; with `masked`, padded on the left, and with labels that the micro-batches have unequally many of."""
    ids = torch.randint(1, 32, (ROWS, SEQ), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.ones_like(ids), ids.clone()
    if masked:
        ids[3, :4] = mask[3, :4] = 0
        labels[:6, :5] = labels[3, :4] = -100
    device = here()
    found = {"input_ids": ids.to(device), "labels": labels.to(device)}
    return found | ({"attention_mask": mask.to(device)} if masked else {})


def stage_of(model, group=None):
    return Stage(copy.deepcopy(model), dist.get_rank(group), dist.get_world_size(group))


def error(ours, theirs):
    """The largest difference, as a share of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def errors(stage, whole):
    """The largest error of the stage's gradients, against those of the same names in the whole model."""
    theirs = dict(whole.named_parameters())
    return max(error(p.grad, theirs[n].grad) for n, p in stage.whole_names().items() if n in theirs)


def head_is_embedding(stage, whole):
    """The last stage's copy of a tied weight has a name that the whole model's parameters lack."""
    names = stage.whole_names()
    return error(names["lm_head.weight"].grad, whole.lm_head.weight.grad) if stage.last else 0.0


def in_pieces(model, batch, pieces):
    """The gradient of the batch, one micro-batch after the other, in one process."""
    count = (batch["labels"][:, 1:] != -100).sum()
    for k in range(pieces):
        model(**{n: t.chunk(pieces)[k] for n, t in batch.items()}, num_items_in_batch=count).loss.backward()
    return model


def refused(make):
    try:
        make()
    except LabError as problem:
        return str(problem)
    return "no error"


def gradients(group=None):
    """Against the whole batch, and the same micro-batches in one process, with both schedules."""
    found = {}
    for name in NAMES:
        for tied, masked, micro in ((False, True, MICRO), (True, True, 4), (True, False, 2)):
            whole, batch = llama(tied), data(masked)
            stage = stage_of(whole, group)
            pieces = in_pieces(copy.deepcopy(whole), batch, micro)
            step = Pipeline(stage, micro, name, group).step(**batch)
            loss = whole(**batch).loss
            loss.backward()
            found[name, tied, masked, micro] = {
                "loss": error(step.loss, loss),
                "gradients": errors(stage, whole),
                "head": head_is_embedding(stage, whole),
                "pieces": errors(stage, pieces),
                "live": step.live,
                "unmeasured": (step.live_bytes, step.ran),
            }
    return found


def pairs():
    """Two pipelines of two stages side by side, each a group of its own."""
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    return gradients(groups[dist.get_rank() // 2])


def steps():
    """Two steps of AdamW, each of two batches whose gradients add up, with tied weights on two ranks."""
    found = {}
    whole = llama(tied=True)
    stage = stage_of(whole)
    pipeline = Pipeline(stage, 4)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, eps=1e-3) for m in (stage, whole)]
    for _ in range(2):
        for batch in (data(), data(masked=True)):
            pipeline.step(**batch)
            whole(**batch).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    theirs = whole.state_dict()
    found["weights"] = max(error(p, theirs[n]) for n, p in stage.whole_names().items())
    weight = stage.tied_weight
    copies = gathered(torch.zeros_like(theirs["lm_head.weight"]) if weight is None else weight.detach(), 0)
    found["copies"] = torch.equal(copies[:32], copies[-32:])
    return found


def measured():
    """Spans, live bytes and messages of a step, and what one micro-batch saves on this stage."""
    found = {}
    batch = data()
    for name in NAMES:
        stage = stage_of(llama())
        pipeline = Pipeline(stage, MICRO, name)
        pipeline.step(**batch)
        stage.zero_grad()
        with Messages() as messages:
            step = pipeline.step(**batch, time=True, count=True)
        one = Pipeline(stage, 1, name)
        alone = one.step(**{n: t[: ROWS // MICRO].clone() for n, t in batch.items()}, count=True)
        found[name] = {
            "ran": step.ran,
            "live": step.live,
            "live_bytes": step.live_bytes,
            "one alone": alone.live_bytes,
            "afterwards": pipeline._recorder.saved.now,
            "sent": messages.counts("send"),
            "received": messages.counts("receive"),
            "weights": storage_bytes(stage.parameters()),
        }
    return found | {"whole": storage_bytes(llama().parameters())}


def torchs():
    """Torch's stages and schedules on the same layers: loss, gradients, messages."""
    found, batch = {}, data()
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def mean_loss(logits, labels):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    for name, kind in zip(NAMES, (ScheduleGPipe, Schedule1F1B), strict=True):
        whole = llama()
        ours, theirs = stage_of(whole), stage_of(whole)
        pipeline = Pipeline(ours, MICRO, name)
        peer = kind(PipelineStage(theirs, rank, ranks, here()), MICRO, loss_fn=mean_loss)
        for _ in range(2):  # torch's first step also tells shapes
            ours.zero_grad()
            theirs.zero_grad()
            with Messages() as mine:
                step = pipeline.step(**batch)
            losses = []
            given = (batch["input_ids"],) if theirs.first else ()
            with Messages() as others:
                peer.step(*given, **({"target": batch["labels"], "losses": losses} if theirs.last else {}))
        pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
        found[name] = {
            "equal": all(torch.equal(a.grad, b.grad) for a, b in pairs),
            "loss": error(step.loss, torch.stack(losses).mean()) if theirs.last else 0.0,
            "messages": [sorted(m.counts("send") + m.counts("receive")) for m in (mine, others)],
        }
    return found


def mutants():
    """What a mistake does to the errors, and to the bytes."""

    def undivided(self, logits, k):
        targets = F.pad(self._batch.labels[k], (0, 1), value=-100)[:, 1:].flatten()
        return F.cross_entropy(logits.flatten(0, 1), targets)

    def mean_of_means(self, logits, k):
        return undivided(self, logits, k) / self.micro_batches

    changes = {
        "none": nullcontext(),
        "not divided": mock.patch.object(Pipeline, "_loss", undivided),
        "mean of means": mock.patch.object(Pipeline, "_loss", mean_of_means),
        "tied apart": mock.patch.object(Pipeline, "_add_tied", lambda self, weight, earlier: None),
    }
    found = {}
    whole, batch = llama(tied=True), data(masked=True)
    whole(**batch).loss.backward()
    for what, change in changes.items():
        stage = stage_of(whole)
        stage.zero_grad()
        with change:
            Pipeline(stage, MICRO).step(**batch)
        found[what] = max(errors(stage, whole), head_is_embedding(stage, whole))
    backward = torch.autograd.backward
    with mock.patch.object(torch.autograd, "backward", lambda *given: backward(*given, retain_graph=True)):
        pipeline = Pipeline(stage_of(llama()), MICRO)
        pipeline._live = Hoard()
        found["hoarded bytes"] = pipeline.step(**data(), count=True).live_bytes
    return found


class Hoard(dict):
    """Micro-batches that are never let go."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def pop(self, k):
        self.kept.append(self[k])
        return super().pop(k)


def own_orders():
    """A schedule of one's own, and what is refused before anything runs."""
    ranks, whole, batch = dist.get_world_size(), llama(), data(masked=True)
    down = [[Action(FORWARD, k) for k in range(4)] + [Action(BACKWARD, k) for k in (3, 2, 1, 0)]] * ranks
    stage = stage_of(whole)
    step = Pipeline(stage, 4, orders=down).step(**batch)
    loss = whole(**batch).loss
    loss.backward()
    found = {"loss": error(step.loss, loss), "gradients": errors(stage, whole)}
    backwards = list(reversed(schedule("1f1b", ranks, 8)))
    blank = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    return found | {
        "deadlock": refused(lambda: Pipeline(stage, 8, orders=backwards)),
        "rows": refused(lambda: Pipeline(stage, 3).step(**batch)),
        "labels": refused(lambda: Pipeline(stage, 4).step(**blank)),
        "ranks": refused(lambda: Pipeline(Stage(llama(), dist.get_rank(), ranks + 1), 4)),
    }


def everything():
    """All of it, in one launch."""
    return {part.__name__: part() for part in (gradients, pairs, steps, measured, torchs, mutants, own_orders)}
