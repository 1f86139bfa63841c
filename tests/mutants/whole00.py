"""Whole answers to lab 00: the wrong ones to its first exercise, and right ones."""

from __future__ import annotations

PADDED_BATCH = {
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
    "short-row-cut": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            rows = [row[len(row) - max_length :] for row in sequences]
            lengths = torch.tensor([len(row) for row in rows])
            width = int(lengths.max())
            input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
            return input_ids, (torch.arange(width) < lengths[:, None]).long(), lengths - 1
        """,
        "loses": ["ex1-padded-batch-hidden"],
        "why": "a start below 0 counts from the end: 3 tokens of at most 4 become 1",
    },
    "pads-short-rows-in-place": {
        "exercise": "ex1-padded-batch",
        "code": """
            if not all(len(row) for row in sequences):
                raise ValueError("an empty row")
            rows = [row[-max_length:] if len(row) > max_length else row for row in sequences]
            lengths = torch.tensor([len(row) for row in rows])
            width = int(lengths.max())
            for row in rows:
                row.extend([pad_id] * (width - len(row)))
            return torch.tensor(rows), (torch.arange(width) < lengths[:, None]).long(), lengths - 1
        """,
        "loses": ["ex1-padded-batch-hidden"],
        "why": "copies the rows that it cuts, and pads the caller's own lists where it cuts nothing",
    },
}

# Right ones.
FILLED_ROW_BY_ROW = """
if any(len(row) == 0 for row in sequences):
    raise ValueError("no empty rows")
kept = [torch.tensor(row)[-max_length:] for row in sequences]
input_ids = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=pad_id)
attention_mask = torch.zeros_like(input_ids)
for place, row in enumerate(kept):
    attention_mask[place, : len(row)] = 1
return input_ids, attention_mask, attention_mask.sum(1) - 1
"""

BY_GATHER = """
index = last.view(-1, 1, 1).expand(-1, 1, logits.shape[-1])
chosen = logits.gather(1, index).squeeze(1).index_select(1, torch.as_tensor(label_ids, device=logits.device))
powers = (chosen - chosen.amax(1, keepdim=True)).exp()
probabilities = powers / powers.sum(1, keepdim=True)
return probabilities, probabilities.argmax(1)
"""

BY_LOGARITHMS = """
label_ids = torch.tensor(label_ids)
logarithms = logits[torch.arange(len(logits)), last].log_softmax(-1)[:, label_ids]
return (logarithms - logarithms.logsumexp(1, keepdim=True)).exp(), logarithms.argmax(1)
"""
