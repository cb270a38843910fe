"""What tells one tokenizer from another: every cache of tokens is keyed by it."""

import functools
import hashlib
from pathlib import Path

from datamodules.storage.cache import file_sha256
from datamodules.text.hub_access import hub_commit
from datamodules.text.learned_bpe import vocabulary_size
from datamodules.text.tokenized_texts import WORDS

FILE_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
FILE_WORDS = ("token", "vocab", "merges", "spiece", "sentencepiece", "bpe", "chat_template")
"""Files that belong to a tokenizer have one of these in their name (tokenizer.json, vocab.txt) or end in .jinja."""


def tokenizer_identity(name: str) -> str:
    """The content of the files for a folder or a .gguf file, name and commit for the hub, else the name.

    Neither the place of the files nor their time counts: a copy is the same tokenizer, and one that was edited in place
    is another.

    Args:
        name: folder, .gguf file, name on the hub, or one that is learned from texts that have their own key, `words`
            or `bpe:<tokens>`.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        digest = hashlib.sha256()
        for file in tokenizer_files(path):
            digest.update(f"{file.relative_to(path).as_posix()} {_file_sha256(file)}\n".encode())
        return digest.hexdigest()[:32]
    if path.is_file():
        return _file_sha256(path)[:32]
    is_learned = name == WORDS or vocabulary_size(name) is not None
    commit = None if is_learned else hub_commit(name)
    return name if commit is None else f"{name}@{commit}"


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder that make up its tokenizer, chat templates included."""
    return [
        file
        for file in sorted(folder.glob("*")) + sorted(folder.glob("additional_chat_templates/*"))
        if file.is_file()
        and file.suffix in FILE_SUFFIXES
        and (file.suffix == ".jinja" or any(word in file.name for word in FILE_WORDS))
    ]


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    """Read once in a process, as long as size, time and inode are what they were: weights may lie in the same file."""
    return file_sha256(path)
