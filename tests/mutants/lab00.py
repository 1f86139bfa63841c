"""Wrong answers to lab 00: padding that is read or counted, columns and labels off by one, means of means."""

from __future__ import annotations

from . import whole00
from .answers import Answers

LAB = "00-start-here"
_wrong = Answers(LAB).wrong

BATCH = "ex1-padded-batch"
BOTH, HIDDEN = ("test", "hidden"), ("hidden",)

_MASK = "(torch.arange(width) < lengths[:, None]).long()"
_EMPTY = (
    'if not all(len(row) for row in sequences):\n    raise ValueError("an empty row would be nothing but padding")\n'
)
_CUT = "rows = [list(row)[-max_length:] for row in sequences]"
_PADDED = "input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])"
_PADDED_THERE = "for row in rows:\n    row += [pad_id] * (width - len(row))\ninput_ids = torch.tensor(rows)"

RIGHT = {
    "batch-filled-row-by-row": (BATCH, whole00.FILLED_ROW_BY_ROW),
    "scores-by-gather": ("ex2-class-scores", whole00.BY_GATHER),
    "scores-by-logarithms": ("ex2-class-scores", whole00.BY_LOGARITHMS),
}

MUTANTS = {
    "mask-from-pad-id": _wrong(
        BATCH,
        HIDDEN,
        "masks real tokens whose id equals the padding id, as with GPT-2's end-of-text",
        _MASK,
        "(input_ids != pad_id).long()",
    ),
    "keeps-the-start": _wrong(
        BATCH, BOTH, "cuts off the words that ask the question", "[-max_length:]", "[:max_length]"
    ),
    "pads-to-max-length": _wrong(
        BATCH,
        BOTH,
        "computes on columns that hold padding in every row",
        "width = int(lengths.max())",
        "width = max_length",
    ),
    "last-is-the-length": _wrong(
        BATCH, BOTH, "points one past the last token: at padding, or outside the tensor", "lengths - 1", "lengths"
    ),
    "lengths-before-cutting": _wrong(
        BATCH,
        HIDDEN,
        "`last` points past the end of a row that was cut",
        "[len(row) for row in rows]",
        "[len(row) for row in sequences]",
        "int(lengths.max())",
        "max(len(row) for row in rows)",
    ),
    "padding-counts-as-real": _wrong(
        BATCH, BOTH, "a mask of ones lets the model attend to padding", _MASK, "torch.ones_like(input_ids)"
    ),
    "pads-in-place": _wrong(
        BATCH,
        HIDDEN,
        "changes the caller's lists, so a second batch from them has padding for tokens",
        _CUT,
        "rows = sequences\nfor row in rows:\n    del row[:-max_length]",
        _PADDED,
        _PADDED_THERE,
    ),
    "row-of-padding": _wrong(
        BATCH, HIDDEN, "an empty row passes, with a last position of -1: the last column", _EMPTY, ""
    ),
    "short-row-cut": _wrong(
        BATCH,
        HIDDEN,
        "a start below 0 counts from the end: 3 tokens of at most 4 become 1",
        "[-max_length:]",
        "[len(row) - max_length :]",
    ),
    "pads-short-rows-in-place": _wrong(
        BATCH,
        HIDDEN,
        "copies the rows that it cuts, and pads the caller's own lists where it cuts nothing",
        _CUT,
        "rows = [row[-max_length:] if len(row) > max_length else row for row in sequences]",
        _PADDED,
        _PADDED_THERE,
    ),
    "last-column": {
        "exercise": "ex2-class-scores",
        "code": """
            chosen = logits[:, -1, :][:, label_ids]
            return chosen.softmax(dim=-1), chosen.argmax(dim=-1)
        """,
        "loses": ["ex2-class-scores-test", "ex2-class-scores-hidden"],
        "why": "reads what the model thinks should follow padding",
    },
    "one-before-last": {
        "exercise": "ex2-class-scores",
        "code": """
            chosen = logits[torch.arange(len(logits)), (last - 1).clamp(min=0)][:, label_ids]
            return chosen.softmax(dim=-1), chosen.argmax(dim=-1)
        """,
        "loses": ["ex2-class-scores-test", "ex2-class-scores-hidden"],
        "why": "scores the last token of the prompt, not the word after it: labels off by one",
    },
    "argmax-of-vocabulary": {
        "exercise": "ex2-class-scores",
        "code": """
            at_last = logits[torch.arange(len(logits)), last]
            best = at_last.argmax(dim=-1)
            predictions = (best[:, None] == label_ids).long().argmax(dim=-1)
            return at_last[:, label_ids].softmax(dim=-1), predictions
        """,
        "loses": ["ex2-class-scores-hidden"],
        "why": "when the favourite token is no label word, every such prompt becomes class 0",
    },
    "softmax-of-vocabulary": {
        "exercise": "ex2-class-scores",
        "code": """
            probabilities = logits[torch.arange(len(logits)), last].softmax(dim=-1)[:, label_ids]
            return probabilities, probabilities.argmax(dim=-1)
        """,
        "loses": ["ex2-class-scores-test", "ex2-class-scores-hidden"],
        "why": "the classes' probabilities do not sum to 1",
    },
    "sorted-label-ids": {
        "exercise": "ex2-class-scores",
        "code": """
            chosen = logits[torch.arange(len(logits)), last][:, label_ids.sort().values]
            return chosen.softmax(dim=-1), chosen.argmax(dim=-1)
        """,
        "loses": ["ex2-class-scores-test", "ex2-class-scores-hidden"],
        "why": "swaps the classes when the second label word has the smaller token id",
    },
    "exp-overflows": {
        "exercise": "ex2-class-scores",
        "code": """
            chosen = logits[torch.arange(len(logits)), last][:, label_ids].exp()
            probabilities = chosen / chosen.sum(dim=-1, keepdim=True)
            return probabilities, probabilities.argmax(dim=-1)
        """,
        "loses": ["ex2-class-scores-hidden"],
        "why": "inf / inf is nan once a logit passes 88 in float32",
    },
    "large-logits-cut": _wrong(
        "ex2-class-scores",
        HIDDEN,
        "exp stays finite, and classes that are 100 apart become equal",
        "chosen = at_last[:, label_ids]",
        "chosen = at_last[:, label_ids].clamp(-80, 80)",
    ),
    "batch-of-one-lost": _wrong(
        "ex2-class-scores",
        HIDDEN,
        "squeeze() takes the batch's dimension too where it is 1",
        "at_last = logits[rows, last]\nchosen = at_last[:, label_ids]",
        "chosen = logits[rows, last].squeeze()[..., label_ids]",
    ),
    "balanced-is-accuracy": {
        "exercise": "ex3-score",
        "code": """
            accuracy = (predictions == labels).float().mean().item()
            return accuracy, accuracy, (accuracy * (1 - accuracy) / len(labels)) ** 0.5
        """,
        "loses": ["ex3-score-test", "ex3-score-hidden"],
        "why": "gives `return 1` nine points of ten on unbalanced labels",
    },
    "precision-for-recall": {
        "exercise": "ex3-score",
        "code": """
            right = (predictions == labels).float()
            accuracy = right.mean().item()
            shares = [right[predictions == c].mean() if (predictions == c).any() else torch.tensor(0.0)
                      for c in labels.unique()]
            balanced = torch.stack(shares).mean().item()
            return accuracy, balanced, (accuracy * (1 - accuracy) / len(labels)) ** 0.5
        """,
        "loses": ["ex3-score-test", "ex3-score-hidden"],
        "why": "conditions on the prediction in place of the label (rows and columns of the table swapped)",
    },
    "absent-class-counts": {
        "exercise": "ex3-score",
        "code": """
            right = (predictions == labels).float()
            accuracy = right.mean().item()
            recalls = [right[labels == c].sum() / max(int((labels == c).sum()), 1)
                       for c in range(int(max(labels.max(), predictions.max())) + 1)]
            balanced = torch.stack(recalls).mean().item()
            return accuracy, balanced, (accuracy * (1 - accuracy) / len(labels)) ** 0.5
        """,
        "loses": ["ex3-score-hidden"],
        "why": "a class without examples counts as a recall of 0",
    },
    "deviation-for-error": {
        "exercise": "ex3-score",
        "code": """
            right = (predictions == labels).float()
            accuracy = right.mean().item()
            balanced = torch.stack([right[labels == c].mean() for c in labels.unique()]).mean().item()
            return accuracy, balanced, (accuracy * (1 - accuracy)) ** 0.5
        """,
        "loses": ["ex3-score-test", "ex3-score-hidden"],
        "why": "the spread of one sentence, not of the mean over n",
    },
    "accuracy-rounded": _wrong(
        "ex3-score",
        HIDDEN,
        "two decimals are for the table; the error is computed from the rounded number too",
        "accuracy = right.mean().item()",
        "accuracy = round(right.mean().item(), 2)",
    ),
    "mean-of-means": {
        "exercise": "ex4-token-loss",
        "code": """
            targets, real = input_ids[:, 1:], attention_mask[:, 1:]
            losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
            rows = real.sum(dim=1) > 0
            return ((losses * real).sum(dim=1)[rows] / real.sum(dim=1)[rows]).mean()
        """,
        "loses": ["ex4-token-loss-test", "ex4-token-loss-hidden"],
        "why": "a row of two tokens weighs as much as a row of fifty",
    },
    "padding-in-the-loss": {
        "exercise": "ex4-token-loss",
        "code": """
            return F.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:])
        """,
        "loses": ["ex4-token-loss-test", "ex4-token-loss-hidden"],
        "why": "trains the model to predict padding",
    },
    "divides-by-every-position": {
        "exercise": "ex4-token-loss",
        "code": """
            targets, real = input_ids[:, 1:], attention_mask[:, 1:]
            losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
            return (losses * real).mean()
        """,
        "loses": ["ex4-token-loss-test", "ex4-token-loss-hidden"],
        "why": "padding adds zeros to the sum and ones to the count: more padding, smaller loss",
    },
    "no-shift": {
        "exercise": "ex4-token-loss",
        "code": """
            losses = F.cross_entropy(logits.transpose(1, 2), input_ids, reduction="none")
            return (losses * attention_mask).sum() / attention_mask.sum()
        """,
        "loses": ["ex4-token-loss-test", "ex4-token-loss-hidden"],
        "why": "asks each position for the token that it has just read",
    },
    "mask-not-shifted": {
        "exercise": "ex4-token-loss",
        "code": """
            targets, real = input_ids[:, 1:], attention_mask[:, :-1]
            losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
            return (losses * real).sum() / real.sum()
        """,
        "loses": ["ex4-token-loss-test", "ex4-token-loss-hidden"],
        "why": "counts the first padding token of every short row as a target",
    },
    "log-of-softmax": {
        "exercise": "ex4-token-loss",
        "code": """
            targets, real = input_ids[:, 1:], attention_mask[:, 1:]
            likely = logits[:, :-1].softmax(dim=-1).gather(2, targets[..., None]).squeeze(2)
            return (-likely.log() * real).sum() / real.sum()
        """,
        "loses": ["ex4-token-loss-hidden"],
        "why": "a probability that rounds to 0 has the logarithm -inf",
    },
    "logarithm-with-a-floor": _wrong(
        "ex4-token-loss",
        HIDDEN,
        "the small number that keeps log away from 0 makes 27.6 nats the worst that can be",
        code="""
            targets, real = input_ids[:, 1:], attention_mask[:, 1:]
            likely = logits[:, :-1].softmax(dim=-1).gather(2, targets[..., None]).squeeze(2)
            return (-(likely + 1e-12).log() * real).sum() / real.sum()
        """,
    ),
    "logits-cut": _wrong(
        "ex4-token-loss",
        HIDDEN,
        "logits between -50 and 50 are finite in exp, and say something else",
        "logits[:, :-1]",
        "logits[:, :-1].clamp(-50, 50)",
    ),
    "squeezes-every-one": _wrong(
        "ex4-token-loss",
        HIDDEN,
        "one target a row: squeeze() leaves [batch], and times [batch, 1] that is [batch, batch]",
        code="""
            targets, real = input_ids[:, 1:], attention_mask[:, 1:]
            losses = -logits[:, :-1].log_softmax(dim=-1).gather(2, targets[..., None]).squeeze()
            return (losses * real).sum() / real.sum()
        """,
    ),
}
