"""Whole answers to lab 00, all of them right."""

from __future__ import annotations

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
