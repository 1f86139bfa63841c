"""What each rank does in the tests of tensor parallelism: our cut model beside the whole one."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from itertools import product
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.errors import LabError
from labkit.ledger import storage_bytes
from labkit.ledger.shapes import Architecture
from labkit.parallel import tensor, tensor_llama, tensor_vocabulary
from labkit.parallel.tensor import ColumnParallelLinear, RowParallelLinear, gathered
from labkit.parallel.tensor_llama import full_gradients, full_state_dict, joined, tensor_parallel
from labkit.parallel.tensor_traffic import Messages
from labkit.parallel.tensor_vocabulary import cross_entropy

BATCH, SEQ = 4, 12
SHAPES = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "biased": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
}


def here():
    nccl = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def llama(seed=0, **settings):
    """Two layers, eight heads of queries and four of keys; nothing is zero, biases neither."""
    shape = {
        "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 32,
        "initializer_range": 0.15, "tie_word_embeddings": True, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **settings}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model.to(here())


def batch():
    """Token ids with some padding on the left, and labels of which some do not count."""
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 32, (BATCH, SEQ), generator=draws)
    mask = torch.ones_like(ids)
    mask[1, :3] = ids[1, :3] = 0
    labels = ids.clone()
    labels[1, :3] = labels[2, :7] = -100
    device = here()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def error(ours, theirs):
    """The largest difference, as a share of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def stepped(model, steps=2):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch()).loss.backward()
        optimizer.step()
    return model


def compared(whole, cut, group=None):
    """Errors of the cut model's loss, of its gradients and of its weights after two steps of AdamW."""
    loss, other = whole(**batch()).loss, cut(**batch()).loss
    loss.backward()
    other.backward()
    gradients, theirs = full_gradients(cut, group), {n: p.grad for n, p in whole.named_parameters()}
    assert gradients.keys() == theirs.keys()
    found = {"loss": error(other, loss), "gradients": max(error(gradients[n], theirs[n]) for n in theirs)}
    weights, others = full_state_dict(stepped(cut), group), stepped(whole).state_dict()
    assert weights.keys() == others.keys()
    return found | {"weights": max(error(weights[n], others[n]) for n in others)}


def mutated(shape, **changes):
    """The same errors with functions exchanged, in whichever module they are used."""
    with ExitStack() as stack:
        for module, (name, function) in product((tensor, tensor_llama, tensor_vocabulary), changes.items()):
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, function))
        whole = llama(**SHAPES[shape])
        return compared(whole, tensor_parallel(copy.deepcopy(whole)))


def through(x, group=None):
    """An all-reduce that was forgotten."""
    return x.view_as(x)


def bias_on_every_rank(layer, part):
    """The bias of rows, added before the sum instead of after it."""
    return tensor.leave(F.linear(part, layer.weight, layer.bias), layer.group)


def same_everywhere(tensors):
    """Whether every rank holds the same bits."""
    return all(torch.equal(*pair) for t in tensors for part in [gathered(t.detach()[None], 0)]
               for pair in zip(part[1:], part[:-1], strict=True))  # fmt: skip


def refused(make):
    """The cause and remedy of a LabError."""
    try:
        make()
    except LabError as problem:
        return str(problem)
    return "no error"


def whole_model():
    """Everything about the cut model, against the whole one."""
    found = {shape: compared(w := llama(**SHAPES[shape]), tensor_parallel(copy.deepcopy(w))) for shape in SHAPES}
    found["no g"] = mutated("tied", leave=through)
    found["no f"] = mutated("tied", enter=through)
    with mock.patch.object(RowParallelLinear, "forward", bias_on_every_rank):
        found["bias on every rank"] = mutated("biased")
    whole = llama()
    cut = tensor_parallel(copy.deepcopy(whole))
    ours, theirs = full_state_dict(cut), whole.state_dict()
    found["there and back"] = all(torch.equal(ours[n], theirs[n]) for n in theirs)
    found["joined"] = torch.equal(joined(cut)(**batch()).logits, whole(**batch()).logits)
    stepped(cut)
    named = {n for n, _, _ in tensor_llama.cut_parameters(cut)}
    found["norms stay equal"] = same_everywhere([p for n, p in cut.named_parameters() if n not in named])
    found["loss is equal"] = same_everywhere([cut(**batch()).loss])
    found["one weight"] = cut.lm_head.weight is cut.model.embed_tokens.weight
    return found


