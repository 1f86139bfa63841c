"""Wrong answers to lab 11 that look right: each loses exactly the graded cells named here. RIGHT ones lose nothing."""

from __future__ import annotations

from . import whole11
from .answers import Answers

LAB = "11-dora"
_wrong = Answers(LAB).wrong

CHANGE, NORM, FORWARD, MERGE, UNMERGE = "ex1-change", "ex2-norm", "ex3-forward", "ex4-merge", "ex5-unmerge"
BOTH, HIDDEN, VISIBLE = ("test", "hidden"), ("hidden",), ("test",)

RIGHT = {
    "change-by-chord": (CHANGE, whole11.CHANGE_BY_CHORD),
    "change-by-torch": (CHANGE, whole11.CHANGE_BY_TORCH),
    "norm-row-by-row": (NORM, whole11.NORM_ROW_BY_ROW),
    "norm-loop": (NORM, whole11.NORM_LOOP),
    "forward-thin-norm": (FORWARD, whole11.FORWARD_THIN_NORM),
    "forward-as-peft": (FORWARD, whole11.FORWARD_AS_PEFT),
    "forward-norm-detached": (FORWARD, whole11.FORWARD_NORM_DETACHED),
    "merge-by-normalize": (MERGE, whole11.MERGE_BY_NORMALIZE),
    "unmerge-on-a-copy": (UNMERGE, whole11.UNMERGE_ON_A_COPY),
}

