"""A word-level tokenizer for models that are trained from scratch on a small, closed vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hvlm.errors import UserError
from hvlm.text.chat import TEMPLATES

UNKNOWN = "<|unk|>"


def train_word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One id per lower-cased word or run of punctuation that occurs in ``texts``.

    Ids 0-2 are the ``tiny`` template's tokens, 3 stands for unknown words, the rest are in alphabetical order: the
    result depends on the set of words only, not on the order in which the texts come. Errors: ``UserError`` when
    the texts hold no word at all.
    """
    lower, split = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = {word for text in texts for word, _ in split.pre_tokenize_str(lower.normalize_str(text))}
    if not words:
        raise UserError("the texts to train a tokenizer on hold no word; is the dataset empty?")
    special = TEMPLATES["tiny"]
    vocab = {token: i for i, token in enumerate([*special, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = lower
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=special[-1], pad_token=special[-1]
    )
