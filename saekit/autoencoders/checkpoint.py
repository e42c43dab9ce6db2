"""The checkpoint of any autoencoder on disk: a directory of meta.json and weights.safetensors, replaced whole."""

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import saekit
from saekit.errors import CheckpointError
from saekit.files import hash_file, read_meta, sync_directory, write_json

KIND = "Autoencoder"
SCHEMA = 1
_RENAME_EXCHANGE = 2


def write_checkpoint(
    path: str | Path,
    class_name: str,
    config: Any,
    tensors: Mapping[str, Tensor],
    provenance: Mapping[str, Any] | None,
    kind: str = KIND,
) -> Path:
    """Write a checkpoint directory; after a kill at any moment `path` holds the old checkpoint or the new one, whole.

    The new one is written beside `path` under a temporary name and moved into place in one step (`_move_into_place`).
    """
    path = Path(path).absolute()
    if path.exists() and not (path / "meta.json").is_file() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} exists and is not a checkpoint; it would be replaced. Choose another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        weights = temporary / "weights.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, weights)
        with open(weights, "rb") as file:
            os.fsync(file.fileno())
        meta = {
            "kind": kind,
            "schema": SCHEMA,
            "saekit": saekit.__version__,
            "class": class_name,
            "config": config,
            "provenance": provenance,
            "content_hash": hash_file(weights),
        }
        write_json(temporary / "meta.json", meta)
        temporary.chmod(0o755)
        _move_into_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def read_checkpoint(path: str | Path, kind: str = KIND) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`meta.json` and the tensors of a checkpoint, on the CPU.

    Raises `CheckpointError` when the directory is missing, of another kind, or its weights are absent or not the ones
    that were written.
    """
    path = Path(path).absolute()
    previous = _previous(path)
    if not path.exists() and previous.exists():
        path = previous
    inside = sorted(found.parent for found in path.glob("checkpoint*/meta.json"))
    if inside and not (path / "meta.json").exists():
        names = " or ".join(repr(str(each)) for each in inside)
        raise CheckpointError(f"{path} is a training run. Its checkpoint is {names}; name that.")
    meta = read_meta(path, kind, SCHEMA, CheckpointError)
    missing = sorted({"class", "config", "content_hash"} - set(meta))
    if missing:
        raise CheckpointError(f"{path / 'meta.json'} lacks {missing}; it was edited or damaged.")
    weights = path / "weights.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights} does not exist; {path} is not a whole checkpoint.")
    found = hash_file(weights)
    if found != meta["content_hash"]:
        raise CheckpointError(
            f"{weights} was altered or truncated: its hash is {found}, meta.json says {meta['content_hash']} "
            f"({weights.stat().st_size} bytes found). Copy the checkpoint again, or use an earlier one."
        )
    try:
        return meta, load_file(weights)
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is not a safetensors file ({error}).") from None


def check_tensors(path: str | Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise one `CheckpointError` that lists every missing, extra and mis-shaped tensor."""
    problems = [f"missing {name} {list(expected[name].shape)}" for name in expected if name not in found]
    problems += [f"unexpected {name} {list(found[name].shape)}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    if problems:
        raise CheckpointError(f"The weights of {path} do not fit its config: {'; '.join(problems)}.")


def _move_into_place(temporary: Path, path: Path) -> None:
    """Make `temporary` be `path`, without a moment in which no whole checkpoint can be loaded from `path`.

    A new path is one rename. An existing one is exchanged in a single system call where the system has one (Linux);
    elsewhere the old directory is first renamed to `.NAME.previous`, which `read_checkpoint` falls back to while
    `path` is missing, and removed after the new one is in place.
    """
    previous = _previous(path)
    if path.exists():
        if not _exchange(temporary, path):
            if previous.exists():
                shutil.rmtree(previous)
            os.rename(path, previous)
            os.rename(temporary, path)
    else:
        os.rename(temporary, path)
    sync_directory(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directory entries atomically; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_fdcwd = -100
    if renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")
