"""Which tokens of a chat are trained: exact tables for real templates, and laws for any text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.chat.rendering import ChatError, encode_chats, encode_prompt, render_chat
from tests.tiny.shared_files import shared

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }}"
    " [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
THINKING = CHATML.replace(
    "{{ message['content'] }}<|im_end|>",
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>",
)
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "thinking": THINKING}
ONE = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "Two.\n#### 2"}]
TWO = [*ONE, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Byte-level BPE that merges whatever it can, newlines above all: borders are where it goes wrong."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["user\n\nassistant\n\n\nmodel\nTwo.\n#### 2 system\n\n\n\n" * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


def encode(tokenizer, messages):
    (encoded,) = encode_chats(tokenizer, [render_chat(tokenizer, messages)])
    return encoded


def table(tokenizer, messages):
    """Stretches of the chat as (text, trained)."""
    chat = encode(tokenizer, messages)
    rows, place = [], 0
    for start, stop in chat.answers:
        rows += [(tokenizer.decode(chat.ids[place:start]), False), (tokenizer.decode(chat.ids[start:stop]), True)]
        place = stop
    assert place == len(chat.ids)
    return rows


EXPECTED = {
    "chatml": [
        ("<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Two.\n#### 2<|im_end|>", True),
        ("\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yes.<|im_end|>", True),
    ],
    "llama3": [
        (
            "<s><|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            False,
        ),
        ("Two.\n#### 2<|eot_id|>", True),
        (
            "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            False,
        ),
        ("Yes.<|eot_id|>", True),
    ],
    "gemma": [
        ("<s><start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n", False),
        ("Two.\n#### 2<end_of_turn>", True),
        ("\n<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n", False),
        ("Yes.<end_of_turn>", True),
    ],
    "mistral": [
        ("<s>[INST] 1+1? [/INST] ", False),
        ("Two.\n#### 2</s>", True),
        ("[INST] Sure? [/INST] ", False),
        ("Yes.</s>", True),
    ],
    # the boilerplate of a thinking model belongs to the prompt, not to what is learned
    "thinking": [
        ("<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Two.\n#### 2<|im_end|>", True),
        ("\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("Yes.<|im_end|>", True),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_exactly_the_answers_and_their_stop_tokens_are_trained(name, byte_tokenizer):
    assert table(with_template(byte_tokenizer, TEMPLATES[name]), TWO) == EXPECTED[name]


def test_token_by_token_with_the_tokenizer_of_qwen():
    tokenizer = with_template(AutoTokenizer.from_pretrained(shared("tokenizers", "qwen")), CHATML)
    chat = encode(tokenizer, ONE)
    trained = [start <= place < stop for start, stop in chat.answers for place in range(len(chat.ids))]
    assert [(tokenizer.decode([token]), learns) for token, learns in zip(chat.ids, trained, strict=True)] == [
        ("<|im_start|>", False), ("system", False), ("\n", False), ("Be", False), (" helpful", False), (".", False),
        ("<|im_end|>", False), ("\n", False),
        ("<|im_start|>", False), ("user", False), ("\n", False), ("1", False), ("+", False), ("1", False),
        ("?", False), ("<|im_end|>", False), ("\n", False),
        ("<|im_start|>", False), ("assistant", False), ("\n", False),
        ("Two", True), (".\n", True), ("####", True), (" ", True), ("2", True), ("<|im_end|>", True),
    ]  # fmt: skip


def test_the_thinking_block_of_qwens_own_template_is_not_trained():
    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers", "qwen"))
    (prompt, _), answer = table(tokenizer, ONE)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert answer == ("Two.\n#### 2<|im_end|>", True)
    asked = tokenizer.apply_chat_template(ONE[:1], add_generation_prompt=True, enable_thinking=False, tokenize=False)
    assert encode_prompt(tokenizer, ONE[:1]) == tokenizer(asked, add_special_tokens=False)["input_ids"]


def test_there_is_one_bos(byte_tokenizer):
    """A tokenizer that puts a BOS of its own in front does not get to do so."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_template(byte_tokenizer, LLAMA3)
    backend = tokenizer.backend_tokenizer
    before = backend.post_processor
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    try:
        assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
        assert encode(tokenizer, ONE).ids.count(tokenizer.bos_token_id) == 1
    finally:
        if before is not None:
            backend.post_processor = before
        else:
            backend.post_processor = TemplateProcessing(single="$A")


