"""The table of formats: to add one, write its file with `matches`, `read` and perhaps `write`, and a line here."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from saekit.errors import CheckpointError, ConfigError, closest
from saekit.interop.dictionary import Dictionary
from saekit.interop.source import PICKLES, Source


@dataclass(frozen=True, kw_only=True)
class Format:
    """A layout of files, and the module of this package that knows it."""

    module: str
    says: str
    """One line for people."""
    reads: bool = True
    writes: str | None = None
    """The module's function that writes it; None where nobody needs that."""

    def load(self) -> ModuleType:
        return importlib.import_module(f"saekit.interop.{self.module}")


OURS = "saekit"
"""The name of our own checkpoint among the formats."""

FORMATS: dict[str, Format] = {
    "saelens": Format(module="saelens", says="SAELens 6, and the flat config before it", writes="write"),
    "saelens-legacy": Format(module="saelens", says="SAELens before 6", reads=False, writes="write_legacy"),
    "sparsify": Format(module="sparsify", says="sparsify (EleutherAI)", writes="write"),
    "dictionary_learning": Format(module="dictionary_learning", says="dictionary_learning", writes="write"),
    "dictionary_learning-new": Format(
        module="dictionary_learning", says="the same, ReLU as AutoEncoderNew", reads=False, writes="write_new"
    ),
    "gemma_scope": Format(module="gemma_scope", says="Gemma Scope 1 (npz) and 2 (safetensors)"),
    "llama_scope": Format(module="llama_scope", says="Llama Scope, and its R1 distillates"),
    "llamascopium": Format(module="llamascopium", says="llamascopium (OpenMOSS)"),
    "openai": Format(module="openai", says="OpenAI's sparse_autoencoder"),
    "qwen_scope": Format(module="qwen_scope", says="Qwen Scope"),
    "saev": Format(module="saev", says="saev, all schemas"),
    "overcomplete": Format(module="overcomplete", says="overcomplete"),
    "prisma": Format(module="prisma", says="Prisma (ViT-Prisma)"),
}

READABLE = tuple(name for name, each in FORMATS.items() if each.reads)
WRITABLE = tuple(name for name, each in FORMATS.items() if each.writes)


def detect(source: Source) -> str:
    """The name of the format that the files of `source` are in."""
    found = [name for name in READABLE if FORMATS[name].load().matches(source)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{source.path} could be {' or '.join(found)}. Name the format.")
    if len(pickles := [name for name in source.files if name.endswith(PICKLES)]) > 1:
        raise CheckpointError(f"{source.path} holds {len(pickles)} torch files. Name one: {', '.join(pickles[:8])}.")
    names = ", ".join(source.files[:8]) + (", ..." if len(source.files) > 8 else "")
    raise CheckpointError(
        f"{source.path} holds no autoencoder in a format that saekit knows. It holds: {names or 'nothing'}. "
        f"Formats: {OURS}, {', '.join(READABLE)}."
    )


def writer(name: str) -> Callable[[Dictionary, Path], Dictionary]:
    """The function that writes format `name`."""
    check_writable(name)
    function: Callable[[Dictionary, Path], Dictionary] = getattr(FORMATS[name].load(), FORMATS[name].writes or "")
    return function


def check_readable(name: str) -> None:
    """Raise `ConfigError` for a name that is neither "auto", ours, nor in the table of what can be read."""
    if name not in ("auto", OURS, *READABLE):
        raise ConfigError(f"{name!r} is no format that saekit reads. Closest: {closest(name, (OURS, *READABLE))}.")


def check_writable(name: str) -> None:
    """Raise `ConfigError` for a name that is neither ours nor in the table of what can be written."""
    if name not in (OURS, *WRITABLE):
        reason = "can be read and not written" if name in FORMATS else "is no format that saekit knows"
        raise ConfigError(f"{name!r} {reason}. Writes: {', '.join((OURS, *WRITABLE))}.")
