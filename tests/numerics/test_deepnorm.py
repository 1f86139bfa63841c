"""DeepNorm's constants against the published table, in the form in which torchscale writes it."""

from __future__ import annotations

import math

import pytest

from labkit.errors import LabError, UnknownNameError
from labkit.numerics import deepnorm


@pytest.mark.parametrize("layers", [1, 6, 100, 1000])
def test_one_sided_constants(layers):
    for found in (deepnorm.encoder_only(layers), deepnorm.decoder_only(layers), deepnorm.constants("deepnorm", layers)):
        assert found.alpha == pytest.approx(math.pow(2.0 * layers, 0.25))
        assert found.beta == pytest.approx(1 / math.pow(8.0 * layers, 0.25))


def test_encoder_decoder_constants():
    encoder, decoder = deepnorm.encoder_decoder(100, 60)
    mixed = math.pow(math.pow(100, 4) * 60, 0.0625)
    assert (encoder.alpha, encoder.beta) == (pytest.approx(0.81 * mixed), pytest.approx(0.87 / mixed))
    assert decoder.alpha == pytest.approx(math.pow(180, 0.25))
    assert decoder.beta == pytest.approx(math.pow(720, -0.25))


def test_glm_took_square_roots():
    found = deepnorm.glm(70)
    assert found.alpha == pytest.approx(11.832, abs=1e-3) and found.beta == pytest.approx(1 / 11.832, abs=1e-4)
    assert deepnorm.decoder_only(70).alpha == pytest.approx(3.440, abs=1e-3)


def test_pre_and_post_ln_scale_nothing():
    for norm in ("pre-ln", "post-ln"):
        assert deepnorm.constants(norm, 64) == deepnorm.DeepNormConstants(1.0, 1.0)


def test_nonsense_is_refused():
    with pytest.raises(UnknownNameError, match="post-ln"):
        deepnorm.constants("postln", 4)
    with pytest.raises(LabError, match="no layers"):
        deepnorm.constants("pre-ln", 0)
    with pytest.raises(LabError, match="decoder_layers"):
        deepnorm.encoder_decoder(6, 0)
