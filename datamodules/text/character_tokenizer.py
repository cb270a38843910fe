"""A tokenizer with one token for each character, as a real transformers fast tokenizer."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"


def character_tokenizer(characters: Sequence[str]) -> PreTrainedTokenizerFast:
    """Tokenizer over `characters` in the given order, after the three special tokens.

    Padding goes to the left, since the model it serves generates. Characters outside the alphabet become `<unk>`.
    """
    vocabulary = {token: number for number, token in enumerate([PAD, END, UNKNOWN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
