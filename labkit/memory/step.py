"""The step that a `Case` describes, built from real parts: transformers' model, peft's adapters, torch's optimizers.

It runs on real tensors, to be measured, and under fake tensors, to be traced (`labkit.ledger.trace`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from labkit.adapters.attach import attach
from labkit.adapters.dora import DoraLinear
from labkit.adapters.lora import LoraLinear, LoraSpec
from labkit.adapters.targets import MODULES
from labkit.errors import LabError
from labkit.ledger import optimizer_tensors
from labkit.ledger.case import PEFT, Case
from labkit.ledger.trace import BLOCK, Trace, Tracker


class Step:
    """Model, optimizer and one batch of tokens: the first words of the vocabulary in order, over and over.

    Args:
        case: what to build.
        config: transformers' configuration of `case.arch`.
        device: where; "cpu" under fake tensors.
        model: if it exists already.
    """

    def __init__(self, case: Case, config: Any, device: str, model: torch.nn.Module | None = None):
        self.case, self.device = case, device
        self.model = model or build(case, config, device)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.masters = [torch.nn.Parameter(p.detach().float()) for p in trained] if case.master else []
        self.trained, self.updated = trained, self.masters or trained
        self.optimizer = _optimizer(case, self.updated) if self.updated else None
        self.tokens = (torch.arange(case.tokens, device=device) % case.arch.vocab).view(case.batch, case.seq_len)

    def warm_up(self) -> None:
        """Give the optimizer its states, as a training in its middle has them."""
        if self.optimizer is None:
            return
        for parameter in self.updated:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.clear()

    def clear(self) -> None:
        """Drop the gradients."""
        for parameter in (*self.trained, *self.masters):
            parameter.grad = None

    def forward(self) -> Tensor:
        """The mean loss over all tokens."""
        case = self.case
        dtype = getattr(torch, case.compute) if case.autocast else None
        grad = torch.no_grad() if case.train == "nothing" else nullcontext()
        with grad, torch.autocast(self.device, dtype, enabled=case.autocast):
            return self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss

    def backward(self, loss: Tensor) -> None:
        """Gradients, with master weights in fp32 as soon as all are there."""
        loss.backward()
        self.to_masters()

    def to_masters(self) -> None:
        """Each 16-bit gradient becomes its master's in fp32, and is freed."""
        for parameter, master in zip(self.trained, self.masters, strict=False):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def update(self) -> None:
        """The optimizer's step, and the masters' way back into the weights."""
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter, master in zip(self.trained, self.masters, strict=False):
            parameter.copy_(master)

    def run(self) -> float:
        """One whole step; the loss."""
        with self.checkpointing():
            loss = self.forward()
            if self.case.train != "nothing":
                self.backward(loss)
                self.update()
        self.clear()
        return float(loss.detach())

    def checkpointing(self) -> AbstractContextManager:
        """In which the model's blocks run in checkpointed segments, if the case wants them."""
        if not self.case.segments:
            return nullcontext()
        from labkit.memory.checkpointed import checkpointed

        return checkpointed(self.model, self.case.segments)


def build(case: Case, config: Any, device: str) -> torch.nn.Module:
    """The model with random weights, what trains in it requiring gradients."""
    from transformers import AutoModelForCausalLM

    attention = "sdpa" if case.attention == "flash" else "eager"
    dtype = getattr(torch, case.weights)
    # transformers writes dtype and attention into the configuration that it builds from, and keeps it.
    config = deepcopy(config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    if case.train == "lora":
        return _adapted(case, model).train()
    return model.requires_grad_(case.train == "full").train()


def _adapted(case: Case, model: Any) -> Any:
    """The model with the case's adapters."""
    if case.adapter == PEFT:
        import peft

        names = [MODULES[case.arch.kind][name] for name in case.targets]
        return peft.get_peft_model(model, peft.LoraConfig(r=case.rank, target_modules=names))
    kind = DoraLinear if case.adapter == "dora" else LoraLinear
    return attach(model, LoraSpec(case.rank, targets=case.targets), kind=kind)


def _optimizer(case: Case, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if case.optimizer == "adamw8bit":
        from labkit.numerics.quantize import Adam8bit

        return Adam8bit(parameters, lr=1e-5)
    if case.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    momentum = 0.9 if case.optimizer == "momentum" else 0.0
    # Not fused: torch has no fake version of that kernel, and would run it on real memory.
    return torch.optim.SGD(parameters, lr=1e-5, momentum=momentum, foreach=True)


def trace(case: Case, config: Any, round_to: int = BLOCK) -> Trace:
    """Follow one step of a training in its middle under fake tensors.

    Raises:
        LabError: for an optimizer that must see values.
    """
    if case.optimizer == "adamw8bit" and case.train != "nothing":
        cause = "8-bit Adam looks at its values, and fake tensors have none."
        raise LabError(cause, "Predict by formula, or trace with adamw and count 2 bytes a value.")
    model = build(case, config, "meta")
    with FakeTensorMode(allow_non_fake_inputs=True), _one_sequence_a_row(), _attention_of(case):
        _fake(model)
        for module in model.modules():
            if hasattr(module, "layerdrop"):
                module.training = False  # it would draw a number a layer and compare it, and here it has no value
        step = Step(case, config, "cpu", model)
        step.warm_up()
        return follow(step, round_to)


def _fake(model: torch.nn.Module) -> None:
    """Give every parameter and buffer a fake storage; tied ones share it."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        kinds: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for kept in kinds:
            for name, tensor in kept.items():
                if tensor is not None and id(tensor) not in made:
                    new = torch.empty(tensor.shape, dtype=tensor.dtype)
                    trained = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(new, tensor.requires_grad) if trained else new
                if tensor is not None:
                    kept[name] = made[id(tensor)]


@contextmanager
def _one_sequence_a_row() -> Iterator[None]:
    """transformers looks for several sequences packed into a row, cannot see values here, and would make a mask."""
    with mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None):
        yield


def _attention_of(case: Case) -> AbstractContextManager:
    """torch's unfused attention where a GPU would take it, since fake tensors stand on a CPU, which has a fused one."""
    if case.keeps_scores and case.attention == "flash":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def follow(step: Step, round_to: int = BLOCK) -> Trace:
    """One step under a tracker, on real or fake tensors."""
    tracker = Tracker(round_to)
    tracker.register(step.model.parameters(), "weights")
    tracker.register(step.masters, "master_weights")
    tracker.register((*step.model.buffers(), step.tokens), "buffers")
    if step.optimizer is not None:
        tracker.register(optimizer_tensors(step.optimizer), "optimizer_states")
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: tracker.register([p.grad], "gradients")) for p in step.trained
    ]
    head = step.model.get_output_embeddings()  # type: ignore[operator]
    with tracker, tracker.logits_of(head), step.checkpointing():
        tracker.place = "forward"
        with tracker.saving():
            loss = step.forward()
        if step.case.train != "nothing":
            tracker.place = "backward"
            loss.backward()
            tracker.place = "update"
            step.to_masters()
            tracker.register((m.grad for m in step.masters if m.grad is not None), "gradients")
            step.update()
        step.clear()
        del loss
        tracker.place = "end"
        tracker.mark()
    for hook in hooks:
        hook.remove()
    return tracker.trace