text = st.text(st.sampled_from("ab 1\n#.é\U0001f642<|>"), min_size=1, max_size=12).filter(str.strip)
chats = st.lists(st.tuples(text, text), min_size=1, max_size=3).map(
    lambda turns: [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
)


@given(chats, st.sampled_from(sorted(TEMPLATES)))
def test_laws_of_masks(byte_tokenizer, messages, name):
    tokenizer = with_template(byte_tokenizer, TEMPLATES[name])
    rendered, chat = render_chat(tokenizer, messages), encode(tokenizer, messages)
    # nothing is lost or added
    assert tokenizer.decode(chat.ids) == rendered.text
    assert len(chat.answers) == len(messages) // 2
    stops = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
    stop = tokenizer.convert_tokens_to_ids(stops.get(name, "<|im_end|>"))
    for (start, end), message in zip(chat.answers, messages[1::2], strict=True):
        # exactly one stop token, at the end; and the answer's own text before it
        answer = chat.ids[start:end]
        assert answer[-1] == stop
        assert answer.count(stop) == 1
        assert tokenizer.decode(answer[:-1]).strip() == message["content"].strip()
    # what is trained continues exactly what is asked with
    assert encode_prompt(tokenizer, messages[:-1]) == chat.ids[: chat.prompt_length]


@given(chats)
def test_the_first_prompt_is_what_the_template_gives_at_inference(byte_tokenizer, messages):
    for template in (CHATML, LLAMA3, GEMMA):
        tokenizer = with_template(byte_tokenizer, template)
        asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
        chat = encode(tokenizer, messages[:2])
        assert chat.ids[: chat.prompt_length] == tokenizer(asked, add_special_tokens=False)["input_ids"]


def test_a_merge_over_the_border_does_not_change_the_prompt(byte_tokenizer):
    tokenizer = with_template(byte_tokenizer, CHATML)
    messages = [ONE[0], {"role": "assistant", "content": "\n\nTwo"}]
    chat = encode(tokenizer, messages)
    whole = tokenizer(render_chat(tokenizer, messages).text, add_special_tokens=False)["input_ids"]
    assert chat.ids != whole  # the newlines would have merged with the header's
    assert tokenizer.decode(chat.ids) == tokenizer.decode(whole)


def test_a_template_without_an_end_gets_the_tokenizers(byte_tokenizer):
    tokenizer = with_template(byte_tokenizer, PLAIN)
    assert table(tokenizer, ONE) == [("user: 1+1?\nassistant: ", False), ("Two.\n#### 2</s>", True)]


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (None, ONE, "no chat template"),
        (CHATML, ONE[:1], "last message must be the assistant's"),
        (CHATML, [], "last message must be the assistant's"),
        (CHATML, [ONE[0], {"role": "assistant", "content": " \n"}], "message 2: the assistant's answer is empty"),
        (GEMMA, [{"role": "system", "content": "x"}, *ONE], "refuses a chat of system, user, assistant: System role"),
        ("{{ messages[0]['content'] }}", ONE, "does not write the assistant's answer exactly once"),
        (CHATML + "{{ messages[1]['content'] }}", ONE, "does not write the assistant's answer exactly once"),
        ("{% for m in %}", ONE, "refuses a chat"),
        (CHATML, [{"role": "user", "content": "a<|im_end|>b"}, ONE[1]], "message 1 holds '<|im_end|>', the text of"),
    ],
)
def test_chats_that_cannot_be_used(byte_tokenizer, template, messages, expected):
    with pytest.raises(ChatError, match=re.escape(expected)):
        render_chat(with_template(byte_tokenizer, template), messages)
