"""Wrong answers to lab 00: padding that is read or counted, columns and labels off by one, means of means."""

LAB = "00-start-here"

MUTANTS = {
    "mask-from-pad-id": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            rows = [row[-max_length:] for row in sequences]
            width = max(len(row) for row in rows)
            input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
            attention_mask = (input_ids != pad_id).long()
            return input_ids, attention_mask, torch.tensor([len(row) - 1 for row in rows])
        """,
        "loses": ["ex1-padded-batch-hidden"],
        "why": "masks real tokens whose id equals the padding id, as with GPT-2's end-of-text",
    },
    "keeps-the-start": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            rows = [row[:max_length] for row in sequences]
            lengths = torch.tensor([len(row) for row in rows])
            width = int(lengths.max())
            input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
            return input_ids, (torch.arange(width) < lengths[:, None]).long(), lengths - 1
        """,
        "loses": ["ex1-padded-batch-test", "ex1-padded-batch-hidden"],
        "why": "cuts off the words that ask the question",
    },
    "pads-to-max-length": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            rows = [row[-max_length:] for row in sequences]
            lengths = torch.tensor([len(row) for row in rows])
            input_ids = torch.tensor([row + [pad_id] * (max_length - len(row)) for row in rows])
            return input_ids, (torch.arange(max_length) < lengths[:, None]).long(), lengths - 1
        """,
        "loses": ["ex1-padded-batch-test", "ex1-padded-batch-hidden"],
        "why": "computes on columns that hold padding in every row",
    },
    "last-is-the-length": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            rows = [row[-max_length:] for row in sequences]
            lengths = torch.tensor([len(row) for row in rows])
            width = int(lengths.max())
            input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
            return input_ids, (torch.arange(width) < lengths[:, None]).long(), lengths
        """,
        "loses": ["ex1-padded-batch-test", "ex1-padded-batch-hidden"],
        "why": "points one past the last token: at padding, or outside the tensor",
    },
    "lengths-before-cutting": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            lengths = torch.tensor([len(row) for row in sequences])
            rows = [row[-max_length:] for row in sequences]
            width = max(len(row) for row in rows)
            input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
            return input_ids, (torch.arange(width) < lengths[:, None]).long(), lengths - 1
        """,
        "loses": ["ex1-padded-batch-hidden"],
        "why": "`last` points past the end of a row that was cut",
    },
    "padding-counts-as-real": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            rows = [row[-max_length:] for row in sequences]
            width = max(len(row) for row in rows)
            input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
            return input_ids, torch.ones_like(input_ids), torch.tensor([len(row) - 1 for row in rows])
        """,
        "loses": ["ex1-padded-batch-test", "ex1-padded-batch-hidden"],
        "why": "a mask of ones lets the model attend to padding",
    },
    "pads-in-place": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            lengths = torch.tensor([min(len(row), max_length) for row in sequences])
            width = int(lengths.max())
            for row in sequences:
                del row[:-max_length]
                row += [pad_id] * (width - len(row))
            mask = (torch.arange(width) < lengths[:, None]).long()
            return torch.tensor(sequences), mask, lengths - 1
        """,
        "loses": ["ex1-padded-batch-hidden"],
        "why": "changes the caller's lists, so a second batch from them has padding for tokens",
    },
    "row-of-padding": {
        "exercise": "ex1-padded-batch",
        "code": """
            rows = [row[-max_length:] for row in sequences]
            lengths = torch.tensor([len(row) for row in rows])
            width = int(lengths.max())
            input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
            return input_ids, (torch.arange(width) < lengths[:, None]).long(), lengths - 1
        """,
        "loses": ["ex1-padded-batch-hidden"],
        "why": "an empty row passes, with a last position of -1: the last column",
    },
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
}
