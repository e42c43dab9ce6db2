"""Which documents are held out of training: a fixed rule on the document's id, the same in every store. NumPy only."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int

from saekit.errors import ConfigError
from saekit.store.examples import ExampleTable


def held_out(document_ids: Iterable[str], share: float) -> Bool[np.ndarray, " n_documents"]:
    """True for the documents that training leaves out when it holds out `share` (0..1) of them.

    A document is held out when BLAKE2b of its id, read as a fraction of 2^64, is below `share`. So the rule needs no
    list: it is the same in every store, whatever else the store holds, and raising the share only adds documents.
    Documents with equal text and different ids may fall on both sides.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"held_out_share={share}; it is a share of the documents, at least 0 and below 1.")
    return np.array([_fraction(document) < share for document in document_ids], dtype=bool)


def training_rows(table: ExampleTable, held_out_share: float) -> Int[np.ndarray, " n_rows"]:
    """Ascending numbers of the rows whose documents are not held out, for `store.batches(rows=...)`.

    Raises `ConfigError` when nothing is left to train on.
    """
    is_out = held_out(table.documents, held_out_share)[table.document_of]
    rows = np.flatnonzero(~np.repeat(is_out, np.diff(table.row_offsets)))
    if not len(rows):
        raise ConfigError(
            f"held_out_share={held_out_share} leaves none of the {len(table.documents)} documents of {table.path} to "
            "train on; lower it."
        )
    return rows


def _fraction(document: str) -> float:
    digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8, person=b"saekit-split")
    return int.from_bytes(digest.digest(), "little") / 2**64
