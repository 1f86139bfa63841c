"""Bytes by category: predicted by formula, traced under fake tensors, measured, and the residual.

- `counting`: what is there now, counted on real tensors, and the record that holds both sides.
- `shapes`: a transformers configuration as the numbers that a formula needs.
- `case`: everything that decides the bytes of one training step.
- `activations`: what autograd keeps for the backward pass, operation by operation.
- `predict`: all categories and the peak, by formula.
- `trace`: what a tracker sees of the same step, under fake tensors, which have shapes and no memory, or real ones.
- `segments`, `flops`: where checkpointing cuts a stack, and how many operations a step takes.
- `gpus`, `fit`: how many bytes there are, and what is said where they do not suffice.
- `perfetto`: a trace as a file for Perfetto.
"""

from labkit.ledger.counting import (
    CATEGORIES,
    MIB,
    Ledger,
    measure,
    optimizer_tensors,
    saved_for_backward,
    storage_bytes,
)

__all__ = [
    "CATEGORIES",
    "MIB",
    "Ledger",
    "measure",
    "optimizer_tensors",
    "saved_for_backward",
    "storage_bytes",
]
