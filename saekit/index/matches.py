"""Which features stand for a token or a label, and which tokens and labels a feature stands for. NumPy only."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer

from saekit.errors import FeatureIndexError, closest
from saekit.index.format import ranges
from saekit.index.results import Activations, FeatureMatches, LabelLift, TokenShare

if TYPE_CHECKING:
    from saekit.index.reader import FeatureIndex

MAX_TOKEN_ROWS = 20_000
"""Rows of a token that `features_of_token` looks at."""


def features_of_token(index: "FeatureIndex", token: int, n: int) -> FeatureMatches:
    """Features by how well "fires here" and "is this token" agree, see `FeatureMatches.score`."""
    token_offsets = index.array("tokens/offsets")
    if not 0 <= token < len(token_offsets) - 1:
        raise FeatureIndexError(f"There is no token id {token}; they run from 0 to {len(token_offsets) - 2}.")
    rows = index.array("tokens/rows")[int(token_offsets[token]) : int(token_offsets[token + 1])].astype(np.int64)
    n_rows = len(rows)
    if n_rows > MAX_TOKEN_ROWS:
        rows = rows[np.linspace(0, n_rows - 1, MAX_TOKEN_ROWS).round().astype(np.int64)]
    offsets = index.array("by_row/offsets")
    codes = ranges(offsets[rows], offsets[rows + 1] - offsets[rows])
    features = index.array("by_row/features")[codes]
    weights = np.abs(index.unpack(index.array("by_row/values")[codes]))
    counts = np.bincount(features, minlength=index.d_sae)
    totals = np.bincount(features, weights=weights, minlength=index.d_sae)
    found = np.flatnonzero(counts)
    precision = totals[found] * (n_rows / max(len(rows), 1)) / index.stats["total"][found]
    return _best(found, np.minimum(precision, 1.0), counts[found] / max(len(rows), 1), n)


def features_of_label(index: "FeatureIndex", label: str | int, n: int) -> FeatureMatches:
    """Features by how well "fires in this document" and "has this label" agree."""
    at = _label_index(index, label)
    pairs = np.flatnonzero(index.array("labels/label") == at)
    features = np.searchsorted(index.array("labels/offsets"), pairs, side="right") - 1
    precision = index.array("labels/total")[pairs] / index.stats["total"][features]
    n_documents = int(index.array("labels/documents_per_label")[at])
    recall = index.array("labels/n_documents")[pairs] / max(n_documents, 1)
    return _best(features, precision, recall, n)


def label_lift(index: "FeatureIndex", feature: int) -> list[LabelLift] | None:
    """Every label on which the feature fires, by share of its activation; None when no example has a label."""
    if not index.has("labels/label"):
        return None
    start, stop = (int(at) for at in index.array("labels/offsets")[feature : feature + 2])
    labels = index.array("labels/label")[start:stop]
    share = index.array("labels/total")[start:stop] / index.stats["total"][feature]
    base_rate = index.array("labels/rows_per_label")[labels] / index.n_rows
    n_active = index.array("labels/n_active")[start:stop]
    n_documents = index.array("labels/n_documents")[start:stop]
    return [
        LabelLift(
            label=index.label_names[int(labels[i])],
            share=float(share[i]),
            base_rate=float(base_rate[i]),
            lift=float(share[i] / base_rate[i]),
            n=int(n_active[i]),
            n_documents=int(n_documents[i]),
        )
        for i in np.lexsort((labels, -share))
    ]


def top_tokens(index: "FeatureIndex", activations: Activations, n: int) -> list[TokenShare]:
    """Token ids by share of the feature's total activation."""
    tokens = index.array("tokens/of_row")[activations.rows]
    counts = np.bincount(tokens)
    totals = np.bincount(tokens, weights=np.abs(activations.values))
    sums = np.bincount(tokens, weights=activations.values)
    found = np.flatnonzero(counts)
    whole = totals.sum()
    return [
        TokenShare(int(at), float(totals[at] / whole), int(counts[at]), float(sums[at] / counts[at]))
        for at in found[np.lexsort((found, -totals[found]))[:n]]
    ]


def search_tokens(index: "FeatureIndex", text: str) -> list[int]:
    """Token ids of the store whose string contains `text`, most frequent first."""
    strings = index.token_strings_folded
    counts, wanted = np.diff(index.array("tokens/offsets")), text.casefold()
    found = np.array([at for at in np.flatnonzero(counts) if wanted in strings[at]], dtype=np.int64)
    return [int(at) for at in found[np.lexsort((found, -counts[found]))]]


def fold_vocabulary(index: "FeatureIndex") -> list[str]:
    """The case-folded string of every token id."""
    vocabulary = index.examples.vocabulary
    if vocabulary is None:
        raise FeatureIndexError(f"{index.path} holds no token strings; only texts can be searched.")
    return [piece.decode("utf-8", "replace").casefold() for piece in vocabulary]


def _label_index(index: "FeatureIndex", label: str | int) -> int:
    if not index.has("labels/label"):
        raise FeatureIndexError(f"The examples of {index.path} have no labels.")
    names = index.label_names
    if isinstance(label, str):
        if label not in names:
            raise FeatureIndexError(f"There is no label {label!r}. Closest: {closest(label, names)}")
        return names.index(label)
    if not 0 <= label < len(names):
        raise FeatureIndexError(f"There is no label {label}; they run from 0 to {len(names) - 1}.")
    return int(label)


def _best(
    features: Integer[np.ndarray, " n_found"],
    precision: Float[np.ndarray, " n_found"],
    recall: Float[np.ndarray, " n_found"],
    n: int,
) -> FeatureMatches:
    score = 2 * precision * recall / (precision + recall)
    order = np.lexsort((features, -score))[:n]
    return FeatureMatches(features[order], score[order], precision[order], recall[order])
