"""The directory of a training run, and what must be in it so that a killed run goes on to the same weights.

    config.json        what is being trained: a resumed run must agree with it
    run.json           the pointer, replaced atomically: last saved step, its directory, finished or not
    state/00001200/    one save: checkpoint/ (an autoencoder's own format), state.safetensors, state.json
    metrics.jsonl      one line per model and log interval
    report.png         drawn when the run finishes
    report.html        the same with the run's settings, in one file
    checkpoint/        the trained autoencoder, moved here when the run finishes; state/ goes away then

With several models `checkpoint` is `checkpoint-0`, `checkpoint-1` and so on. A kill at any moment leaves `run.json`
pointing at a whole save: a save is written under a temporary name, renamed, pointed at, and only then is its
predecessor removed.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saekit import __version__
from saekit.autoencoders.base import Autoencoder, load_autoencoder
from saekit.errors import CheckpointError
from saekit.files import Json, free_bytes, make_directory, read_json, read_meta, sync_directory, write_json

SCHEMA = 1
POINTER_KEYS = ("state", "finished", "step", "n_tokens_seen", "seconds", "final")


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """What one save holds beside the models themselves."""

    tensors: dict[str, Tensor]
    """Optimizer moments, meters and random state by name, on the CPU."""
    record: Json
    """Step, tokens seen, seconds, the loader's cursor: JSON."""


class RunDirectory:
    """One training run on disk. `description` is the JSON that a resumed run must agree with."""

    def __init__(self, path: str | Path, description: Json, n_models: int) -> None:
        """Raises `CheckpointError` when `path` holds another run (listing what differs) or something else."""
        self._lock: int | None = None
        self.path = Path(path)
        self.description = description
        self.names = ["checkpoint"] if n_models == 1 else [f"checkpoint-{i}" for i in range(n_models)]
        pointer = self.path / "run.json"
        self._pointer: Json | None = None
        if pointer.exists():
            self._pointer = read_meta(
                self.path, "TrainingRun", SCHEMA, CheckpointError, keys=POINTER_KEYS, file="run.json"
            )
        if self._pointer is None:
            self._refuse_foreign_files()
            make_directory(self.path, CheckpointError)
            write_json(self.path / "config.json", description)
            return
        known = read_json(self.path / "config.json", CheckpointError)
        differing = list(_differences(known, description))
        if differing:
            raise CheckpointError(
                f"{self.path} holds another run; it differs in {len(differing)} place(s):\n  "
                + "\n  ".join(differing)
                + "\nChoose another out directory, or delete this one to start again."
            )

    def claim(self) -> None:
        """Keep every other process out of this run until `release`, or until this process ends."""
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise CheckpointError(
                f"Another process is training in {self.path} right now. Wait for it, stop it, or choose another out "
                "directory."
            ) from None
        self._lock = lock

    def release(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def is_finished(self) -> bool:
        return self._pointer is not None and bool(self._pointer["finished"])

    @property
    def checkpoints(self) -> list[Path]:
        """Where the trained autoencoders are, or will be, once the run has finished."""
        return [self.path / name for name in self.names]

    def restore(self, models: Sequence[Autoencoder]) -> SavedState | None:
        """Load the last save into `models`; None when there is none yet."""
        if self._pointer is None:
            return None
        if self.is_finished:
            self._publish()
        saved = self.path / self._pointer["state"]
        if self.is_finished and (gone := [str(at) for at in self.checkpoints if not at.exists()]):
            raise CheckpointError(
                f"The training run in {self.path} is finished, but {', '.join(gone)} is gone. Bring it back, or delete "
                f"{self.path} and train again."
            )
        for model, name in zip(models, self.names, strict=True):
            at = self.path / name if self.is_finished else saved / name
            model.load_state_dict(load_autoencoder(at).state_dict())
        if self.is_finished:
            return SavedState(tensors={}, record=self._pointer)
        self._remove_other_saves()
        return SavedState(
            tensors=load_file(saved / "state.safetensors"), record=read_json(saved / "state.json", CheckpointError)
        )

    def save(
        self,
        models: Sequence[Autoencoder],
        state: SavedState,
        provenance: Mapping[str, Any],
        finished: bool = False,
    ) -> None:
        """Write one save and point at it. With `finished` the checkpoints are moved to their final place."""
        step = int(state.record["step"])
        target = self.path / "state" / f"{step:08d}"
        temporary = target.with_name(f".{target.name}.tmp")
        with _explain_full_disk(self.path):
            for leftover in (temporary, target):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir(parents=True)
            for model, name in zip(models, self.names, strict=True):
                model.save(temporary / name, provenance=provenance)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
            save_file(tensors, temporary / "state.safetensors")
            write_json(temporary / "state.json", state.record)
            _sync_tree(temporary)
            os.rename(temporary, target)
            sync_directory(target.parent)
            pointer = {
                "kind": "TrainingRun",
                "schema": SCHEMA,
                "saekit": __version__,
                "state": str(target.relative_to(self.path)),
                "finished": finished,
                **{key: state.record[key] for key in ("step", "n_tokens_seen", "seconds", "final")},
            }
            write_json(self.path / "run.json", pointer)
        self._pointer = pointer
        if finished:
            self._publish()
        else:
            self._remove_other_saves()

    def _publish(self) -> None:
        """Move the checkpoints of a finished run out of its last save; does nothing where that is done already."""
        assert self._pointer is not None
        saved = self.path / self._pointer["state"]
        for name in self.names:
            if (saved / name).exists():
                shutil.rmtree(self.path / name, ignore_errors=True)
                os.rename(saved / name, self.path / name)
        sync_directory(self.path)
        shutil.rmtree(self.path / "state", ignore_errors=True)

    def _remove_other_saves(self) -> None:
        assert self._pointer is not None
        kept = self.path / self._pointer["state"]
        for entry in kept.parent.iterdir():
            if entry != kept:
                shutil.rmtree(entry, ignore_errors=True)

    def _refuse_foreign_files(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{self.path} is a file; out must be a directory, new or of the same run.")
        known = {"config.json", "metrics.jsonl", "report.png", "report.html", "state", "tensorboard", "wandb"}
        found = sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        foreign = [name for name in found if name not in known and not name.endswith(".tmp")]
        if foreign:
            raise CheckpointError(
                f"{self.path} holds other files ({', '.join(foreign[:5])}); choose a new or empty out directory."
            )


def refuse_small_disk(path: Path, n_bytes: int) -> None:
    """Raise `CheckpointError` when the disk of `path` cannot hold two saves of `n_bytes` (the old one goes last)."""
    free = free_bytes(path)
    if free < 2 * n_bytes:
        raise CheckpointError(
            f"{path}: {free / 2**20:.0f} MiB are free and the run's saves take {2 * n_bytes / 2**20:.0f} MiB "
            "(two of them, for a moment). Free some space or choose another out directory."
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimizer's per-parameter state as `{prefix}.{parameter index}.{name}`."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if not key.startswith(f"{prefix}."):
            continue
        index, name = key.removeprefix(f"{prefix}.").split(".")
        like = parameters[int(index)]
        # Fused Adam walks parameter and moments by storage, so they must have the same strides; it does not check.
        same_layout = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(index), {})[name] = same_layout
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{at}[{i}]")
    elif old != new:
        yield f"{at}: {old!r} there, {new!r} now"


@contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # safetensors wraps the OSError of a full disk in an error of its own.
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise CheckpointError(
                f"The disk of {path} is full. The save before this one is whole: free some space and run again."
            ) from error
        raise


def _sync_tree(directory: Path) -> None:
    for entry in [directory, *directory.rglob("*")]:
        handle = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
