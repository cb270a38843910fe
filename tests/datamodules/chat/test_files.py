"""Every mistake in the data is one clear line with its file and line number."""

import re

import pytest

from datamodules.chat.files import chat_rows, split_files, to_chat

OPTIONS = {"system_prompt": None, "calculator_annotations": False}


def rows(tmp_path, *lines, **options):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return [to_chat(*row, **{**OPTIONS, **options}) for row in chat_rows(path)]


GOOD = '{"question": "1+1?", "answer": "1+1=<<1+1=2>>2\\n#### 2"}'


def test_questions_and_answers_become_chats(tmp_path):
    chat, other = rows(tmp_path, GOOD, "", GOOD.replace("#### 2", "two"))
    assert chat.messages == [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "1+1=2\n#### 2"},
    ]
    assert (chat.gold, other.gold) == ("2", None)
    assert [chat.origin, other.origin] == [
        f"{tmp_path}/train.jsonl, line {number}" for number in (1, 3)
    ]  # blank lines are counted


def test_annotations_stay_and_system_prompts_come_where_asked_for(tmp_path):
    (chat,) = rows(tmp_path, GOOD, calculator_annotations=True, system_prompt="Be brief.")
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}
    assert chat.messages[2]["content"] == "1+1=<<1+1=2>>2\n#### 2"


def test_messages_of_several_turns_are_taken_as_they_are(tmp_path):
    line = (
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u <<1+1=2>>"},'
        ' {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"},'
        ' {"role": "assistant", "content": "b\\n#### 1,200 "}]}'
    )
    (chat,) = rows(tmp_path, line, system_prompt="not used")
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.messages[1]["content"] == "u <<1+1=2>>"
    assert chat.gold == "1,200"


def test_halves_of_characters_become_question_marks(tmp_path):
    """As in every experiment: no tokenizer takes them, and NUL is a character like any other."""
    (chat,) = rows(tmp_path, '{"question": "a\\ud800\\u0000b", "answer": "\\u2028x"}')
    assert [message["content"] for message in chat.messages] == ["a?\0b", "\u2028x"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"question": "1+1?"}', "field 'answer' is missing (it has question)"),
        ("{}", "field 'question' is missing (it has nothing)"),
        ('{"question": 3, "answer": "x"}', "question must be a text, found a number"),
        ('{"question": "x", "answer": null}', "answer must be a text, found null"),
        ('{"question": "x", "answer": " \\n "}', "answer is empty"),
        ('{"question": "", "answer": "x"}', "question is empty"),
        (
            '{"question": "x", "answer": " <<48/2=24>>"}',
            "the answer ' <<48/2=24>>' is empty without its annotations; write it out, or keep them: "
            "data.calculator_annotations=true",
        ),
        ('{"question": "x", ', "not JSON (Expecting property name enclosed in double quotes at column "),
        ("[1, 2]", "[1, 2] is not a JSON object; each line must be one"),
        (b'{"question": "\xff"}', "byte 15 (0xff) is not UTF-8; save the file as UTF-8"),
        ('{"messages": []}', "messages must be a list of role and content, found an empty list"),
        ('{"messages": "x"}', "messages must be a list of role and content, found a text"),
        ('{"messages": ["x"]}', "message 1 must be an object with role and content, found a text"),
        ('{"messages": [{"role": "bot", "content": "x"}]}', "message 1: role is 'bot'; allowed are system, user"),
        ('{"messages": [{"role": "user"}]}', "message 1: field 'content' is missing"),
        (
            '{"messages": [{"role": "user", "content": "x"}]}',
            "the last message must be the assistant's, it is the user's",
        ),
    ],
)
def test_a_bad_line_is_named(line, expected, tmp_path):
    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        rows(tmp_path, GOOD, line)
    assert str(raised.value).startswith(f"{tmp_path}/train.jsonl, line 2: ")
    assert "\n" not in str(raised.value)


def test_folders_without_data_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        split_files(tmp_path / "nowhere")
    (tmp_path / "data.csv").touch()
    with pytest.raises(ValueError, match=r"data\.csv: this is a file; name a folder that holds train\.jsonl and,"):
        split_files(tmp_path / "data.csv")
    with pytest.raises(ValueError, match=re.escape("there is no train.jsonl in it (but data.csv)")):
        split_files(tmp_path)
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(ValueError, match="the file has no row"):
        rows(tmp_path)
    assert list(split_files(tmp_path)) == ["train"]
    (tmp_path / "val.jsonl").touch()
    with pytest.raises(ValueError, match=r"val\.jsonl would not be read; make it validation\.jsonl, or take it out"):
        split_files(tmp_path)
    (tmp_path / "val.jsonl").rename(tmp_path / "validation.jsonl")
    assert list(split_files(tmp_path)) == ["train", "validation"]
