"""What quantizing the linear layers does to a language model: bytes, and how well it still predicts text.

Perplexity is exp of the mean negative log-likelihood of a token, given the tokens before it in its sentence. It sees
every place; accuracy on a two-class task sees one place and two words, and so forgives far larger errors (Dettmers et
al. 2022, arXiv:2208.07339, and 2023, arXiv:2305.14314, report both). Either may even improve by luck, since an error
in the weights moves a probability up as often as down. The divergence from the model as it was, KL(before || after),
cannot: it is zero where nothing changed and positive everywhere else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from labkit.errors import LabError, UnknownNameError
from labkit.ledger import storage_bytes
from labkit.numerics.quantize.int8 import Linear8bit
from labkit.numerics.quantize.linear import Linear4bit, quantize_linears
from labkit.tasks import Example, Sentiment

# Every way of keeping a linear layer that lesson 09 compares, by the name that tables call it by.
RECIPES: dict[str, Callable[[torch.nn.Linear], torch.nn.Module]] = {
    "int8-tensor": partial(Linear8bit.of, per="tensor", threshold=None),
    "int8-row": partial(Linear8bit.of, threshold=None),
    "llm.int8": Linear8bit.of,
    "int4": partial(Linear4bit.of, book="int4", double=False),
    "fp4": partial(Linear4bit.of, book="fp4", double=False),
    "nf4": partial(Linear4bit.of, book="nf4", double=False),
    "nf4+dq": Linear4bit.of,
}


def quantized(model: torch.nn.Module, recipe: str) -> torch.nn.Module:
    """A copy of `model` whose linear layers (but the head) are kept by `recipe`.

    Raises:
        UnknownNameError: for a name that is none of RECIPES.
    """
    if recipe not in RECIPES:
        raise UnknownNameError.among("recipe", recipe, RECIPES)
    return quantize_linears(copy.deepcopy(model), RECIPES[recipe])


def bits_per_parameter(model: torch.nn.Module) -> float:
    """Stored bits of a weight in the quantized layers, all constants included; over all of them together.

    Raises:
        LabError: when no layer is quantized.
    """
    weights = [layer.weight for layer in model.modules() if isinstance(layer, Linear8bit | Linear4bit)]
    if not weights:
        raise LabError("No linear layer of this model is quantized.", "Quantize it first, as with quantized().")
    return 8 * sum(w.bytes for w in weights) / sum(w.numel for w in weights)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers, each storage once."""
    return storage_bytes([*model.parameters(), *model.buffers()])


@dataclass(frozen=True)
class Reading:
    """What a model made of some text.

    Attributes:
        loss: mean negative log-likelihood of a token, in nats.
        divergence: KL from the reference model's next-token distribution to this one's, mean over the same places,
            in nats; None without a reference.
        tokens: how many tokens were predicted.
    """

    loss: float
    divergence: float | None
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of the loss; infinity beyond what a float holds."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.inference_mode()
def read_text(
    model: torch.nn.Module,
    task: Sentiment,
    examples: Sequence[Example] | None = None,
    batch_size: int = 32,
    reference: torch.nn.Module | None = None,
) -> Reading:
    """Let a model predict every token of some sentences from those before it.

    Args:
        model: a causal language model; it is put in evaluation mode.
        task: gives the tokenizer, the length and (by default) the test sentences, which are read without a prompt.
        examples: other sentences.
        batch_size: sentences at once; short ones first, so that little is padding.
        reference: the model as it was before, for the divergence.

    Raises:
        LabError: when no sentence has a second token.
    """
    device = next(model.parameters()).device
    models = [each.eval() for each in (model, reference) if each is not None]
    texts = sorted((e.text for e in (task.test if examples is None else examples)), key=len)
    sums, tokens = torch.zeros(2, dtype=torch.float64), 0
    for start in range(0, len(texts), batch_size):
        coded = task.tokenizer(
            texts[start : start + batch_size],
            padding=True, truncation=True, max_length=task.seq_len, return_tensors="pt",
        ).to(device)  # fmt: skip
        found, count = _summed(models, coded["input_ids"], coded["attention_mask"])
        sums, tokens = sums + found, tokens + count
    if not tokens:
        raise LabError("There is no token to predict.", "Give sentences of at least two tokens.")
    loss, divergence = (sums / tokens).tolist()
    return Reading(loss, None if reference is None else divergence, tokens)


def _summed(models: list[torch.nn.Module], ids: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """Summed loss and divergence, and of how many tokens; a sentence's first token has nothing before it."""
    # Padding is on the left: where the token before is real, this one is too.
    real = mask[:, :-1] == 1
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    mine, *others = (F.log_softmax(m(**inputs).logits[:, :-1][real].float(), -1) for m in models)
    loss = F.nll_loss(mine, ids[:, 1:][real], reduction="sum")
    divergence = sum(F.kl_div(mine, other, reduction="sum", log_target=True) for other in others)
    return torch.tensor([float(loss), float(divergence)], dtype=torch.float64), int(real.sum())
