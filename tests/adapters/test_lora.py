"""LoRA and DoRA equal peft's: outputs, gradients, counts, merged weights; and keep less."""

from __future__ import annotations

import copy

import pytest
import torch
from peers import CONFIGS, base, ids, near, pair, step, weights
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.adapters.attach import attach, detach, lora_layers, merge, unmerge, use
from labkit.adapters.dora import DoraLinear
from labkit.adapters.lora import LoraLinear, LoraSpec
from labkit.adapters.product import lora_linear
from labkit.adapters.targets import find
from labkit.errors import LabError
from labkit.ledger import saved_for_backward
from labkit.models import parameters
from labkit.numerics.quantize import Linear4bit

TARGETS = ("q", "v", "up", "down")
CASES = [(kind, dora, dropout) for kind in CONFIGS for dora in (False, True) for dropout in (0.0, 0.3)]


@pytest.mark.parametrize(("kind", "dora", "dropout"), CASES)
def test_outputs_and_gradients_are_pefts(kind, dora, dropout):
    ours, theirs = pair(kind, LoraSpec(4, 8, dropout, targets=TARGETS), dora)
    tokens, named = ids(), dict(theirs.named_parameters())
    assert near(step(ours, tokens), step(theirs, tokens))
    mine = weights(ours)
    assert len(mine) == 2 * len(TARGETS) * (3 if dora else 2)
    for name, value in mine.items():
        assert near(value.grad, named[name].grad, 1e-5), name
    assert parameters(ours, trainable=True) == parameters(theirs, trainable=True)
    assert all(p.grad is None for n, p in ours.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize(("kind", "dora"), [(kind, dora) for kind in CONFIGS for dora in (False, True)])
def test_merged_weights_are_pefts_and_come_out_again(kind, dora):
    ours, theirs = pair(kind, LoraSpec(4, 8, rslora=True, targets=TARGETS), dora)
    before = {path: layer.base.weight.clone() for path, layer in lora_layers(ours)}
    tokens = ids()
    apart = ours.eval()(input_ids=tokens).logits
    merged = merge(ours)(input_ids=tokens).logits
    assert near(merged, apart) and not torch.equal(merged, base(kind).eval()(input_ids=tokens).logits)
    whole = theirs.merge_and_unload()
    for path, layer in lora_layers(ours):
        assert near(layer.base.weight, whole.get_submodule(path).weight)
    sizes = {path: layer.base.weight.abs().max() for path, layer in lora_layers(ours)}
    unmerge(ours)  # rounding is that of the larger, merged weights
    for path, layer in lora_layers(ours):
        assert (layer.base.weight - before[path]).abs().max() <= 1e-5 * sizes[path], path
    plain = detach(ours, merged=True)
    assert near(plain(input_ids=tokens).logits, apart)
    assert plain.state_dict().keys() == base(kind).state_dict().keys()


@pytest.mark.parametrize("dora", [False, True])
def test_a_model_starts_where_pretraining_left_it(dora):
    model, tokens = base("llama").eval(), ids()
    before = model(input_ids=tokens).logits
    attach(model, LoraSpec(4, targets="all-linear"), kind=DoraLinear if dora else LoraLinear)
    after = model(input_ids=tokens).logits
    assert near(after, before) if dora else torch.equal(after, before)
    assert {path.rpartition(".")[2] for path, _ in lora_layers(model)} == {
        f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")
    }


class Shapes(TorchDispatchMode):
    """Shapes of all tensors that operations make."""

    def __init__(self):
        super().__init__()
        self.made: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func not in (torch.ops.aten.t.default, torch.ops.aten.detach.default):
            given = {id(a) for a in args}
            outputs = made if isinstance(made, tuple | list) else (made,)
            self.made += [tuple(o.shape) for o in outputs if isinstance(o, torch.Tensor) and id(o) not in given]
        return made


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_product_of_the_matrices_sizes_is_made_in_training(dora, dropout):
    layer = (DoraLinear if dora else LoraLinear)(torch.nn.Linear(40, 24))
    layer.add("default", LoraSpec(4, dropout=dropout))
    x = torch.randn(5, 40, requires_grad=True)
    with Shapes() as shapes:
        layer(x).square().sum().backward()
    assert {(24, 40), (40, 24)} & set(shapes.made) == set()
    assert (4, 40) in shapes.made and (24, 4) in shapes.made  # the gradients are seen
    with Shapes() as shapes:
        layer.update("default")
    assert (24, 40) in shapes.made


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_fused_product_keeps_x_h_and_the_mask_alone(dropout):
    tokens, width, out, rank = 6, 32, 48, 4
    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(width, out))
    layer.add("default", LoraSpec(rank, dropout=dropout))
    x = torch.randn(tokens, width)
    with saved_for_backward(layer) as saved:
        layer(x)
    mask = tokens * width if dropout else 0
    assert saved["activations"] == 4 * tokens * (width + rank) + mask
    doubled = DoraLinear(torch.nn.Linear(width, out))
    doubled.add("default", LoraSpec(rank, dropout=dropout))
    with saved_for_backward(doubled) as saved:
        doubled(x)
    vectors = 2 * 4 * out  # the norm and the scale
    assert saved["activations"] == 4 * tokens * (width + rank + out) + mask + vectors


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_are_those_of_finite_differences(dora):
    """With torch's gradcheck in fp64, against the formula that a reader would write; DoRA's norm held constant."""
    torch.manual_seed(0)
    layer = (DoraLinear if dora else LoraLinear)(torch.nn.Linear(5, 7, dtype=torch.float64))
    layer.add("default", LoraSpec(3, 6), dtype=torch.float64)
    values = {"A": layer.lora_A["default"], "B": layer.lora_B["default"]}
    torch.nn.init.normal_(values["B"])
    if dora:
        layer.squares = layer.base.weight.detach().square().sum(1)
        values["m"] = torch.nn.Parameter(layer.lora_magnitude_vector["default"].data.double().mul_(1.3))
        layer.lora_magnitude_vector["default"] = values["m"]
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    norm = layer.norm("default") if dora else None

    def formula(x, a, b, m=None):
        whole = layer.base.weight + 2 * b @ a
        rows = whole if m is None else (m / norm)[:, None] * whole
        return x @ rows.t() + layer.base.bias

    inputs = (x, *values.values())
    weights = torch.randn(4, 7, dtype=torch.float64)
    expected = torch.autograd.grad((formula(*inputs) * weights).sum(), inputs)
    found = torch.autograd.grad((layer(x) * weights).sum(), inputs)
    assert torch.allclose(layer(x), formula(*inputs), atol=1e-12)
    for name, one, other in zip(("x", *values), found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6 if dora else 1e-12), name
    if not dora:
        product = lambda x, a, b: lora_linear(x, layer.base.weight, layer.base.bias, a, b, 2.0)  # noqa: E731
        assert torch.autograd.gradcheck(product, inputs)


