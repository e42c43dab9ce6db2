"""Batches from anywhere, up to a number of tokens, with a cursor where the source can go back to one."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from saekit.errors import CheckpointError, ConfigError, InputError
from saekit.files import Json


class BatchStream:
    """Exactly `n_tokens` rows of `batches`, the last batch cut to fit.

    A list or tuple of tensors is gone through again and again, in its order. An object with `state_dict` and
    `load_state_dict` (a store's loader) keeps its own place. Any other iterable is read once and cannot be resumed.
    """

    def __init__(self, batches: Iterable[Tensor], n_tokens: int | None) -> None:
        if isinstance(batches, Tensor):
            raise ConfigError("batches is one tensor; give an iterable of [batch d_in] tensors, e.g. x.split(1024).")
        known = getattr(batches, "n_tokens", None)
        if n_tokens is None and isinstance(batches, Sequence):
            known = sum(len(batch) for batch in batches)
        total = n_tokens if n_tokens is not None else known
        if total is None:
            raise ConfigError("fit needs n_tokens: these batches do not say how many rows they hold.")
        if total < 1:
            raise ConfigError(f"n_tokens={total}; a run needs at least one row.")
        if known is not None and not isinstance(batches, Sequence) and known < total:
            raise ConfigError(f"n_tokens={total}, but the batches end after {known}; lower n_tokens or raise theirs.")
        self.n_tokens: int = total
        self.batch_size: int | None = getattr(batches, "batch_size", None)
        """Rows of a batch, where the source says so."""
        self._batches = batches
        self._n_taken = 0

    @property
    def is_resumable(self) -> bool:
        """Whether `cursor` and `seek` work."""
        return isinstance(self._batches, Sequence) or hasattr(self._batches, "load_state_dict")

    def cursor(self) -> Json:
        """Where the stream is, as JSON: the next batch is the first one not yet handed out."""
        return {"n_taken": self._n_taken, "source": self._source.state_dict() if self._has_state else None}

    def seek(self, cursor: Json) -> None:
        """Go on from `cursor`."""
        if not self.is_resumable:
            raise CheckpointError(
                "This run was interrupted and its batches cannot be resumed: they are read-once. Give a list of "
                "tensors or a store's loader, or choose a new out directory."
            )
        self._n_taken = cursor["n_taken"]
        if self._has_state:
            self._source.load_state_dict(cursor["source"])

    def batches(self, n_seen: int) -> Iterator[Tensor]:
        """The batches that are left after `n_seen` tokens. Raises `InputError` when the source ends too early."""
        for batch in self._remaining():
            self._n_taken += 1
            batch = batch[: self.n_tokens - n_seen]
            n_seen += len(batch)
            yield batch
            if n_seen >= self.n_tokens:
                return
        raise InputError(f"The batches ended after {n_seen} rows; n_tokens={self.n_tokens} were asked for.")

    def _remaining(self) -> Iterator[Tensor]:
        if not isinstance(self._batches, Sequence):
            yield from self._batches
            return
        n_empty = 0  # in a row: a whole pass of them will not end
        while n_empty < len(self._batches):
            batch = self._batches[self._n_taken % len(self._batches)]
            n_empty = 0 if len(batch) else n_empty + 1
            yield batch

    @property
    def _has_state(self) -> bool:
        return hasattr(self._batches, "load_state_dict")

    @property
    def _source(self) -> Any:
        return self._batches
