"""A byte-level BPE tokenizer for the tiny model (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2)."""

from __future__ import annotations

from collections.abc import Iterable

END = "<|endoftext|>"


def train_tokenizer(documents: Iterable[str], vocab_size: int):
    """Train a byte-level BPE tokenizer with one special token that begins and ends documents and pads.

    Returns a `PreTrainedTokenizerFast`; it puts `END` before every text, as the model saw each document begin.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(documents, trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, end)])
    special = {"bos_token": END, "eos_token": END, "pad_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
