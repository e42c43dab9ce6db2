"""Files are whole or absent; tagged dataclasses survive JSON; schemas are checked."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from saekit.errors import CheckpointError, ConfigError, MissingExtraError, StoreError, closest, require
from saekit.files import (
    atomic_write,
    from_tagged,
    hash_bytes,
    hash_file,
    hash_json,
    read_json,
    read_meta,
    to_tagged,
    write_json,
)


@dataclass(frozen=True)
class Square:
    side: float
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True)
class Drawing:
    shape: Square | Circle
    out: Path | None = None


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"), atomic_write(path, "w") as file:
        file.write("new")
        raise RuntimeError("halfway")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    code = (
        "import os, signal, sys\n"
        "from saekit.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'new' * 100_000); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(previous)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_json_refuses_nan_because_other_readers_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_damaged_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"a": ')
    with pytest.raises(CheckpointError, match=r"meta\.json is not valid JSON"):
        read_json(tmp_path / "meta.json", CheckpointError)


@pytest.mark.parametrize(
    "value", [Drawing(Square(2.0, ("a", "b")), Path("x")), Drawing(Circle()), Drawing(Square(0.0), None)]
)
def test_tagged_dataclasses_round_trip(value: Drawing) -> None:
    assert from_tagged(to_tagged(value), Drawing) == value


def test_an_unknown_kind_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="Unknown kind 'Sqare'. Closest: 'Square'"):
        from_tagged({"shape": {"kind": "Sqare", "side": 1}}, Drawing)


def test_all_wrong_fields_are_listed_at_once() -> None:
    with pytest.raises(ConfigError, match=r"unknown fields \['colour', 'sides'\], missing fields \['side'\]"):
        from_tagged({"kind": "Square", "sides": 1, "colour": "red"}, Square)


def test_meta_of_another_kind_or_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a directory"):
        read_meta(tmp_path / "none", "ActivationStore", 1, StoreError)
    write_json(tmp_path / "meta.json", {"kind": "FeatureIndex", "schema": 1})
    with pytest.raises(StoreError, match="holds a 'FeatureIndex', not an 'ActivationStore'"):
        read_meta(tmp_path, "ActivationStore", 1, StoreError)
    with pytest.raises(StoreError, match="schema 1; this saekit reads up to 0"):
        read_meta(tmp_path, "FeatureIndex", 0, StoreError)


def test_an_old_schema_is_migrated_step_by_step(tmp_path: Path) -> None:
    write_json(tmp_path / "meta.json", {"kind": "Thing", "schema": 1, "n": 1})
    steps = {1: lambda meta: {**meta, "n": meta["n"] + 10}, 2: lambda meta: {**meta, "n": meta["n"] * 2}}
    assert read_meta(tmp_path, "Thing", 3, StoreError, steps)["n"] == 22
    with pytest.raises(StoreError, match="no migration to 2"):
        read_meta(tmp_path, "Thing", 3, StoreError)


def test_hashes_see_moved_bytes_and_ignore_key_order(tmp_path: Path) -> None:
    assert hash_bytes(b"ab", b"c") != hash_bytes(b"a", b"bc")
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    (tmp_path / "x").write_bytes(b"abc")
    assert len(hash_file(tmp_path / "x")) == 32


def test_closest_puts_the_nearest_first() -> None:
    assert closest("layer.6", ["layers.6", "layers.5", "embed"]).startswith("'layers.6'")


def test_a_missing_extra_names_the_pip_line() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'saekit\[lm\]'"):
        require("a_package_nobody_has", "lm")
