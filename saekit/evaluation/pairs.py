"""Pairs of features that divide one thing between them: splitting and absorption, read from a feature index.

For features f and g of an index, P(g|f) is the share of f's rows on which g fires. Where g fires only where f does,
g is a part that f was split into. Where two directions are alike and yet the features avoid each other, one may have
absorbed the other's cases (Chanin et al. 2024, arXiv:2409.14507): f goes silent exactly where g speaks for it. Both
are candidates for a person to look at, not verdicts.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from saekit.index import FeatureIndex
from saekit.index.format import ranges

INSIDE, OUTSIDE = 0.9, 0.02
"""Splitting: P(f|g) is at least the first. Absorption: neither P(g|f) nor P(f|g) is above the second."""
ALIKE = 0.3
"""Absorption: the decoder cosine is at least this."""
MIN_ACTIVE = 20
"""Rows on which both features must fire, each by itself, to be judged."""
MAX_SHOWN = 20
MAX_ROWS = 4000
"""Rows of a feature that are looked at, evenly spaced; a denser feature is judged by these."""


@dataclass(frozen=True, kw_only=True)
class FeaturePair:
    """Two features of an index, how their firings overlap and how alike their directions are."""

    f: int
    g: int
    p_g_given_f: float
    p_f_given_g: float
    cosine: float
    """Of their decoder rows."""


@dataclass(frozen=True, kw_only=True)
class FeaturePairs:
    """Splitting and absorption among each feature's nearest decoder rows."""

    index: str
    n_features: int
    """Live features that were looked at."""
    n_pairs: int
    """Pairs of them: each with its stored neighbours."""
    n_splitting: int
    n_absorption: int
    splitting: tuple[FeaturePair, ...]
    """g fires where f does and rarely elsewhere, f fires elsewhere too; most alike first, at most `MAX_SHOWN`."""
    absorption: tuple[FeaturePair, ...]
    """Alike directions that avoid each other; most alike first, at most `MAX_SHOWN`."""


def feature_pairs(index: FeatureIndex | str | Path, *, max_features: int = 4096, seed: int = 0) -> FeaturePairs:
    """Judge every live feature (at most `max_features`, drawn at random) with its nearest decoder rows."""
    index = index if isinstance(index, FeatureIndex) else FeatureIndex.open(index)
    n_active = np.asarray(index.stats["n_active"])
    live = np.flatnonzero(n_active >= MIN_ACTIVE)
    if len(live) > max_features:
        live = np.sort(np.random.default_rng(seed).permutation(live)[:max_features])
    neighbours, cosines = index.array("neighbours/features"), index.array("neighbours/cosines")
    splitting: list[FeaturePair] = []
    absorption: list[FeaturePair] = []
    n_pairs = 0
    for f in live.tolist():
        others = np.asarray(neighbours[f])
        keep = n_active[others] >= MIN_ACTIVE
        given = overlaps(index, f, others[keep])
        for g, cosine, p_g in zip(others[keep].tolist(), np.asarray(cosines[f])[keep].tolist(), given, strict=True):
            # P(f|g) from P(g|f): both count the rows on which both fire.
            p_f = min(1.0, float(p_g) * int(n_active[f]) / int(n_active[g]))
            pair = FeaturePair(f=f, g=g, p_g_given_f=float(p_g), p_f_given_g=p_f, cosine=cosine)
            n_pairs += 1
            if p_f >= INSIDE > p_g:
                splitting.append(pair)
            elif max(p_f, p_g) <= OUTSIDE and cosine >= ALIKE and f < g:
                absorption.append(pair)
    return FeaturePairs(
        index=str(index.path),
        n_features=len(live),
        n_pairs=n_pairs,
        n_splitting=len(splitting),
        n_absorption=len(absorption),
        splitting=tuple(sorted(splitting, key=lambda pair: -pair.cosine)[:MAX_SHOWN]),
        absorption=tuple(sorted(absorption, key=lambda pair: -pair.cosine)[:MAX_SHOWN]),
    )


def overlaps(index: FeatureIndex, f: int, others: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """P(g|f) of each of `others`, from the row-major codes of f's rows (at most `MAX_ROWS`, evenly spaced)."""
    rows = index.activations(f).rows.astype(np.int64)
    if len(rows) > MAX_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_ROWS).round().astype(np.int64)]
    offsets = index.array("by_row/offsets")
    at = ranges(np.asarray(offsets[rows]), np.asarray(offsets[rows + 1]) - np.asarray(offsets[rows]))
    fired = np.bincount(index.array("by_row/features")[at].astype(np.int64), minlength=index.d_sae)
    return fired[others] / max(1, len(rows))
