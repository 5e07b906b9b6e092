"""How a tokenizer writes two texts: `[CLS] a [SEP] b [SEP]`, perhaps with two `[SEP]` between, or joined to one."""

from transformers import PreTrainedTokenizerBase

_MOST_SEPARATORS = 2


def separators_between(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    How many `[SEP]` stand between two texts: 1 in most templates, 2 in those of RoBERTa and MPNet.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): With `[CLS]` and `[SEP]`.

    Returns:
        `int`: 1 also for a tokenizer that writes no special tokens by itself.

    Raises:
        `ValueError`: it writes a pair in another way, for instance with `[CLS]` at the end.
    """
    one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("one", "other"))
    written = list(tokenizer("one", text_pair="other")["input_ids"])
    if written == [*one, *other]:
        return 1
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    for count in range(1, _MOST_SEPARATORS + 1):
        if written == [cls, *one, *[sep] * count, *other, sep]:
            return count
    raise ValueError(
        f"{type(tokenizer).__name__} writes two texts as {tokenizer.convert_ids_to_tokens(written)}: `[CLS] a [SEP] b "
        "[SEP]`, with one or two `[SEP]` between, is needed."
    )


def first_word_differs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word has other ids at the beginning of a text than behind a space, as in byte-level BPE."""
    once, twice = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the", "the the"))
    return list(twice) != [*once, *once]


__all__ = ["first_word_differs", "separators_between"]
