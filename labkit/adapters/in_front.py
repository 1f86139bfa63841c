"""What prefix and prompt tuning share: trained positions in front of a decoder's input, by a hook on the decoder.

A transformers model keeps its decoder inside (`model.get_decoder()`): what stands around it, the head, the loss and
`generate`, never learns of the positions in front. They need three things each time:

    attention mask    ones in front, [batch, length + seq]; None stays None
    positions         whoever counts them starts after those in front
    the cache         filled once, at its first use

Where no `position_ids` are given the decoder counts by itself: OPT leaves padding out, Llama counts it (the distance to
what is in front then grows with a row's padding on the left). peft leaves it so, and this does.

Older versions of transformers call the cache `past_key_values`, newer ones `cache`; the signature tells which.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from labkit.adapters.targets import OWN
from labkit.errors import LabError

NAME = "in_front"
"""Attribute of the model that holds what is in front; part of the model's parameters and of its state."""


class InFront(nn.Module):
    """Trained positions in front of a decoder's input.

    Args:
        length: how many.
    """

    kind = "in front"

    def __init__(self, length: int):
        super().__init__()
        setattr(self, OWN, True)
        self.length = length
        self._handles: list[Any] = []

    def enter(self, decoder: nn.Module, arguments: dict[str, Any]) -> None:
        """Change the decoder's arguments, by name, before its forward pass. Each kind's own part."""
        raise NotImplementedError

    def leave(self, decoder: nn.Module, output: Any) -> None:
        """Change what the decoder returns, in place. Each kind's own part."""
        raise NotImplementedError

    def hook(self, decoder: nn.Module) -> None:
        """Be called around the decoder's forward pass."""
        self._handles = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after),
        ]

    def unhook(self) -> None:
        """Be called no longer."""
        while self._handles:
            self._handles.pop().remove()

    def _before(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        arguments = {**dict(zip(_names(decoder), args, strict=False)), **kwargs}
        mask = arguments.get("attention_mask")
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dim() != 2:
                cause = f"A {self.kind} needs an attention mask of [batch, seq]."
                raise LabError(cause, "Call the model with the tokenizer's mask, and `generate` with its usual cache.")
            arguments["attention_mask"] = torch.cat([mask.new_ones(len(mask), self.length), mask], dim=1)
        arguments.pop("cache_position", None)  # counted without what is in front; decoders count it themselves
        self.enter(decoder, arguments)
        return (), arguments

    def _after(self, decoder: nn.Module, args: tuple, output: Any) -> None:
        self.leave(decoder, output)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.kind} of {self.length}"


def _names(decoder: nn.Module) -> list[str]:
    return list(inspect.signature(decoder.forward).parameters)


def cache_name(decoder: nn.Module) -> str:
    """The argument by which this decoder takes its cache; empty where it takes none."""
    return next((name for name in ("cache", "past_key_values") if name in _names(decoder)), "")


def decoder_of(model: Any, kind: str) -> nn.Module:
    """The decoder within a language model.

    Raises:
        LabError: where there is none that takes embeddings, a mask and a cache.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    needed = {"inputs_embeds", "attention_mask"}
    if decoder is None or not needed <= set(_names(decoder)) or not cache_name(decoder):
        cause = f"A {kind} needs a decoder that takes embeddings, a mask and a cache; {type(model).__name__} has none."
        raise LabError(cause, "Give a decoder-only language model of transformers.")
    return decoder


def check_length(model: Any, length: int, kind: str) -> None:
    """Raise LabError where `length` is no number of positions that this model can have in front."""
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise LabError(f"{length!r} is no length of a {kind}.", "Give a whole number of at least 1.")
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and length >= most:
        raise LabError(f"A {kind} of {length} fills all {most} positions of this model.", "Give a smaller length.")


def put_in_front(model: nn.Module, front: InFront) -> nn.Module:
    """Freeze a model, in place, and put `front` in front of its decoder's input; return the model.

    Raises:
        LabError: where something is in front already.
    """
    decoder = decoder_of(model, front.kind)
    if isinstance(there := getattr(model, NAME, None), InFront):
        raise LabError(f"This model has a {there.kind} already.", "Call `take_from_front(model)` first.")
    model.requires_grad_(False)
    setattr(model, NAME, front)
    front.hook(decoder)
    return model


def front_of(model: nn.Module) -> InFront:
    """What is in front.

    Raises:
        LabError: where nothing is.
    """
    front = getattr(model, NAME, None)
    if not isinstance(front, InFront):
        raise LabError("Nothing is in front of this model's input.", "Attach a prefix or a prompt first.")
    return front


def take_from_front(model: nn.Module) -> nn.Module:
    """Take a prefix or a prompt off; the model is the frozen one again."""
    front_of(model).unhook()
    delattr(model, NAME)
    return model


def real_tokens(task: Any, length: int, text: str = "") -> Tensor:
    """`length` token ids, [length]: those of `text`, again and again, or else of the task's training prompts in order.

    Raises:
        LabError: where that gives no tokens, or the task has no tokenizer for the text.
    """
    if text and not hasattr(task, "tokenizer"):
        raise LabError(f"The task {task.name} has no tokenizer for {text!r}.", "Leave the text empty.")
    ids: list[int] = list(task.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
    if not text:
        for example in task.train:
            batch = task.batch([example])
            ids += batch.input_ids[batch.attention_mask.bool()].tolist()
            if len(ids) >= length:
                break
    if not ids:
        raise LabError("There are no words to start from.", 'Give a text with words, or start "random".')
    return torch.tensor((ids * (-(-length // len(ids))))[:length])