def pairs():
    """Each two of the ranks hold a model of their own."""
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    group = groups[dist.get_rank() // 2]
    found = {}
    for shape in SHAPES:
        whole = llama(**SHAPES[shape])
        found[shape] = compared(whole, tensor_parallel(copy.deepcopy(whole), group), group)
    return found | {"bytes": bytes_and_messages(group)}


def bytes_and_messages(group=None):
    """Bytes of the weights, gradients and moments that a rank holds; the messages of a step."""
    found = {}
    for shape in ("tied", "untied"):
        cut = tensor_parallel(llama(**SHAPES[shape]), group)
        optimizer = torch.optim.AdamW(cut.parameters())
        with Messages() as forward:
            loss = cut(**batch()).loss
        with Messages() as backward:
            loss.backward()
        optimizer.step()
        moments = [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
        found[shape] = {
            "weights": storage_bytes(cut.parameters()),
            "gradients": storage_bytes(p.grad for p in cut.parameters()),
            "moments": storage_bytes(moments),
            "forward": forward.counts("all_reduce"),
            "backward": backward.counts("all_reduce"),
            "others": [m for m in forward.seen + backward.seen if m.operation != "all_reduce"],
            "logits": tuple(cut(**batch()).logits.shape),
        }
    return found | {"shapes": {s: Architecture.of(LlamaConfig(**llama(**SHAPES[s]).config.to_dict())) for s in found}}


def generation():
    """Greedy answers with a cache, and logits gathered on every rank."""
    whole = llama().eval()
    cut = tensor_parallel(copy.deepcopy(whole), gather_logits=True).eval()
    data = batch()
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": data["attention_mask"]}
    answers = [model.generate(data["input_ids"], **options) for model in (whole, cut)]
    logits = [model(**data).logits for model in (whole, cut)]
    return {"answers": torch.equal(*answers), "logits": error(logits[1], logits[0])} | compared(whole, cut)


def loss_alone():
    """The cut cross-entropy on logits that overflow an exponential, against torch's on the whole logits."""
    rank, ranks, device = dist.get_rank(), dist.get_world_size(), here()
    draws = torch.Generator().manual_seed(2)
    found = {}
    for scale in (1.0, 1e4):
        logits = (torch.randn(10, 32, generator=draws) * scale).to(device)
        targets = torch.randint(0, 32, (10,), generator=draws).to(device)
        targets[3] = -100
        weights = torch.rand(10, generator=draws).to(device)
        whole = logits.clone().requires_grad_()
        theirs = F.cross_entropy(whole, targets, reduction="none")
        (theirs * weights).sum().backward()
        part = logits.chunk(ranks, -1)[rank].contiguous().requires_grad_()
        with Messages() as messages:
            ours = cross_entropy(part, targets)
            (ours * weights).sum().backward()
        gradient = whole.grad.chunk(ranks, -1)[rank]
        found[scale] = (error(ours, theirs), (part.grad - gradient).abs().max().item(), messages.counts("all_reduce"))
    found["outside"] = refused(lambda: cross_entropy(part, torch.full((10,), 32, device=device)))
    return found


def refusals():
    """What cannot be cut says so, and stays as it was."""
    ranks = dist.get_world_size()
    uneven = llama(hidden_size=8 * (ranks + 1), num_attention_heads=ranks + 1, num_key_value_heads=ranks + 1)
    found = {
        "query heads": refused(lambda: tensor_parallel(uneven)),
        "key heads": refused(lambda: tensor_parallel(llama(num_key_value_heads=ranks // 2))),
        "vocabulary": refused(lambda: tensor_parallel(llama(vocab_size=33))),
        "width": refused(lambda: tensor_parallel(llama(intermediate_size=47))),
        "dropout": refused(lambda: tensor_parallel(llama(attention_dropout=0.1))),
        "twice": refused(lambda: tensor_parallel(tensor_parallel(llama()))),
        "other weights": refused(lambda: tensor_parallel(llama(seed=dist.get_rank()))),
        "no llama": refused(lambda: tensor_parallel(nn.Linear(2, 2))),
        "subclass": refused(lambda: ColumnParallelLinear(nn.Bilinear(2, 2, 2))),
    }
    return found | {"untouched": type(uneven.lm_head) is nn.Linear and type(uneven.model.embed_tokens) is nn.Embedding}
