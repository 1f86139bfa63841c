"""Single training steps with adapters, ours and peft's, from the same weights, batches and seeds of dropout."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from labkit.adapters.attach import attach
from labkit.adapters.cost import FormedLinear
from labkit.adapters.dora import DoraLinear
from labkit.adapters.lora import LoraLinear, LoraSpec
from labkit.adapters.targets import ALL_LINEAR, MODULES
from labkit.ledger.shapes import Architecture

LEARNING_RATE = 1e-3
ALPHA = 2.0  # times the rank
KINDS = {"lora": LoraLinear, "dora": DoraLinear, "lora formed": FormedLinear}


@dataclass(frozen=True)
class Setting:
    """One way to make a step.

    Attributes:
        model: name of a configuration (`labkit.bench.steps.configuration`); its weights are random.
        method: "full", "peft.lora", "peft.dora", or one of KINDS.
        dtype: of the frozen weights, or of all.
        adapter_dtype: of what trains beside them.
        targets: "q,v" or "all-linear".
    """

    model: str
    method: str
    dtype: str
    adapter_dtype: str
    batch: int
    seq_len: int
    rank: int = 8
    targets: str = "q,v"
    dropout: float = 0.0

    @property
    def peer(self) -> str:
        """The same by the other library."""
        return self.method.removeprefix("peft.") if "." in self.method else f"peft.{self.method}"


class Steps:
    """A model and its optimizer, ready for steps on random words."""

    def __init__(self, setting: Setting, device: str):
        from labkit.bench.steps import configuration

        self.setting, self.device = setting, device
        shape = configuration(setting.model)
        self.model = _built(setting, shape, device)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(shape.vocab_size, (setting.batch, setting.seq_len), generator=generator)
        self.tokens = words.to(device)

    def forward(self) -> torch.Tensor:
        """The mean loss over all tokens."""
        loss: torch.Tensor = self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss
        return loss

    def run(self) -> torch.Tensor:
        """One step; its loss, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def losses(self, count: int) -> list[float]:
        """Losses of the next steps, with dropout drawn from a seed of its own."""
        torch.manual_seed(2)
        return torch.stack([self.run().float() for _ in range(count)]).tolist()


def _built(setting: Setting, shape: Any, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(deepcopy(shape), dtype=getattr(torch, setting.dtype))
    if setting.method == "full":
        return model.train()
    kind, dtype = Architecture.of(shape).kind, getattr(torch, setting.adapter_dtype)
    targets = ALL_LINEAR if setting.targets == ALL_LINEAR else tuple(setting.targets.split(","))
    if setting.method.startswith("peft."):
        model = _by_peft(setting, model, kind, targets, dtype)
    else:
        spec = LoraSpec(setting.rank, ALPHA * setting.rank, setting.dropout, targets=targets)
        attach(model, spec, dtype=dtype, kind=KINDS[setting.method])
    _draw(model)
    return model.train()


def _by_peft(setting: Setting, model: Any, kind: str, targets: Any, dtype: torch.dtype) -> Any:
    from peft import LoraConfig, get_peft_model

    names = targets if targets == ALL_LINEAR else [MODULES[kind][name] for name in targets]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(
            r=setting.rank,
            lora_alpha=ALPHA * setting.rank,  # type: ignore[arg-type]
            lora_dropout=setting.dropout,
            use_dora=setting.method.endswith("dora"),
            target_modules=names,
            task_type="CAUSAL_LM",
        )
        made = get_peft_model(model, config, autocast_adapter_dtype=dtype == torch.float32)
    return made


@torch.no_grad()
def _draw(model: Any) -> None:
    """The same A in both libraries: by a seed, in the order of the layers."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5
            drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)
