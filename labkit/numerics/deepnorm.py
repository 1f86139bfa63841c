r"""DeepNorm: the two constants that keep a very deep transformer's first updates small.

Wang et al. (2022, "DeepNet: Scaling Transformers to 1,000 Layers", arXiv:2203.00555). A sub-layer G (attention or
feed-forward) joins the residual stream in one of three ways:

    Pre-LN      x + G(LN(x))             the stream is never normalized; a last LN stands before the output
    Post-LN     LN(x + G(x))             Vaswani et al. 2017, arXiv:1706.03762
    DeepNorm    LN(alpha · x + G(x))     with some of G's weights drawn with gain beta < 1

The larger alpha and the smaller beta, the less a sub-layer contributes, and the less a change of its weights changes
the output. With N encoder and M decoder layers (a layer has an attention and a feed-forward sub-layer) the table is

    encoder only       alpha = (2N)^(1/4)                     beta = (8N)^(-1/4)
    decoder only       alpha = (2M)^(1/4)                     beta = (8M)^(-1/4)
    encoder-decoder    encoder: 0.81 (N^4 M)^(1/16)           0.87 (N^4 M)^(-1/16)
                       decoder: (3M)^(1/4)                    (12M)^(-1/4)

(The authors' code, torchscale, divides an encoder's weights by (N^4 M)^(1/16) / 1.15 in that third case, so that its
beta has 1.15 in place of 0.87 = 1/1.15. The table counts here.)

beta is the gain of the Xavier initialization of the value, output and both feed-forward matrices. Query and key keep
gain 1: they only decide where attention looks, so that their scale does not reach the size of the output.

The lecture ("Efficient Tuning of Large Language Models", 2023) says in one line to use DeepNorm instead of Pre-LN, as
GLM-130B did (Zeng et al. 2023, arXiv:2210.02414, section 2.1). GLM-130B did not take the paper's constants, though, but
alpha = (2N)^(1/2) and beta = (2N)^(-1/2): at its 70 layers 11.8 in place of 3.4 (`glm`).
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.errors import LabError, UnknownNameError

NORMS = ("pre-ln", "post-ln", "deepnorm", "deepnorm-glm")


@dataclass(frozen=True)
class DeepNormConstants:
    """`alpha` multiplies the residual stream, `beta` is the gain of value, output and feed-forward weights."""

    alpha: float
    beta: float


def _positive(**layers: int) -> None:
    for name, count in layers.items():
        if count < 1:
            raise LabError(f"A stack with {name} = {count} has no layers.", "Give at least one layer.")


def encoder_only(layers: int) -> DeepNormConstants:
    """Constants of an encoder without a decoder (BERT). Raises LabError without layers."""
    _positive(layers=layers)
    return DeepNormConstants(alpha=(2 * layers) ** 0.25, beta=(8 * layers) ** -0.25)


def decoder_only(layers: int) -> DeepNormConstants:
    """Constants of a decoder without an encoder (GPT). Raises LabError without layers."""
    return encoder_only(layers)


def encoder_decoder(encoder_layers: int, decoder_layers: int) -> tuple[DeepNormConstants, DeepNormConstants]:
    """Constants of the encoder and of the decoder of a translation model. Raises LabError without layers."""
    _positive(encoder_layers=encoder_layers, decoder_layers=decoder_layers)
    mixed = (encoder_layers**4 * decoder_layers) ** (1 / 16)
    encoder = DeepNormConstants(alpha=0.81 * mixed, beta=0.87 / mixed)
    return encoder, DeepNormConstants(alpha=(3 * decoder_layers) ** 0.25, beta=(12 * decoder_layers) ** -0.25)


def glm(layers: int) -> DeepNormConstants:
    """GLM-130B's constants for a stack of `layers`: square roots for fourth roots. Raises LabError without layers."""
    _positive(layers=layers)
    return DeepNormConstants(alpha=(2 * layers) ** 0.5, beta=(2 * layers) ** -0.5)


def constants(norm: str, layers: int) -> DeepNormConstants:
    """Constants of a decoder-only stack for one of NORMS; Pre-LN and Post-LN have alpha = beta = 1.

    Raises UnknownNameError for another name, LabError without layers.
    """
    if norm not in NORMS:
        raise UnknownNameError.among("normalization", norm, NORMS)
    deep = {"deepnorm": decoder_only, "deepnorm-glm": glm}
    _positive(layers=layers)
    return deep[norm](layers) if norm in deep else DeepNormConstants(1.0, 1.0)
