"""What a feature's page shows: examples, histogram, co-activation. NumPy only."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer

from saekit.errors import ConfigError
from saekit.index.firings import Firings
from saekit.index.format import ranges
from saekit.index.results import Activations, Coactivation, FeatureExample

if TYPE_CHECKING:
    from saekit.index.reader import FeatureIndex

COPY_TOKENS = 8
"""Examples that agree in the peak's token and the seven before it are copies of one passage."""

MAX_COACTIVATION_ROWS = 20_000
"""Rows of a feature that `coactivating` looks at; the standard error of a share it gives is then below 0.004."""


def top_examples(index: "FeatureIndex", firings: Firings, n: int) -> list[FeatureExample]:
    """The documents with the highest peaks, highest first; of documents that copy each other there, the first."""
    return _as_examples(index, firings, _without_copies(index, firings, n))


def random_examples(index: "FeatureIndex", firings: Firings, n: int, seed: int) -> list[FeatureExample]:
    """Documents drawn uniformly from those with any activation, at their peaks, in random order."""
    generator = np.random.default_rng(seed)
    peaks = np.sort(firings.peaks)
    chosen = generator.choice(peaks, size=min(n, len(peaks)), replace=False) if len(peaks) else peaks
    return _as_examples(index, firings, chosen)


def quantile_examples(index: "FeatureIndex", firings: Firings, n_bands: int, per_band: int) -> list[FeatureExample]:
    """Examples of `n_bands` bands, highest band first; see `FeatureIndex.quantile_examples`."""
    if n_bands < 1 or per_band < 1:
        raise ConfigError(f"n_bands={n_bands} and per_band={per_band} must be at least 1.")
    if not len(firings.rows):
        return []
    edges = _quantiles_of_sorted(firings.sorted_values, np.arange(1, n_bands) / n_bands)
    band_of = np.searchsorted(edges, firings.values, side="right")
    is_used = np.zeros(int(firings.documents.max()) + 1, dtype=bool)
    chosen: list[Integer[np.ndarray, " n"]] = []
    by_value = np.sort(firings.peaks)
    for band in range(n_bands):
        peaks = by_value[band_of[by_value] == band]
        chosen.append(_evenly(peaks[np.argsort(firings.values[peaks], kind="stable")], per_band))
        is_used[firings.documents[chosen[-1]]] = True
    for band in range(n_bands):
        n_wanted = per_band - len(chosen[band])
        if n_wanted == 0:
            continue
        others = np.flatnonzero((band_of == band) & ~is_used[firings.documents])
        others = firings.strongest_per_document(others)
        extra = _evenly(others[np.argsort(firings.values[others], kind="stable")], n_wanted)
        is_used[firings.documents[extra]] = True
        together = np.concatenate([chosen[band], extra])
        chosen[band] = together[np.argsort(firings.values[together], kind="stable")]
    bands = [band for band in reversed(range(n_bands)) for _ in chosen[band]]
    return _as_examples(index, firings, np.concatenate([each[::-1] for each in reversed(chosen)]), bands)


def histogram(firings: Firings, n_bins: int) -> tuple[Float[np.ndarray, " n_edges"], Integer[np.ndarray, " n_bins"]]:
    """Counts of active values in equal-width bins between 0 and the most extreme value."""
    if n_bins < 1:
        raise ConfigError(f"n_bins={n_bins} must be at least 1.")
    ordered = firings.sorted_values
    low, high = (min(0.0, float(ordered[0])), max(0.0, float(ordered[-1]))) if len(ordered) else (0.0, 1.0)
    edges = np.linspace(low, high, n_bins + 1)
    # The values are sorted already, so counting is n_bins binary searches; the last bin includes its right edge.
    at = np.searchsorted(ordered, edges[1:-1], side="left")
    return edges, np.diff(np.concatenate([[0], at, [len(ordered)]]))