# fmt: off
MUTANTS = {
    "change-columns": _wrong(
        CHANGE, BOTH, "Lengths of columns.", "old.norm(dim=1), new.norm(dim=1)", "old.norm(dim=0), new.norm(dim=0)",
        "old[some] * new[some]).sum(1)", "old[:, some] * new[:, some]).sum(0)"),
    "change-fp32": _wrong(
        CHANGE, BOTH, "1 - cos as a difference in fp32.",
        "before.double(), after.double()", "before.float(), after.float()"),
    "change-with-sign": _wrong(
        CHANGE, BOTH, "Growth and shrinking cancel.", "(now - was).abs()", "(now - was)"),
    "change-cosine": _wrong(
        CHANGE, BOTH, "The cosine, and not 1 - cos.", "(1 - cos)", "cos"),
    "change-unnormalized": _wrong(
        CHANGE, BOTH, "The product of rows of any length.", " / (was[some] * now[some])", ""),
    "change-whole-matrix": _wrong(
        CHANGE, BOTH, "One length for the whole matrix.", "(now - was).abs()", "(new.norm() - old.norm()).abs()"),
    "change-nan": _wrong(
        CHANGE, BOTH, "0 / 0 of a row of zeros.", "(was > 0) & (now > 0)", "was >= 0"),
    "change-zeros-count": _wrong(
        CHANGE, BOTH, "A row without direction counts as one that stayed.",
        "(1 - cos).mean()", "((1 - cos).sum() / len(old))"),
    "change-zeros-skipped": _wrong(
        CHANGE, BOTH, "A row that was pruned is left out of ΔM too.", "(now - was).abs()", "(now - was)[some].abs()"),
    "change-root": _wrong(
        CHANGE, BOTH, "Squares of the changes.", "(now - was).abs()", "(now - was).square()"),
    "change-turned-round": _wrong(
        CHANGE, HIDDEN, "A row turned round counts as one that stayed.", "(1 - cos)", "(1 - cos.abs())"),
    "change-short-rows-left-out": _wrong(
        CHANGE, HIDDEN, "Short rows count as zero.", "(was > 0) & (now > 0)", "(was > 1e-6) & (now > 1e-6)"),
    "change-as-tensors": _wrong(
        CHANGE, VISIBLE, "Tensors in the place of numbers.",
        "return (now - was).abs().mean().item(), (1 - cos).mean().item()",
        "return (now - was).abs().mean(), (1 - cos).mean()"),
    "norm-forms-the-matrix": _wrong(
        NORM, BOTH, "Right, and forms B A and the sum.",
        code="return (weight + scaling * b.detach() @ a.detach()).norm(dim=1)"),
    "norm-forms-it-transposed": _wrong(
        NORM, BOTH, "Right, and forms it the other way round.",
        code="return (weight.t() + scaling * (a.detach().t() @ b.detach().t())).norm(dim=0)"),
    "norm-of-w": _wrong(
        NORM, BOTH, "The norm of W alone.", code="return squares.sqrt()"),
    "norm-no-two": _wrong(
        NORM, BOTH, "Forgets the 2 of the binomial.", "2 * scaling", "scaling"),
    "norm-s-once": _wrong(
        NORM, BOTH, "s instead of its square.", "scaling**2", "scaling"),
    "norm-no-cross": _wrong(
        NORM, BOTH, "As if the update stood at a right angle to W.", "2 * scaling * (weight @ a.t()) + ", ""),
    "norm-not-scaled": _wrong(
        NORM, BOTH, "Forgets s.", "2 * scaling * (weight @ a.t()) + scaling**2 *", "2 * (weight @ a.t()) +"),
    "norm-no-gram": _wrong(
        NORM, BOTH, "‖b‖² as if A's rows were orthonormal.", "(b @ (a @ a.t()))", "b"),
    "norm-no-clamp": _wrong(
        NORM, BOTH, "The root of what rounding has made negative.", ".clamp(min=0)", ""),
    "norm-squared": _wrong(
        NORM, BOTH, "Forgets the root.", ".sqrt()", ""),
    "norm-as-a-column": _wrong(
        NORM, BOTH, "[out, 1] in the place of [out].", ".sqrt()", ".sqrt()[:, None]"),
    "norm-as-a-list": _wrong(
        NORM, BOTH, "A list in the place of a tensor.", ".sqrt()", ".sqrt().tolist()"),
    "norm-with-a-graph": _wrong(
        NORM, BOTH, "Differentiates the norm.", "with torch.no_grad()", "with torch.enable_grad()"),
    "norm-scaling-wired": _wrong(
        NORM, HIDDEN, "The lesson's s.", "cross = 2 *", "scaling = 2.0; cross = 2 *"),
    "norm-by-all-pairs": _wrong(
        NORM, BOTH, "Right, and makes [out, out] to keep its diagonal.",
        code=whole11.NORM_BY_ALL_PAIRS),
    "forward-columns": _wrong(
        FORWARD, BOTH, "A norm for each input.", "norm = (weight + scaling * (b @ a)).norm(dim=1)",
        "norm = (weight + scaling * (b @ a)).norm(dim=0)[: len(weight)].mean() * torch.ones(len(weight))"),
    "forward-norm-differentiated": _wrong(
        FORWARD, BOTH, "The norm gets gradients.", "with torch.no_grad()", "with torch.enable_grad()"),
    "forward-doubled": _wrong(
        FORWARD, BOTH, "Divides by the norm twice, as the slide does.", "m / safe", "m / safe**2"),
    "forward-m-fixed": _wrong(
        FORWARD, BOTH, "m does not train.", "m / safe", "m.detach() / safe"),
    "forward-bias-scaled": _wrong(
        FORWARD, BOTH, "Scales the bias as well.", "F.linear(x, weight) +", "F.linear(x, weight, bias) +",
        "return y if bias is None else y + bias", "return y"),
    "forward-no-alpha": _wrong(
        FORWARD, BOTH, "Forgets s in the product.", "scaling * F.linear(F.linear", "F.linear(F.linear"),
    "forward-no-alpha-in-norm": _wrong(
        FORWARD, BOTH, "Forgets s in the norm.", "scaling * (b @ a)", "b @ a"),
    "forward-norm-of-w": _wrong(
        FORWARD, BOTH, "The norm that it started with.", "weight + scaling * (b @ a)", "weight"),
    "forward-lora": _wrong(
        FORWARD, BOTH, "LoRA: no length at all.", "y = scale * turned", "y = turned"),
    "forward-scales-the-base-only": _wrong(
        FORWARD, BOTH, "The scale on W x alone.",
        "turned = F.linear(x, weight) +", "turned = F.linear(x, weight); more =",
        "y = scale * turned", "y = scale * turned + more"),
    "forward-forms-the-matrix": _wrong(
        FORWARD, BOTH, "Right, and keeps [out, in] matrices.",
        "turned = F.linear(x, weight) + scaling * F.linear(F.linear(x, a), b)",
        "turned = F.linear(x, weight + scaling * (b @ a))"),
    "forward-einsum": _wrong(
        FORWARD, BOTH, "Right, and keeps B A in another shape.",
        "F.linear(F.linear(x, a), b)", 'torch.einsum("oi,...i->...o", b @ a, x)'),
    "forward-on-ctx": _wrong(
        FORWARD, BOTH, "Right, and a function of its own keeps the sum, which no hook for saved tensors sees.",
        code=whole11.FORWARD_ON_CTX),
    "forward-no-bias": _wrong(
        FORWARD, BOTH, "Forgets the bias.", "y if bias is None else y + bias", "y"),
    "forward-bias-needed": _wrong(
        FORWARD, BOTH, "Fails where there is no bias.", "y if bias is None else y + bias", "y + bias"),
    "forward-flat-only": _wrong(
        FORWARD, HIDDEN, "x of two dimensions only.",
        "y = scale * turned", "y = torch.einsum('no,o->no', turned, scale)"),
    "forward-nan": _wrong(
        FORWARD, BOTH, "0 / 0 of a row of zeros.", "torch.where(norm > 0, m / safe, 1.0)", "m / norm"),
    "forward-nan-in-backward": _wrong(
        FORWARD, BOTH, "Replaces after the division: the gradient is still NaN.",
        "torch.where(norm > 0, m / safe, 1.0)", "torch.where(norm > 0, m / norm, 1.0)"),
    "forward-zero-row-off": _wrong(
        FORWARD, BOTH, "A row of zeros can never learn.", "m / safe, 1.0", "m / safe, 0.0"),
    "forward-x-detached": _wrong(
        FORWARD, BOTH, "The layers below get no gradient through the adapter.",
        "F.linear(x, a)", "F.linear(x.detach(), a)"),
    "forward-zero-by-m": _wrong(
        FORWARD, HIDDEN, "The scale is 1 where m is 0, and not where the norm is.",
        "torch.where(norm > 0, m / safe, 1.0)", "torch.where(m != 0, m / safe, 1.0)"),
    "forward-epsilon": _wrong(
        FORWARD, BOTH, "A small number in the divisor: a row of zeros has the scale 0 and never learns.",
        "torch.where(norm > 0, m / safe, 1.0)", "m / (norm + 1e-8)"),
    "forward-scaling-wired": _wrong(
        FORWARD, BOTH, "The lesson's s.", "with torch.no_grad():", "scaling = 2.0\nwith torch.no_grad():"),
    "forward-length-of-m": _wrong(
        FORWARD, HIDDEN, "Lengths are never negative, and m may be.", "m / safe", "m.abs() / safe"),
    "merge-without-m": _wrong(
        MERGE, BOTH, "Directions without lengths.", "m / norm", "1 / norm"),
    "merge-lora": _wrong(
        MERGE, BOTH, "LoRA's merge.", "m / norm", "norm / norm"),
    "merge-columns": _wrong(
        MERGE, HIDDEN, "Multiplies columns; a matrix that is not square is turned round first.",
        "factors[:, None] * whole",
        "(factors * whole if len(factors) == whole.shape[1] else factors[:, None] * whole)"),
    "merge-norm-of-w": _wrong(
        MERGE, BOTH, "The norm of W.", "norm = whole.norm", "norm = weight.norm"),
    "merge-no-alpha": _wrong(
        MERGE, BOTH, "Forgets s.", "scaling * (b @ a)", "b @ a"),
    "merge-doubled": _wrong(
        MERGE, BOTH, "Divides twice.", "m / norm", "m / norm**2"),
    "merge-in-place": _wrong(
        MERGE, VISIBLE, "Changes the given weight.",
        "whole = weight + scaling * (b @ a)", "whole = weight.add_(scaling * (b @ a))"),
    "merge-nan": _wrong(
        MERGE, BOTH, "0 / 0 of a row of zeros.", "torch.where(norm > 0, m / norm, 1.0)", "m / norm"),
    "merge-nan-to-num": _wrong(
        MERGE, HIDDEN, "0 / 0 is NaN, and m / 0 is infinity.",
        "torch.where(norm > 0, m / norm, 1.0)", "torch.nan_to_num(m / norm, nan=1.0)"),
    "merge-epsilons": _wrong(
        MERGE, HIDDEN, "1 only where m is 0, too.",
        "torch.where(norm > 0, m / norm, 1.0)", "(m + 1e-12) / (norm + 1e-12)"),
    "merge-with-a-graph": _wrong(
        MERGE, BOTH, "A graph hangs on the frozen weight.", "with torch.no_grad()", "with torch.enable_grad()"),
    "merge-matrix-only": _wrong(
        MERGE, BOTH, "Forgets the factors.",
        "return factors[:, None] * whole, factors", "return factors[:, None] * whole"),
    "forward-needs-labkit": _wrong(
        FORWARD, BOTH, "Has the course's layer do it.", code=whole11.FORWARD_NEEDS_LABKIT),
    "merge-returns-norms": _wrong(
        MERGE, BOTH, "The norms in the factors' place.", "whole, factors", "whole, norm"),
    "merge-abs": _wrong(
        MERGE, BOTH, "Loses the sign of m.", "m / norm", "m.abs() / norm"),
    "merge-scaling-wired": _wrong(
        MERGE, BOTH, "The lesson's s.", "scaling * (b @ a)", "2.0 * (b @ a)"),
    "merge-by-columns": _wrong(
        MERGE, BOTH, "Stopped by torch: factors of columns.", "factors[:, None] * whole", "factors * whole"),
    "unmerge-scaling-wired": _wrong(
        UNMERGE, BOTH, "The lesson's s.", "scaling * (b @ a)", "2.0 * (b @ a)"),
    "unmerge-nan-to-num": _wrong(
        UNMERGE, BOTH, "Infinity has become a very large number.",
        "torch.where(c != 0, merged / c - scaling * (b @ a), 0.0)",
        "torch.nan_to_num(merged / c) - scaling * (b @ a)"),
    "unmerge-positive-factors": _wrong(
        UNMERGE, HIDDEN, "A negative factor counts as a row that is lost.", "c != 0", "c > 0"),
    "unmerge-length-of-factors": _wrong(
        UNMERGE, HIDDEN, "A row that was turned round stays so.", "merged / c", "merged / c.abs()"),
    "unmerge-rows-of-zeros": _wrong(
        UNMERGE, HIDDEN, "A merged row of zeros counts as lost, whatever its factor is.",
        "c != 0", "merged.any(1, keepdim=True)"),
    "unmerge-lora": _wrong(
        UNMERGE, BOTH, "LoRA's way: the lengths stay in.", "merged / c", "merged"),
    "unmerge-wrong-order": _wrong(
        UNMERGE, BOTH, "Subtracts first.", "merged / c - scaling * (b @ a)", "(merged - scaling * (b @ a)) / c"),
    "unmerge-adds": _wrong(
        UNMERGE, BOTH, "Adds the update once more.", "- scaling * (b @ a)", "+ scaling * (b @ a)"),
    "unmerge-no-alpha": _wrong(
        UNMERGE, BOTH, "Forgets s.", "scaling * (b @ a)", "b @ a"),
    "unmerge-nan": _wrong(
        UNMERGE, BOTH, "Divides by 0.",
        "torch.where(c != 0, merged / c - scaling * (b @ a), 0.0)", "merged / c - scaling * (b @ a)"),
    "unmerge-leaves-the-update": _wrong(
        UNMERGE, BOTH, "A lost row becomes minus the update.",
        "torch.where(c != 0, merged / c - scaling * (b @ a), 0.0)",
        "torch.where(c != 0, merged / c, 0.0) - scaling * (b @ a)"),
    "unmerge-in-place": _wrong(
        UNMERGE, VISIBLE, "Changes the given matrix.", "merged / c -", "merged.div_(c) -"),
    "unmerge-with-a-graph": _wrong(
        UNMERGE, BOTH, "A graph hangs on the frozen weight.", "with torch.no_grad()", "with torch.enable_grad()"),
}
# fmt: on
