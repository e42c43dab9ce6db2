"""Where a run's numbers go besides `metrics.jsonl`: TensorBoard and Weights & Biases, when asked for."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saekit.errors import ConfigError, closest, require
from saekit.files import Json, hash_json
from saekit.training.monitor import Record

# Keys of a record that say where on the x axis it is.
_PLACE = ("step", "tokens", "seconds", "model")


class Tracker(ABC):
    """Takes the records of each log interval. One is opened per run and closed whatever happens."""

    @abstractmethod
    def write(self, records: Sequence[Record]) -> None:
        """Take one interval's records, one per model."""

    @abstractmethod
    def close(self) -> None:
        """Write what is buffered."""


class TensorBoard(Tracker):
    """Event files in `RUN/tensorboard`; look at them with: tensorboard --logdir RUN."""

    def __init__(self, run: Path, settings: Mapping[str, Any], last_step: int) -> None:
        require("tensorboard", "tensorboard")
        writer = require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        # What a killed attempt logged after its last save is hidden.
        self._writer = writer(log_dir=str(run / "tensorboard"), purge_step=last_step + 1 if last_step else None)

    def write(self, records: Sequence[Record]) -> None:
        for name, value, record in _scalars(records):
            self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases with an id of its own, so that a resumed run goes on in it.

    Project, mode and account are those of wandb's own variables (WANDB_PROJECT, WANDB_MODE=offline, ...).
    """

    def __init__(self, run: Path, settings: Mapping[str, Any], last_step: int) -> None:
        wandb = require("wandb", "wandb")
        self._run = wandb.init(
            dir=str(run),
            id=hash_json({"run": str(run.absolute()), "settings": dict(settings)})[:16],
            name=run.name,
            config=dict(settings),
            resume="allow",
        )

    def write(self, records: Sequence[Record]) -> None:
        self._run.log({name: value for name, value, _ in _scalars(records)}, step=records[0]["step"])

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def open_trackers(names: Sequence[str], run: Path | None, settings: Json, last_step: int) -> list[Tracker]:
    """The trackers called `names` for a run kept in the directory `run`; `last_step` is where it goes on from.

    Raises `ConfigError` for a name that is none or a run without a directory, `MissingExtraError` where the package is
    not installed.
    """
    check_trackers(names)
    if names and run is None:
        raise ConfigError(f"trackers={tuple(names)} need a run directory. Give fit an out=...")
    opened: list[Tracker] = []
    try:
        for name in names:
            assert run is not None
            opened.append(TRACKERS[name](run, settings, last_step))
    except BaseException:
        close_trackers(opened)
        raise
    return opened


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a name that is no tracker."""
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise ConfigError(f"trackers={tuple(names)!r}: no tracker {unknown[0]!r}. Has: {closest(unknown[0], TRACKERS)}")


def close_trackers(trackers: Sequence[Tracker]) -> None:
    """Close all of them, also when one fails to."""
    errors = []
    for tracker in trackers:
        try:
            tracker.close()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _scalars(records: Sequence[Record]) -> list[tuple[str, float, Record]]:
    """(name, value, record) of every number in the records; several models are told apart by a prefix."""
    several = len(records) > 1
    return [
        (f"model {record['model']}/{name}" if several else name, float(value), record)
        for record in records
        for name, value in record.items()
        if name not in _PLACE and isinstance(value, (int, float))
    ]
