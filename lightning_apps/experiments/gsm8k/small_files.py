"""A language model of a few thousand parameters and sums to teach it: what `verify` and the tests train on."""

import itertools
import random
from pathlib import Path

from datamodules.text.jsonl import write_jsonl

CHARACTERS = "\n #*+-=.,?0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_small_files(folder: Path) -> list[str]:
    """Write `data/train.jsonl`, `data/test.jsonl` and `model/` into a folder; returns overrides that use them."""
    write_sums(folder / "data")
    write_model(folder / "model")
    return [f"data.path={folder / 'data'}", f"model.pretrained={folder / 'model'}"]


def write_sums(folder: Path, *, num_train: int = 60, num_test: int = 8) -> None:
    """Questions of unequal lengths, answered in the manner of GSM8K."""
    draw = random.Random(0)  # noqa: S311 (no secret)
    for name, count in (("train", num_train), ("test", num_test)):
        rows = []
        for _ in range(count):
            terms = [draw.randrange(1, 10) for _ in range(draw.randrange(2, 6))]
            sums = list(itertools.accumulate(terms))
            steps = "\n".join(f"{sums[at]} + {terms[at + 1]} = {sums[at + 1]}" for at in range(len(terms) - 1))
            question = f"What is {' + '.join(map(str, terms))}?"
            rows.append({"question": question, "answer": f"{steps}\n#### {sums[-1]}"})
        write_jsonl(folder / f"{name}.jsonl", rows)


def write_model(folder: Path) -> None:
    """A Llama with random weights and a tokenizer of single characters with a chat template, in Hugging Face layout.

    No Qwen2: AutoTokenizer puts its own pre-tokenizer in place of the one that is saved beside such a model.
    """
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=vocabulary["<|im_end|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
        dtype=torch.float32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
