"""How large a store will be, from its first examples, and the refusal when the disk cannot hold it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saekit.errors import StoreError
from saekit.files import free_bytes, readable_bytes
from saekit.inputs import SourceSize
from saekit.store import Example
from saekit.store.format import rows_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """About how much an extraction will write; None where nothing is known of the source's length."""

    n_rows: int | None
    n_examples: int | None
    n_bytes: int | None
    """Bytes on disk at the end, rows and examples."""


def estimate(
    sample: Sequence[Example],
    size: SourceSize,
    n_tokens: int | None,
    widths: Mapping[str, int],
    dtype: str,
    vocabulary: Sequence[bytes] | None,
) -> Estimate:
    """Scale the first examples of a source up to its `size`, at most to `n_tokens` rows.

    Texts scale by bytes (with `vocabulary`, the bytes of each token id), images by their number.
    """
    n_sampled = sum(len(example.kept) for example in sample)
    share = 1.0 if n_sampled == 0 else None
    if vocabulary is not None and size.n_bytes is not None:
        share = _text_bytes(sample, vocabulary) / max(1, size.n_bytes)
    elif size.n_inputs is not None:
        share = len({example.document for example in sample}) / max(1, size.n_inputs)
    n_rows = None if share is None else round(n_sampled / max(share, 1e-12))
    if n_tokens is not None:
        n_rows = n_tokens if n_rows is None else min(n_rows, n_tokens)
    if n_rows is None:
        return Estimate(n_rows=None, n_examples=None, n_bytes=None)
    per_row = n_rows / max(1, n_sampled)
    n_examples = round(len(sample) * per_row)
    # Twice: the examples are first kept by shard, then joined.
    examples = 2 * sum(_example_bytes(example) for example in sample) * per_row
    rows = sum(rows_bytes(n_rows, width, dtype) for width in widths.values())
    return Estimate(n_rows=n_rows, n_examples=n_examples, n_bytes=rows + round(examples))


def check_disk(expected: Estimate, n_rows_done: int, path: Path) -> None:
    """Log the estimate; raise `StoreError` when what is still to be written does not fit on the disk."""
    free = free_bytes(path)
    if expected.n_rows is None or expected.n_bytes is None:
        logger.info("Size unknown: the source does not tell its length. %s free for %s.", readable_bytes(free), path)
        return
    left = round(expected.n_bytes * max(0, expected.n_rows - n_rows_done) / max(1, expected.n_rows))
    logger.info(
        "Estimate from the first examples: about %s rows, %s (%s still to write); %s free for %s.",
        f"{expected.n_rows:,}",
        readable_bytes(expected.n_bytes),
        readable_bytes(left),
        readable_bytes(free),
        path,
    )
    if left > free:
        raise StoreError(
            f"{path} needs about {readable_bytes(left)} more and its disk has {readable_bytes(free)} free. "
            f"Lower --n-tokens, name fewer hook points, or give an --out on another disk."
        )


def _text_bytes(sample: Sequence[Example], vocabulary: Sequence[bytes]) -> int:
    lengths = np.array([len(token) for token in vocabulary])
    return sum(
        int(lengths[example.token_ids[example.kept]].sum()) for example in sample if example.token_ids is not None
    )


def _example_bytes(example: Example) -> int:
    n_tokens = 0 if example.token_ids is None else len(example.token_ids)
    return 8 * len(example.kept) + 4 * n_tokens + len(example.thumbnail) + len(example.document) + 64