def coactivating(index: "FeatureIndex", activations: Activations, feature: int, n: int) -> Coactivation:
    """Jaccard index and conditional shares of the features that fire on the same rows."""
    n_active = len(activations.rows)
    rows = _evenly(activations.rows.astype(np.int64), MAX_COACTIVATION_ROWS)
    offsets = index.array("by_row/offsets")
    starts = offsets[rows]
    together = index.array("by_row/features")[ranges(starts, offsets[rows + 1] - starts)]
    n_both = np.bincount(together, minlength=index.d_sae)
    n_both[feature] = 0
    found = np.flatnonzero(n_both)
    share = n_both[found] / max(len(rows), 1)
    estimated = share * n_active
    n_other = index.stats["n_active"][found]
    # A sample can put the estimate of "both" above what the other feature has in all.
    estimated = np.minimum(estimated, n_other)
    jaccard = estimated / (n_active + n_other - estimated)
    order = np.lexsort((found, -jaccard))[:n]
    return Coactivation(found[order], jaccard[order], share[order], (estimated / n_other)[order], len(rows))


def _without_copies(index: "FeatureIndex", firings: Firings, n: int) -> Integer[np.ndarray, " n_chosen"]:
    """The first `n` peaks whose token and the ones just before it were not shown yet.

    News agencies, licences and boilerplate put the same passage into many documents, and a list of the strongest
    examples would show little else.
    """
    peaks = firings.peaks
    if index.kind != "text":
        return peaks[:n]
    seen: set[bytes] = set()
    chosen = []
    for peak in peaks.tolist():
        row = int(firings.rows[peak])
        end = int(index.row_position[row]) + 1
        passage = index.examples.token_ids(int(index.row_example[row]))[max(0, end - COPY_TOKENS) : end]
        # Too little stands before the first tokens of a window to call it a copy.
        if end < COPY_TOKENS or passage.tobytes() not in seen:
            seen.add(passage.tobytes())
            chosen.append(peak)
            if len(chosen) == n:
                break
    return np.array(chosen, dtype=peaks.dtype)


def _as_examples(
    index: "FeatureIndex", firings: Firings, chosen: Integer[np.ndarray, " n"], bands: Sequence[int | None] = ()
) -> list[FeatureExample]:
    rows = firings.rows[chosen].astype(np.int64)
    examples = index.row_example[rows]
    offsets = index.examples.row_offsets
    first = np.searchsorted(firings.rows, offsets[examples].astype(np.uint32))
    last = np.searchsorted(firings.rows, offsets[examples + 1].astype(np.uint32))
    quantiles = np.searchsorted(firings.sorted_values, firings.values[chosen], side="right") / max(len(firings.rows), 1)
    columns = (
        examples,
        firings.documents[chosen],
        rows,
        index.row_position[rows],
        firings.values[chosen],
        quantiles,
        first,
        last,
    )
    found = zip(*(column.tolist() for column in columns), bands or (None,) * len(rows), strict=True)
    return [
        FeatureExample(
            example=example,
            document=document,
            row=row,
            position=position,
            value=value,
            quantile=quantile,
            positions=index.row_position[firings.rows[start:stop]],
            values=firings.values[start:stop],
            band=band,
        )
        for example, document, row, position, value, quantile, start, stop, band in found
    ]


def _quantiles_of_sorted(
    ordered: Float[np.ndarray, " n"], levels: Float[np.ndarray, " n_levels"]
) -> Float[np.ndarray, " n_levels"]:
    """`np.quantile` of values that are sorted already."""
    at = levels * (len(ordered) - 1)
    low = np.floor(at).astype(np.int64)
    below, above = ordered[low].astype(np.float64), ordered[np.minimum(low + 1, len(ordered) - 1)]
    return below + (above - below) * (at - low)


def _evenly(items: Integer[np.ndarray, " n_items"], n: int) -> Integer[np.ndarray, " n_kept"]:
    """At most `n` of `items`, evenly spaced, both ends included."""
    if len(items) <= n:
        return items
    return items[np.linspace(0, len(items) - 1, n).round().astype(np.int64)]
