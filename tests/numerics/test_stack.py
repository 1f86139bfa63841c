"""The decoder stack against torch's own layer, run by run; its initialization; its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from labkit.errors import LabError
from labkit.numerics import deepnorm
from labkit.numerics.stack import DecoderStack, StackConfig

SMALL = {"width": 16, "heads": 2, "vocabulary": 40, "seq_len": 12}


def filled(norm, layers=2, seeds=(0, 1)):
    """A stack whose biases and gains are random too, so that a forgotten one shows."""
    torch.manual_seed(7)
    stack = DecoderStack(StackConfig(layers, norm, **SMALL), seeds)
    for name, p in stack.named_parameters():
        if name.endswith(("bias", "gain")):
            nn.init.normal_(p, mean=float(name.endswith("gain")), std=0.3)
    return stack


def torch_layer(stack, layer, run):
    """`nn.TransformerEncoderLayer` with the weights of one layer of one run."""
    made = nn.TransformerEncoderLayer(
        16, 2, 64, dropout=0, activation="gelu", batch_first=True, norm_first=stack.config.norm == "pre-ln"
    )
    made.load_state_dict(stack.torch_layer_state(layer, run))
    return made


@pytest.mark.parametrize("norm", ["pre-ln", "post-ln"])
def test_layers_equal_torchs_own(norm):
    stack = filled(norm)
    tokens = torch.randint(40, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    ours = stack.hidden(tokens)
    mask = nn.Transformer.generate_square_subsequent_mask(12)
    for run in range(2):
        x = stack.token_embedding[0, run][tokens[run]] + stack.place_embedding[0, run]
        for layer in range(2):
            x = torch_layer(stack, layer, run)(x, src_mask=mask, is_causal=True)
        if norm == "pre-ln":
            x = F.layer_norm(x, (16,), stack.last_norm_gain[0, run], stack.last_norm_bias[0, run])
        torch.testing.assert_close(ours[run], x.reshape(-1, 16), atol=2e-5, rtol=1e-4)


def test_deepnorm_is_post_ln_with_a_louder_stream():
    stack = filled("deepnorm", layers=1, seeds=(0,))
    layer = torch_layer(stack, 0, 0)
    tokens = torch.randint(40, (1, 3, 12), generator=torch.Generator().manual_seed(0))
    x = stack.token_embedding[0, 0][tokens[0]] + stack.place_embedding[0, 0]
    mask = nn.Transformer.generate_square_subsequent_mask(12)
    alpha = 2**0.25
    x = layer.norm1(alpha * x + layer.self_attn(x, x, x, attn_mask=mask, need_weights=False)[0])
    x = layer.norm2(alpha * x + layer.linear2(F.gelu(layer.linear1(x))))
    torch.testing.assert_close(stack.hidden(tokens)[0], x.reshape(-1, 16), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", deepnorm.NORMS)
def test_runs_do_not_touch_each_other(norm):
    both, alone = filled(norm, seeds=(3, 4)), filled(norm, seeds=(4,))
    with torch.no_grad():
        for name, p in alone.named_parameters():
            p.copy_(dict(both.named_parameters())[name][:, 1:])
    tokens = torch.randint(40, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    pair, single = both(tokens), alone(tokens[1:])
    torch.testing.assert_close(pair[1:], single)
    (pair[0].sum() * float("nan") + pair[1].square().sum()).backward()
    single.square().sum().backward()
    for name, p in alone.named_parameters():
        torch.testing.assert_close(dict(both.named_parameters())[name].grad[:, 1:], p.grad, rtol=1e-4, atol=1e-5)


def test_it_is_causal():
    stack = filled("post-ln", seeds=(0,))
    tokens = torch.randint(40, (1, 1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[..., 7] = (changed[..., 7] + 1) % 40
    before, after = stack(tokens)[0], stack(changed)[0]
    assert torch.equal(before[:7], after[:7]) and not torch.allclose(before[7:], after[7:])


def test_beta_scales_value_output_and_feed_forward_but_not_query_and_key():
    plain, deep = (DecoderStack(StackConfig(32, norm, **SMALL)) for norm in ("post-ln", "deepnorm"))
    beta = (8 * 32) ** -0.25
    for name in ("out", "up", "down"):
        torch.testing.assert_close(getattr(deep, name), beta * getattr(plain, name))
    torch.testing.assert_close(deep.qkv[..., :32], plain.qkv[..., :32])
    torch.testing.assert_close(deep.qkv[..., 32:], beta * plain.qkv[..., 32:])
    # Xavier's normal rule: variance 2 / (rows + columns)
    assert plain.up.var().item() == pytest.approx(2 / (16 + 64), rel=0.03)
    assert plain.qkv.var().item() == pytest.approx(2 / (16 + 16), rel=0.03)


def test_seeds_decide_the_weights():
    a, b = (
        DecoderStack(StackConfig(2, "pre-ln", **SMALL), (5, 6)),
        DecoderStack(StackConfig(2, "pre-ln", **SMALL), (6, 6)),
    )
    assert torch.equal(a.up[:, 1], b.up[:, 0]) and torch.equal(b.up[:, 0], b.up[:, 1])
    assert not torch.equal(a.up[:, 0], a.up[:, 1])


def test_a_pre_ln_stream_grows_and_a_normalized_one_does_not():
    tokens = torch.randint(40, (1, 3, 12), generator=torch.Generator().manual_seed(0))
    grown, kept = (filled_plain(norm).stream_sizes(tokens) for norm in ("pre-ln", "post-ln"))
    assert len(grown) == 17 and grown[-1] > 2 * grown[0]
    assert kept[1:] == pytest.approx([1.0] * 16, rel=1e-3)


def test_spread_is_the_share_that_differs_between_places():
    stack = filled("post-ln", layers=2, seeds=(0, 1))
    tokens = torch.randint(40, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    found = stack.stream_spreads(tokens)
    x = stack.hidden(tokens)[1].detach().double()  # a Post-LN stack ends with its last stream
    wanted = x.var(0, correction=0).sum() / x.square().mean(0).sum()
    assert found.shape == (3, 2) and found[-1, 1].item() == pytest.approx(wanted.item(), rel=1e-5)
    with torch.no_grad():
        stack.token_embedding[0, 1] = stack.token_embedding[0, 1, :1]  # one vector for every token and every place
        stack.place_embedding[0, 1] = 0
    same = stack.stream_spreads(tokens)
    common, apart = stack.stream_parts(tokens)
    assert apart[:, 1].max() < 1e-5 and common[-1, 1] > 0.1
    torch.testing.assert_close((common**2 + apart**2).mean(1).sqrt(), torch.tensor(stack.stream_sizes(tokens)))
    assert same[:, 1].max() < 1e-10 and torch.equal(same[:, 0], found[:, 0])


def filled_plain(norm):
    return DecoderStack(StackConfig(16, norm, **SMALL))


def test_bad_sizes_are_refused():
    with pytest.raises(LabError, match="multiple"):
        StackConfig(2, "pre-ln", width=30, heads=4)
    with pytest.raises(LabError, match="at least one run"):
        DecoderStack(StackConfig(2, "pre-ln"), ())
    with pytest.raises(LabError, match="2 runs"):
        filled("pre-ln", seeds=(0,))(torch.zeros(2, 1, 4, dtype=torch.int64))
