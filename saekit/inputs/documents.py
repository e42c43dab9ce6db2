"""Documents for language models, from text files, JSONL, Parquet and Hugging Face datasets."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.errors import InputError, closest
from saekit.inputs.skipped import SkipLog
from saekit.inputs.source import TEXT_SUFFIXES, class_names, dataset_rows, existing, list_files, open_parquet

MAX_WRONG_LINES = 10


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text."""

    id: str
    """Unique in its source: a path below the source folder, `file.jsonl:12` (line, from 1), or a row number."""
    text: str
    label: str | None = None
    """Class of the document, where the source has one."""


def read_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    label_field: str = "label",
    glob: str | None = None,
    skipped: SkipLog | None = None,
) -> Iterator[Document]:
    """The documents of a source, one at a time, always in the same order.

    `source` is a text file, a JSONL or Parquet file, a folder of those (a text file's label is the name of its folder
    below `source`), a folder written by `datasets.save_to_disk`, or `hf:owner/name[:split]`, which is streamed.
    Blank documents and files that are not UTF-8 are counted in `skipped`. Raises `InputError` when the source does
    not exist, when nothing readable is in it, and for lines that are no JSON objects with `text_field`, which it names.
    """
    log = SkipLog() if skipped is None else skipped
    n_read = 0
    for document in _read(source, text_field, label_field, glob, log):
        if not document.text.strip():
            log.add(document.id, "blank document")
            continue
        n_read += 1
        yield document
    if n_read == 0:
        reasons = "".join(f" {n}: {reason}." for reason, n in log.reasons.items())
        raise InputError(f"{source} holds no readable document.{reasons}")


def _read(source: str | Path, text_field: str, label_field: str, glob: str | None, log: SkipLog) -> Iterator[Document]:
    rows = dataset_rows(source)
    if rows is not None:
        for prefix, dataset in rows:
            names = class_names(dataset, label_field)
            for i, row in enumerate(dataset):
                yield _named(row, f"{prefix}{i}", text_field, label_field, names)
        return
    root = existing(source)
    for file in list_files(root, TEXT_SUFFIXES, glob):
        id = file.relative_to(root).as_posix() if root.is_dir() else file.name
        if file.suffix in (".jsonl", ".ndjson"):
            yield from _read_jsonl(file, id, text_field, label_field, log)
        elif file.suffix == ".parquet":
            yield from _read_parquet(file, id, text_field, label_field)
        else:
            yield from _read_text(file, id, root, log)


def _read_text(file: Path, id: str, root: Path, log: SkipLog) -> Iterator[Document]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        log.add(id, "not valid UTF-8")
        return
    except OSError as error:
        log.add(id, f"cannot be read ({error.strerror})")
        return
    folder = file.relative_to(root).parent.as_posix() if root.is_dir() else "."
    yield Document(id=id, text=text, label=None if folder == "." else folder)


def _read_jsonl(file: Path, id: str, text_field: str, label_field: str, log: SkipLog) -> Iterator[Document]:
    wrong: list[str] = []
    with open(file, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                record = _parse(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
                document = _from_record(record, f"{id}:{number}", text_field, label_field, None)
            except UnicodeDecodeError:
                log.add(f"{id}:{number}", "not valid UTF-8")
                continue
            except InputError as error:
                wrong.append(f"line {number} {error}")
                if len(wrong) == MAX_WRONG_LINES:
                    break
                continue
            # After a wrong line the rest is read only to list the others.
            if not wrong:
                yield document
    if wrong:
        more = ", at least" if len(wrong) == MAX_WRONG_LINES else ""
        raise InputError(
            f"{file} has {len(wrong)} unusable line{'s' if len(wrong) > 1 else ''}{more}: {'; '.join(wrong)}."
        )


def _parse(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise InputError(f'is a JSON {type(record).__name__}, not an object like {{"text": "..."}}')
    return record


def _read_parquet(file: Path, id: str, text_field: str, label_field: str) -> Iterator[Document]:
    table = open_parquet(file)
    names = table.schema_arrow.names
    if text_field not in names:
        raise InputError(f"{file} {_no_field(text_field, names)}.")
    columns = [name for name in (text_field, label_field) if name in names]
    number = 0
    batches = table.iter_batches(batch_size=1024, columns=columns)
    while (batch := _next_batch(batches, file, number)) is not None:
        for record in batch.to_pylist():
            number += 1
            yield _named(record, f"{id}:{number}", text_field, label_field, None)


def _next_batch(batches: Iterator[Any], file: Path, number: int) -> Any:
    try:
        return next(batches, None)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged after row {number}: {error}") from None


def _named(record: dict[str, Any], id: str, text_field: str, label_field: str, names: list[str] | None) -> Document:
    try:
        return _from_record(record, id, text_field, label_field, names)
    except InputError as error:
        raise InputError(f"{id} {error}.") from None


def _from_record(
    record: dict[str, Any], id: str, text_field: str, label_field: str, names: list[str] | None
) -> Document:
    if text_field not in record:
        raise InputError(_no_field(text_field, list(record)))
    text, label = record[text_field], record.get(label_field)
    if text is not None and not isinstance(text, str):
        raise InputError(f"has a {type(text).__name__} as {text_field!r}, not a string")
    if names is not None and isinstance(label, int) and 0 <= label < len(names):
        label = names[label]
    return Document(id=id, text=text or "", label=None if label is None else str(label))


def _no_field(field: str, names: list[str]) -> str:
    known = f"it has {', '.join(repr(name) for name in names)}" if names else "it is empty"
    near = f"; closest: {closest(field, names, n=1)}" if names else ""
    return f"has no field {field!r} ({known}{near}; name the field of the text with --text-field)"