class OtherLinear(torch.nn.Linear):
    """A layer of another kind, over which the product runs by itself."""


@pytest.mark.parametrize("kind", [torch.nn.Linear, OtherLinear])
def test_a_row_of_zeros_has_no_direction_and_no_nan(kind):
    torch.manual_seed(0)
    linear = kind(6, 4)
    linear.weight.data[1] = 0
    layer = DoraLinear(linear)
    layer.add("default", LoraSpec(2))
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], 0.1)
    x, plain = torch.randn(3, 6), linear(torch.zeros(3, 6))
    assert torch.equal(layer(x)[:, 1], plain[:, 1])
    for _ in range(4):
        optimizer.zero_grad()
        (layer(x) - 1).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
        optimizer.step()
    assert layer.lora_magnitude_vector["default"][1] != 0  # it trains once B has given the row a direction


def test_lengths_stay_exact_when_the_model_changes_its_dtype():
    layer = DoraLinear(torch.nn.Linear(64, 8))
    layer.add("default", LoraSpec(2))
    layer.to(torch.bfloat16)
    assert layer.squares.dtype == torch.float32
    assert near(layer.norm("default"), layer.base.weight.float().norm(dim=1))


def test_several_adapters_over_one_model_are_switched_and_train_apart():
    model, tokens = base("llama").eval(), ids()
    plain = model(input_ids=tokens).logits
    attach(model, LoraSpec(4, targets=("q",)), "first")
    attach(model, LoraSpec(2, targets=("q", "v")), "second")
    for _, layer in lora_layers(model):
        for b in layer.lora_B.values():
            torch.nn.init.normal_(b)
    seen = {name: use(model, name)(input_ids=tokens).logits for name in ("first", "second", "")}
    assert torch.equal(seen[""], plain)
    assert not torch.equal(seen["first"], seen["second"]) and not torch.equal(seen["first"], plain)
    assert torch.equal(use(model, "first")(input_ids=tokens).logits, seen["first"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith(".first") for name in trained)
    with pytest.raises(LabError, match=r"no adapter 'third'.*first, second"):
        use(model, "third")
    merge(model)
    with pytest.raises(LabError, match="unmerge"):
        use(model, "second")
    before = base("llama").state_dict()
    assert all(torch.equal(v, before[k.replace(".base", "")]) for k, v in detach(unmerge(model)).state_dict().items()
               if "q_proj" not in k)  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
def test_a_base_in_four_bits_computes_as_its_dense_twin(dora):
    torch.manual_seed(0)
    narrow = Linear4bit.of(torch.nn.Linear(64, 32))
    dense = torch.nn.Linear(64, 32)
    dense.weight.data, dense.bias.data = narrow.weight.dequantize(torch.float32), narrow.bias.data.clone()
    kind, found = DoraLinear if dora else LoraLinear, []
    x = torch.randn(5, 64)
    for linear in (narrow, dense):
        torch.manual_seed(1)
        layer = kind(copy.deepcopy(linear))
        layer.add("default", LoraSpec(4))
        torch.nn.init.normal_(layer.lora_B["default"])
        mine = x.clone().requires_grad_()
        y = layer(mine)
        y.square().sum().backward()
        found.append([y.detach(), mine.grad, *(p.grad for p in layer.parameters() if p.requires_grad)])
        if linear is narrow:
            with pytest.raises(LabError, match="few bits"):
                layer.merge()
            holder = torch.nn.Sequential(layer)
            plain = detach(holder, merged=True)[0]
            assert type(plain) is torch.nn.Linear and near(plain(x), y.detach(), 1e-5)
    assert len(found[0]) == (5 if dora else 4)
    assert all(near(a, b, 1e-5) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LoraSpec(0), "0 is no rank"),
        (lambda: LoraSpec(2.5), "2.5 is no rank"),
        (lambda: LoraSpec(4, dropout=1.0), "no dropout"),
        (lambda: LoraSpec(4, lora_alpha=float("nan")), "no lora_alpha"),
        (lambda: attach(base("llama"), LoraSpec(17)), "Rank 17 is larger than .*v_proj.*16 × 32.*at most 16"),
        (lambda: attach(base("opt"), LoraSpec(4, targets=("gate",))), "matches 'gate'.*q_proj.*fc1, fc2"),
        (lambda: attach(base("llama"), LoraSpec(4, targets=r".*query.*")), "would match: q_proj"),
        (lambda: attach(base("llama"), LoraSpec(4, targets="(")), "no regular expression"),
        (lambda: attach(base("llama"), LoraSpec(4, targets=())), "No layer is named"),
        (lambda: attach(attach(base("llama"), LoraSpec(4)), LoraSpec(4)), "adapter 'default'"),
        (lambda: merge(base("llama")), "no adapters"),
        (lambda: attach(base("llama"), LoraSpec(4), "a.b"), "no name"),
    ],
)
def test_wrong_adapters_are_refused_before_a_model_changes(make, said):
    with pytest.raises(LabError, match=said):
        make()


def test_a_refused_adapter_leaves_the_model_as_it_was():
    model = base("llama")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(LabError):
        attach(model, LoraSpec(17))
    assert [name for name, _ in model.named_modules()] == before
    assert all(p.requires_grad for p in model.parameters())


def test_targets_mean_what_they_mean_in_peft():
    from peers import peft_model

    for targets in ("all-linear", r".*\.1\..*(q|v)_proj", ("q", "up")):
        theirs = peft_model(base("llama"), "llama", LoraSpec(4, targets=("q",)))
        if isinstance(targets, str):
            from peft import LoraConfig, get_peft_model

            theirs = get_peft_model(base("llama"), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        else:
            theirs = peft_model(base("llama"), "llama", LoraSpec(4, targets=targets))
        names = {n.removeprefix("base_model.model.") for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
        assert set(find(base("llama"), targets)) == names
