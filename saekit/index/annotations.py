"""People's labels, tags and notes about features: an append-only log beside the index. Standard library only.

Each line of `annotations.jsonl` is one change, `{"time": ..., "feature": 17, "label": ..., "tags": [...], "note": ...}`
with the fields that changed; the last value of a field wins.
"""

import csv
import fcntl
import io
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saekit.errors import FeatureIndexError
from saekit.files import read_json

FILE_NAME = "annotations.jsonl"


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What people said about one feature."""

    label: str = ""
    """A short name for it."""
    tags: tuple[str, ...] = ()
    note: str = ""
    time: str = ""
    """When it last changed, ISO 8601 in UTC."""

    @property
    def is_empty(self) -> bool:
        return not (self.label or self.tags or self.note)


class Annotations:
    """The annotations of one index. Several processes may read and write at once; none sees half a change."""

    def __init__(self, index_path: str | Path) -> None:
        self.path = Path(index_path) / FILE_NAME
        self._d_sae = int(read_json(Path(index_path) / "meta.json", FeatureIndexError)["d_sae"])
        self._read: dict[int, Annotation] = {}
        self._state: tuple[int, int, int] | None = None
        self._lock = threading.Lock()

    def get(self, feature: int) -> Annotation:
        """The annotation of `feature`; an empty one when nobody has said anything."""
        self._check(feature)
        return self._current().get(int(feature), Annotation())

    def set(
        self, feature: int, *, label: str | None = None, tags: Sequence[str] | None = None, note: str | None = None
    ) -> Annotation:
        """Change the fields that are given (an empty one clears it); on disk when this returns.

        Raises `FeatureIndexError` when there is no such feature or the index's folder cannot be written to.
        """
        self._check(feature)
        changes: dict[str, Any] = {}
        if label is not None:
            changes["label"] = label.strip()
        if tags is not None:
            changes["tags"] = list(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
        if note is not None:
            changes["note"] = note
        if changes:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._append({"time": now, "feature": int(feature), **changes})
        return self.get(feature)

    def all(self) -> dict[int, Annotation]:
        """Every feature that has a label, a tag or a note, by feature."""
        return {feature: found for feature, found in sorted(self._current().items()) if not found.is_empty}

    def search(self, text: str) -> list[int]:
        """Features whose label, tags and note together contain every word of `text`; case is ignored."""
        words = text.casefold().split()
        return [
            feature
            for feature, found in self.all().items()
            if all(word in " ".join((found.label, *found.tags, found.note)).casefold() for word in words)
        ]

    def export_csv(self) -> str:
        """A table with a header row: feature, label, tags (separated by `;`), note, time."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["feature", "label", "tags", "note", "time"])
        for feature, found in self.all().items():
            writer.writerow([feature, found.label, ";".join(found.tags), found.note, found.time])
        return text.getvalue()

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self._d_sae:
            raise FeatureIndexError(f"There is no feature {feature}; the index has features 0 to {self._d_sae - 1}.")

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            with self._locked() as handle:
                _repair_tail(handle)
                written = os.write(handle, line)
                if written != len(line):
                    raise OSError(f"only {written} of {len(line)} bytes were written")
                os.fsync(handle)
        except OSError as cause:
            raise FeatureIndexError(f"The annotation could not be saved in {self.path}: {cause}.") from None

    @contextmanager
    def _locked(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def _current(self) -> dict[int, Annotation]:
        with self._lock:
            try:
                stat = self.path.stat()
            except FileNotFoundError:
                self._read, self._state = {}, None
                return self._read
            state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if state != self._state:
                self._read, self._state = self._parse(self.path.read_bytes()), state
            return self._read

    def _parse(self, data: bytes) -> dict[int, Annotation]:
        found: dict[int, Annotation] = {}
        # A line without its end is one that is being written, or was when its writer died.
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                feature = int(record["feature"])
                fields = {name: record[name] for name in ("label", "note", "time") if name in record}
                if "tags" in record:
                    fields["tags"] = tuple(record["tags"])
            except (ValueError, KeyError, TypeError):
                raise FeatureIndexError(
                    f"Line {number} of {self.path} is not an annotation; mend or delete it."
                ) from None
            found[feature] = replace(found.get(feature, Annotation()), **fields)
        return found


def _repair_tail(handle: int) -> None:
    """Finish or drop a last line that a killed writer left. The caller holds the lock, so no writer is at work."""
    size = os.fstat(handle).st_size
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return
    data = os.pread(handle, size, 0)
    start = data.rfind(b"\n") + 1
    try:
        json.loads(data[start:])
    except ValueError:
        os.ftruncate(handle, start)
    else:
        os.write(handle, b"\n")
