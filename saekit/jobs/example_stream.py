"""ExampleStream: the examples of an input, cut into shards by a fixed rule, with a cursor to go on from."""

import hashlib
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from saekit.backbones import Backbone, ImageTokens, TextWindows
from saekit.errors import StoreError
from saekit.inputs import Document, ImageInput, SkipLog
from saekit.store import Example

CHUNK_BATCHES = {"text": 16, "image": 4}
"""Batches whose examples are held in memory and sorted together; an image's pixels are much larger than a text."""

MAX_SHARD_EXAMPLES = 8192
"""A shard's thumbnails are held in memory; with one row per image, rows alone would let them grow without end."""


@dataclass(frozen=True)
class Chunk:
    """Examples that go through the model together."""

    examples: list[Example]
    ends_shard: bool
    state: dict[str, Any]
    """The cursor after them."""


class ExampleStream:
    """Examples in the order of their inputs, with what is needed to go on after any of them.

    The cursor is the number of inputs begun, the number of examples of the last of them, a hash of all of them and the
    count of what was skipped until then. Going on reads the inputs before it again, without preparing them for the
    model, and raises `StoreError` when they are no longer the same.
    """

    def __init__(
        self,
        backbone: Backbone,
        inputs: Iterable[Any],
        options: TextWindows | ImageTokens,
        skipped: SkipLog,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._backbone, self._options = backbone, options
        self._inputs: Iterator[Any] = iter(inputs)
        self._reader_log, self._model_log = skipped, SkipLog()
        self._from = state
        self._waiting: deque[tuple[str, str, SkipLog]] = deque()
        self._n_inputs, self._n_of_last, self._hash = 0, 0, ""
        self._last: str | None = None
        self._is_end = False
        self.skipped = SkipLog() if state is None else SkipLog.from_json(state["skipped"])

    def __iter__(self) -> Iterator[Example]:
        if self._from and self._from["is_end"]:
            return
        n_done = self._go_on() if self._from else 0
        for example in self._backbone.examples(self._watched(), self._options, self._model_log):
            while example.document != self._last:
                self._begin_next()
            self._n_of_last += 1
            if n_done:
                n_done -= 1
                continue
            self.skipped.merge(self._model_log.take())
            yield example
        while self._waiting:
            self._begin_next()
        self.skipped.merge(self._model_log.take())
        self.skipped.merge(self._reader_log.take())
        # From here on the log has what follows the last example: going on from it must not count that again.
        self._is_end = True

    def state(self) -> dict[str, Any]:
        """The cursor after the example that was yielded last."""
        if self._last is None and self._from is not None:
            return dict(self._from)
        return {
            "n_inputs": self._n_inputs,
            "n_of_last": self._n_of_last,
            "inputs_hash": self._hash,
            "is_end": self._is_end,
            "skipped": self.skipped.to_json(),
        }

    def _watched(self) -> Iterator[Any]:
        """The inputs on their way to the backbone, which may ask for several before it gives an example."""
        for item in self._inputs:
            self._waiting.append((item.id, _identity(item), self._reader_log.take()))
            yield item

    def _begin_next(self) -> None:
        assert self._waiting, "a backbone's examples carry the ids of their inputs, in the same order"
        self._last, identity, log = self._waiting.popleft()
        self._hash = _chain(self._hash, identity)
        self._n_inputs += 1
        self._n_of_last = 0
        self.skipped.merge(log)

    def _go_on(self) -> int:
        """Read the inputs up to the cursor again and stand before its last one; returns how many examples of that
        one are done."""
        state = self._from or {}
        current, found = None, ""
        for current in self._inputs:
            self._hash, found = found, _chain(found, _identity(current))
            self._n_inputs += 1
            if self._n_inputs == state["n_inputs"]:
                break
        if current is None or found != state["inputs_hash"]:
            raise StoreError(
                f"The source has changed since this extraction began: its first {state['n_inputs']} inputs are not the "
                f"same. Bring them back, or give another --out."
            )
        self._n_inputs -= 1
        self._reader_log.take()
        self._inputs = itertools.chain([current], self._inputs)
        return int(state["n_of_last"])


def cut_into_chunks(
    stream: ExampleStream,
    *,
    batch_size: int,
    chunk_batches: int,
    shard_rows: int,
    n_rows_done: int,
    n_tokens: int | None,
) -> Generator[Chunk, None, None]:
    """The examples of `stream` in chunks, which make up shards; the last chunk is empty and has the final state.

    A shard ends with the first whole batch that takes it to `shard_rows` rows or 8192 examples, or with the example
    that takes all of them (with the `n_rows_done` before) to `n_tokens`. Nothing here depends on time, so a second run
    cuts the same.
    """
    examples: list[Example] = []
    n_rows, n_in_shard, n_examples = n_rows_done, 0, 0
    is_last = n_tokens is not None and n_rows >= n_tokens
    for example in () if is_last else stream:
        examples.append(example)
        n_rows, n_in_shard, n_examples = n_rows + len(example.kept), n_in_shard + len(example.kept), n_examples + 1
        is_last = n_tokens is not None and n_rows >= n_tokens
        is_full = n_in_shard >= shard_rows or n_examples >= MAX_SHARD_EXAMPLES
        ends_shard = is_last or (is_full and n_examples % batch_size == 0)
        if ends_shard or len(examples) == batch_size * chunk_batches:
            yield Chunk(examples, ends_shard, {**stream.state(), "n_rows": n_rows})
            examples = []
        if ends_shard:
            n_in_shard = n_examples = 0
        if is_last:
            break
    yield Chunk(examples, n_examples > 0, {**stream.state(), "n_rows": n_rows})


def _identity(item: Document | ImageInput) -> str:
    return f"{item.id}\0{item.label}\0{item.text if isinstance(item, Document) else item.caption}"


def _chain(previous: str, identity: str) -> str:
    data = f"{previous}\0{identity}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).hexdigest()
