"""The first cell of every notebook: which machine, which scale, one plot style."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.machine import Machine
from labkit.scale import Scale
from labkit.show.display import note
from labkit.show.ranks import register
from labkit.show.style import use_style


@dataclass(frozen=True)
class Lesson:
    """What a notebook runs on: its slug, the machine and the scale."""

    slug: str
    machine: Machine
    scale: Scale


def start(slug: str) -> Lesson:
    """Begin a lesson or a lab: find the machine, choose the scale, set the plot style, say so in one line.

    Args:
        slug: the lesson's folder name, such as `01-floating-point`.
    """
    import os

    import torch

    machine, scale = Machine.here(), Scale.here()
    torch.manual_seed(0)
    # Some lessons start processes; tokenizers warns in each one unless told whether to use threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    use_style()
    register()
    note(f"Lesson {slug} at scale {scale.name} ({scale.model}, {scale.dtype} on {scale.device}): {scale.why}")
    return Lesson(slug, machine, scale)
