"""Checkpointing: the gradients of an ordinary pass bit for bit, and what is refused."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from stacks import drawn, stack, through_torch
from torch import nn
from torch.utils import checkpoint as library
from torch.utils.flop_counter import FlopCounterMode

from labkit.errors import LabError
from labkit.ledger import saved_for_backward
from labkit.memory.checkpointing import best_segments, checkpoint, checkpoint_sequential, predicted_bytes, runs


def gradients(net: nn.Module, run, x: torch.Tensor, dtype=None) -> list[torch.Tensor]:
    """Output, gradients of the input and of every weight, and the next random number."""
    net.zero_grad()
    x = x.detach().clone().requires_grad_(x.requires_grad)
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = run(x)
    y.float().square().sum().backward()
    given = [x.grad] if x.requires_grad else []
    return [y.detach(), *given, *(p.grad.clone() for p in net.parameters() if p.grad is not None), torch.rand(3)]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]):
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("wanted", [True, False], ids=["input-grad", "weights-only"])
@pytest.mark.parametrize("segments", [1, 2, 4, 6])
def test_gradients_and_random_numbers_are_those_of_an_ordinary_pass(segments, wanted, dropout, dtype):
    net, x = stack(dropout=dropout), drawn(4, 16).requires_grad_(wanted)
    plain = gradients(net, net, x, dtype)
    assert len(plain) == 2 + wanted + 36
    for last in (True, False):
        assert_equal(
            gradients(
                net, lambda x, last=last: checkpoint_sequential(net, segments, x, checkpoint_last=last), x, dtype
            ),
            plain,
        )
    theirs = gradients(net, lambda x: library.checkpoint_sequential(net, segments, x, use_reentrant=False), x, dtype)
    assert_equal(theirs, plain)


def test_without_the_random_state_dropout_gives_other_gradients():
    net, x = stack(dropout=0.4), drawn(4, 16).requires_grad_()
    plain = gradients(net, net, x)
    forgetful = gradients(net, lambda x: checkpoint_sequential(net, 3, x, preserve_rng_state=False), x)
    assert torch.equal(forgetful[0], plain[0]) and not torch.equal(forgetful[1], plain[1])


def test_torchs_reentrant_variant_gives_no_gradient_where_only_weights_need_one():
    net, x = stack(2), drawn(4, 16)
    with pytest.warns(UserWarning, match="requires_grad"):
        assert not library.checkpoint(net, x, use_reentrant=True).requires_grad
    assert checkpoint(net, x).requires_grad


def test_a_backward_pass_inside_autocast_and_a_shared_weight():
    """Autocast keeps its copies of the weights till its end; they must lead back to the weights."""
    layer, x = nn.Linear(8, 8), drawn(4, 8)
    found = []
    for call in (lambda x: layer(x), lambda x: checkpoint(layer, x)):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            layer(call(x)).sum().backward()
        found.append(layer.weight.grad.clone())
    torch.testing.assert_close(*found, rtol=2.0**-7, atol=1e-2)  # two sums in bf16 there, one of them in fp32 here


def test_every_layer_runs_twice_and_frozen_ones_once():
    net, x = stack(6), drawn(4, 16)
    net[:2].requires_grad_(False)
    with saved_for_backward(net) as saved:
        y = checkpoint_sequential(net, 3, x)
    assert saved["activations"] == 2 * x.nbytes  # nothing for the frozen run
    y.sum().backward()
    assert [block.calls for block in net] == [1, 1, 2, 2, 2, 2]
    for last, calls in ((True, 2), (False, 1)):
        net = stack(6)
        checkpoint_sequential(net, 3, x, checkpoint_last=last).sum().backward()
        assert [block.calls for block in net] == [2, 2, 2, 2, calls, calls]
    net.requires_grad_(False)
    frozen = checkpoint(net, x)
    assert not frozen.requires_grad and frozen.grad_fn is None
    with torch.no_grad():
        assert not checkpoint(stack(1), x).requires_grad


def test_the_last_product_of_a_segment_is_not_computed_twice():
    """Whole blocks but the last projection: torch stops there too, and a graph of its own would go on."""
    net, x = stack(6), drawn(4, 16)
    for segments in (1, 2, 3, 6):
        operations = []
        for run in (lambda x, s=segments: checkpoint_sequential(net, s, x), through_torch(net, segments), net):
            y = run(x)
            with FlopCounterMode(display=False) as counter:
                y.sum().backward()
            operations.append(counter.get_total_flops())
        mine, theirs, plain = operations
        product = 2 * 4 * 16 * 64
        assert mine == theirs == plain + product * (2 * 6 - segments)


def test_a_call_inside_a_call_and_one_whose_result_is_dropped():
    net, x = stack(4), drawn(4, 16).requires_grad_()
    plain = gradients(net, net, x)

    def inner(x):
        checkpoint(net[0], x * 2)  # a graph that goes before backward comes, with all its slots
        return checkpoint(net[1], checkpoint(net[0], x))

    nested = gradients(net, lambda x: net[3](net[2](checkpoint(inner, x))), x)
    assert_equal(nested, plain)
    with saved_for_backward(net) as saved:
        checkpoint(inner, x)
    assert saved["activations"] == x.nbytes


def test_a_segment_that_changes_its_mind_is_refused():
    net, x = stack(1), drawn(4, 16)
    for second in (lambda x: net(x[:2]), lambda x: x * 2):
        calls = [net, second]
        y = checkpoint(lambda x, calls=calls: calls.pop(0)(x), x)
        with pytest.raises(LabError, match="something else the second time"):
            y.sum().backward()


def test_nested_arguments_keywords_and_results():
    weight = nn.Parameter(drawn(5))

    def function(x, scales, *, masks, power, missing=None):
        y = x * scales[0] * weight + masks["a"].sum() * x
        return {"y": y**power, "detached": y.detach(), "index": y.argmax(), "pair": (x, [None, "text"])}, scales[1] * 2

    tensors = [drawn(5), drawn(5) + 1, drawn(5) + 2, drawn(3)]
    results = []
    for call in (lambda f, *a, **k: f(*a, **k), checkpoint):
        weight.grad = None
        x, a, b, mask = (t.clone().requires_grad_() for t in tensors)
        out, more = call(function, x, (a, b), masks={"a": mask}, power=2)
        assert not out["detached"].requires_grad and not out["index"].requires_grad
        assert out["pair"][1] == [None, "text"] and out["y"].requires_grad
        (out["y"].sum() + (out["pair"][0] * more).sum()).backward()
        results.append([out["y"].detach(), x.grad, a.grad, b.grad, mask.grad, weight.grad])
    assert_equal(results[1], results[0])


def test_an_unused_result_and_an_input_returned_as_it_is():
    net, x = stack(1), drawn(4, 16).requires_grad_()
    same, y, unused = checkpoint(lambda x: (x, net(x), x * 3), x)
    (same * 2 + y).sum().backward()
    expected = x.grad.clone()
    x.grad = None
    (x * 2 + net(x)).sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert unused.requires_grad


def test_a_second_backward_works_with_the_graph_retained_and_says_so_without():
    net, x = stack(2), drawn(4, 16)
    y = checkpoint(net, x)
    y.sum().backward(retain_graph=True)
    once = net[0].up.weight.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(net[0].up.weight.grad, 2 * once)
    with pytest.raises(LabError, match=r"already differentiated.*retain_graph"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:Using backward")
def test_what_cannot_be_right_is_refused():
    net, x = stack(2), drawn(4, 16).requires_grad_()
    with pytest.raises(LabError, match=r"chosen gradients.*backward"):
        torch.autograd.grad(checkpoint(net, x).sum(), x)
    with pytest.raises(LabError, match="second derivative"):
        checkpoint(net, x).sum().backward(create_graph=True)
    kept = []
    checkpoint(lambda x: kept.append(net(x)) or kept[0] * 2, x)
    with pytest.raises(LabError, match="from inside a checkpointed segment"):
        kept[0].sum().backward()
    y = checkpoint(net, z := x * 1)
    with torch.no_grad():
        z += 1
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


@pytest.mark.parametrize("segments", [0, -1, 13])
def test_numbers_of_segments_that_do_not_go(segments):
    with pytest.raises(LabError, match=f"There are 12 layers.* {segments} segments.*from 1 to 12"):
        checkpoint_sequential(stack(12), segments, drawn(4, 16))
    with pytest.raises(LabError, match="12 layers"):
        predicted_bytes(12, segments)


def test_no_layers():
    with pytest.raises(LabError, match="at least one"):
        best_segments(0)
    with pytest.raises(LabError, match=r"0 layers.*at least one"):
        checkpoint_sequential([], 1, drawn(4))


def test_runs_cover_all_layers_in_order_and_differ_by_one():
    for layers in range(1, 20):
        for segments in range(1, layers + 1):
            cut = [list(range(layers))[run] for run in runs(layers, segments)]
            assert list(chain(*cut)) == list(range(layers)) and len(cut) == segments
            lengths = [len(run) for run in cut]
            assert lengths == sorted(lengths, reverse=True) and lengths[0] - lengths[-1] <= 1


def test_the_best_number_is_the_square_root():
    assert [best_segments(n) for n in (1, 4, 9, 16, 36, 100)] == [1, 2, 3, 4, 6, 10]
    for interior in (1, 4, 9):  # where the root divides n, it is the formula's minimum over all real s
        root = (36 * interior) ** 0.5
        assert predicted_bytes(36, int(root), 1, interior) == root + 36 / root * interior
        best = best_segments(36, 1, interior)
        assert predicted_bytes(36, best, 1, interior) <= root + 36 / root * interior and abs(best - root) <= root / 4
    assert best_segments(24, layer_input=1, layer_interior=34) == 24 and best_segments(24, 100, 1) == 1
    assert predicted_bytes(12, 5, 10, 1000) == 20 + 3000  # 3, 3, 2, 2, 2 layers
