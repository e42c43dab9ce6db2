"""Every firing of one feature with the examples and documents it falls in, and a small cache of them."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer

if TYPE_CHECKING:
    from saekit.index.reader import FeatureIndex


@dataclass(frozen=True, eq=False)
class Firings:
    """The active rows of one feature, ascending, and what the examples drawn from them share."""

    rows: Integer[np.ndarray, " n_active"]
    values: Float[np.ndarray, " n_active"]
    documents: Integer[np.ndarray, " n_active"]

    @cached_property
    def sorted_values(self) -> Float[np.ndarray, " n_active"]:
        """Active values in ascending order."""
        return np.sort(self.values)

    @cached_property
    def peaks(self) -> Integer[np.ndarray, " n_documents"]:
        """Indices into `rows` of each document's highest value (its first, on ties), highest first."""
        peaks = self.strongest_per_document(np.arange(len(self.rows)))
        return peaks[np.argsort(-self.values[peaks], kind="stable")]

    def strongest_per_document(self, subset: Integer[np.ndarray, " n_subset"]) -> Integer[np.ndarray, " n_found"]:
        """Of an ascending subset of indices into `rows`, the one with the highest value in every document."""
        if not len(subset):
            return subset
        documents, values = self.documents[subset], self.values[subset]
        starts = np.flatnonzero(np.concatenate([[True], documents[1:] != documents[:-1]]))
        highest = np.maximum.reduceat(values, starts)
        run_of = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(subset))))
        is_highest = np.flatnonzero(values == highest[run_of])
        first = is_highest[np.unique(run_of[is_highest], return_index=True)[1]]
        # A document's examples need not be neighbours in the store: keep the best of its runs.
        order = np.lexsort((first, -values[first], documents[first]))
        best = first[order][np.unique(documents[first][order], return_index=True)[1]]
        return subset[np.sort(best)]


class FiringsCache:
    """The last few features' firings: the parts of one page ask for the same ones."""

    def __init__(self, n_kept: int = 4) -> None:
        self._kept: OrderedDict[int, Firings] = OrderedDict()
        self._n_kept = n_kept
        self._lock = threading.Lock()

    def get(self, index: "FeatureIndex", feature: int) -> Firings:
        with self._lock:
            found = self._kept.get(feature)
            if found is not None:
                self._kept.move_to_end(feature)
                return found
        rows, values = index.activations(feature)
        found = Firings(rows, values, index.examples.document_of[index.row_example[rows]])
        with self._lock:
            self._kept[feature] = found
            while len(self._kept) > self._n_kept:
                self._kept.popitem(last=False)
        return found
