"""Character tokenizer as a Hugging Face fast tokenizer."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))


def build_tokenizer(max_length: int = 256) -> PreTrainedTokenizerFast:
    """Tokenizer with one token per printable ASCII character or newline, 99 tokens in all.

    Ids: pad 0, eos 1, unknown 2, then the characters in code order. Text of known characters
    decodes to itself; any other character becomes the unknown token. Padding is on the left, as
    generation needs it, and no token is added to a prompt.

    Args:
        max_length: the model's longest sequence, in tokens.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.decode(tokenizer("3*7=21").input_ids)
    '3*7=21'
    """
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, UNKNOWN, *CHARACTERS))}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    # Without a decoder tokens would be joined by spaces.
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
