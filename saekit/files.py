"""Files that are whole or absent: atomic writes, tagged-dataclass JSON, schema checks and content hashes."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from saekit.errors import ConfigError, SaekitError, StoreError, closest

Json = dict[str, Any]
Migration = Callable[[Json], Json]


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that replaces it on success and vanishes on any exception.

    After a kill at any moment `path` holds either its old content or the whole new one. The data is flushed to the
    disk before the rename, and the directory after it, so the same holds for a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def make_directory(path: str | Path, error: type[SaekitError]) -> None:
    """Make the directory `path` and those above it; `error` says in the user's words why that cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        file = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), None)
        reason = f"{file} is a file" if file else cause.strerror
        raise error(f"{path} cannot be made a directory: {reason}. Choose another out directory.") from None


def sync_directory(path: str | Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: no other reader accepts them."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")


def read_json(path: str | Path, error: type[SaekitError] = StoreError) -> Any:
    """Read a JSON file; `error` says in the user's words that it is missing or not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise error(f"{path} is not valid JSON ({cause}). It was edited or damaged; write it again.") from None


def read_meta(
    directory: str | Path,
    kind: str,
    schema: int,
    error: type[SaekitError],
    migrations: Mapping[int, Migration] | None = None,
    keys: Collection[str] = (),
    file: str = "meta.json",
) -> Json:
    """Read `directory/file` of an artifact of `kind`, brought up to `schema` by `migrations[old_schema]`.

    Raises `error` when the directory is absent, is another kind of artifact, was written by a newer saekit, or lacks
    some of `keys`, all of which it lists.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise error(f"{directory} is not a directory; {_a(kind)} {kind} is a directory with a {file}.")
    meta: Json = read_json(directory / file, error)
    if not isinstance(meta, dict):
        raise error(f"{directory / file} is not a JSON object. It was edited or damaged; write it again.")
    found = meta.get("kind")
    if found != kind:
        raise error(f"{directory} holds {_a(str(found))} {found!r}, not {_a(kind)} {kind!r}.")
    version = meta.get("schema")
    if not isinstance(version, int) or version < 1:
        raise error(f"{directory / file} has schema {version!r}; expected an integer from 1 to {schema}.")
    if version > schema:
        raise error(f"{directory} has schema {version}; this saekit reads up to {schema}. Type: pip install -U saekit")
    while version < schema:
        step = (migrations or {}).get(version)
        if step is None:
            raise error(f"{directory} has schema {version} and no migration to {version + 1} exists.")
        meta, version = step(meta), version + 1
    if missing := sorted(set(keys) - set(meta)):
        raise error(f"{directory / file} lacks {', '.join(missing)}. It was edited or damaged; write it again.")
    return meta


def hash_file(path: str | Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hash_bytes(*parts: bytes) -> str:
    """BLAKE2b-128 of `parts`, each preceded by its length so that moving a byte between parts changes it."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Hash of a JSON value that does not depend on the order of its keys."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def free_bytes(path: str | Path) -> int:
    """Free bytes on the disk that holds `path`, or would hold it once made."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def to_tagged(value: Any) -> Any:
    """A JSON value for a tree of dataclasses; each dataclass becomes `{"kind": class name, field: value ...}`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_tagged(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): to_tagged(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_tagged(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def from_tagged(data: Any, expected: Any) -> Any:
    """The inverse of `to_tagged`: rebuild a value of type `expected` (a dataclass, a union of them, or a plain type).

    Raises `ConfigError` that lists every unknown and every missing field at once.
    """
    options = _dataclass_options(expected)
    if isinstance(data, dict) and options:
        by_name = {option.__name__: option for option in options}
        name = data.get("kind", next(iter(by_name)) if len(by_name) == 1 else None)
        if name not in by_name:
            raise ConfigError(f"Unknown kind {name!r}. Closest: {closest(str(name), by_name)}")
        return _build(by_name[name], {key: item for key, item in data.items() if key != "kind"})
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (tuple, list) and isinstance(data, (list, tuple)):
        inner = arguments[0] if arguments else Any
        return origin(from_tagged(item, inner) for item in data)
    if data is not None and (expected is Path or Path in arguments):
        return Path(data)
    return data


def _build(cls: type, fields: Json) -> Any:
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = sorted(set(fields) - set(known))
    missing = sorted(
        name
        for name, field in known.items()
        if name not in fields and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise ConfigError(f"{cls.__name__}: unknown fields {unknown}, missing fields {missing}.")
    return cls(**{name: from_tagged(item, hints[name]) for name, item in fields.items()})


def _dataclass_options(expected: Any) -> list[type]:
    if isinstance(expected, type):
        return [expected] if dataclasses.is_dataclass(expected) else []
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(expected) for option in _dataclass_options(part)]
    if typing.get_origin(expected) is typing.Annotated:
        return _dataclass_options(typing.get_args(expected)[0])
    return []


def _a(word: str) -> str:
    return "an" if word[:1].upper() in "AEIOU" else "a"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def readable_bytes(n_bytes: int) -> str:
    """A number of bytes for people, in decimal units: `3.1 MB`, `12.40 GB`."""
    if n_bytes < 1e6:
        return f"{n_bytes / 1e3:.1f} kB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.2f} GB"
