"""The statistics table: one number per feature and column, computed for all features of a block at once.

Letters: a block is a range of features; `offsets` [n_features+1] delimit each feature's codes; `values` are its
activations v > 0 (|v| is the weight, should a sparsity allow negative ones). NaN where a feature never fires.

| column | meaning |
|---|---|
| `n_active` | rows on which the feature is active (v != 0) |
| `density` | n_active / n_rows |
| `n_documents` | distinct documents in which it is active at least once |
| `is_dead` | n_active == 0 on the rows of this index |
| `max`, `mean` | largest and mean active value |
| `q50`, `q90`, `q99` | quantiles of the active values, linearly interpolated |
| `total` | sum of \\|v\\| |
| `position_mean` | mean position, in the model's token sequence, of the active rows |
| `position_bias` | (position_mean - mean position of all rows) / standard deviation of the position of all rows |
| `token_entropy` | entropy in bits of p(t) = sum of \\|v\\| on token id t / total; 0: always the same token (texts) |
| `top_token`, `top_token_share` | the token id with the largest p(t), and that p(t); -1 when dead |
| `label_entropy` | the same over labels, among labelled rows, in bits |
| `top_label`, `top_label_lift` | the label with the largest p(label), and p(label) / share of all rows with it |
| `decoder_norm` | Euclidean norm of the feature's row of W_dec |
| `encoder_decoder_cosine` | cosine between its column of W_enc and its row of W_dec |
| `nearest_feature`, `nearest_cosine` | the other feature with the most similar row of W_dec, and the cosine |

Values are those that the index stores (fp16 with a scale). Top tokens and labels prefer the lower id on ties.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Shaped

from saekit.index.format import QUANTILE_LEVELS, from_order_key, order_key, unpack_values

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class RowFacts:
    """What the statistics need to know about the rows, in memory: 4 bytes per row and column."""

    position: Integer[np.ndarray, " n_rows"]
    document: Integer[np.ndarray, " n_rows"]
    token: Integer[np.ndarray, " n_rows"] | None
    """Token ids; None for images."""
    label: Integer[np.ndarray, " n_rows"] | None
    """Label of the row's example, -1 for none; None when no example has a label."""
    n_labels: int
    label_of_document: Integer[np.ndarray, " n_documents"]


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of a range of at most 65,536 features, by feature and then by row."""

    offsets: Integer[np.ndarray, " n_features_plus_1"]
    rows: Integer[np.ndarray, " n_codes"]
    packed: Float[np.ndarray, " n_codes"]
    exponent: int

    @property
    def feature(self) -> Integer[np.ndarray, " n_codes"]:
        """uint64 number of each code's feature inside the range."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.uint64), np.diff(self.offsets))


@dataclass(frozen=True, eq=False)
class Groups:
    """Sums over the codes that share a feature and a key (a token id or a label), by feature and then by key."""

    feature: Integer[np.ndarray, " n_groups"]
    key: Integer[np.ndarray, " n_groups"]
    weight: Float[np.ndarray, " n_groups"]
    """float64 sums of |v|."""
    count: Integer[np.ndarray, " n_groups"]


def block_statistics(codes: Codes, facts: RowFacts, n_rows: int) -> tuple[Columns, Columns]:
    """Statistics of a range of features, and its part of the label table (`labels/*`; empty without labels)."""
    n_features = len(codes.offsets) - 1
    n_active = np.diff(codes.offsets)
    feature = codes.feature
    values = unpack_values(codes.packed, codes.exponent)
    columns: Columns = {
        "n_active": n_active,
        "density": n_active / n_rows,
        "is_dead": n_active == 0,
        "total": segment_sum(np.abs(values), codes.offsets),
        "mean": (segment_sum(values, codes.offsets) / _nan_for_none(n_active)).astype(np.float32),
        **_value_quantiles(codes, feature),
        **_positions(codes, facts, n_active),
    }
    documents = _distinct(feature << np.uint64(32) | facts.document[codes.rows].astype(np.uint64))
    of_document = (documents >> np.uint64(32)).astype(np.int64)
    columns["n_documents"] = np.bincount(of_document, minlength=n_features)
    if facts.token is not None:
        tokens = group(codes, feature, facts.token[codes.rows])
        columns["token_entropy"], columns["top_token"], columns["top_token_share"] = _concentration(tokens, n_features)
    if facts.label is None:
        return columns, {}
    labels = group(codes, feature, facts.label[codes.rows])
    columns["label_entropy"], columns["top_label"], share = _concentration(labels, n_features)
    base_rates = np.bincount(facts.label[facts.label >= 0], minlength=facts.n_labels) / n_rows
    whole = np.where(n_active > 0, columns["total"], np.nan)
    labelled = np.bincount(labels.feature, weights=labels.weight, minlength=n_features)
    top = columns["top_label"]
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = share * labelled / whole / base_rates[top]
    columns["top_label_lift"] = np.where(top >= 0, lift, np.nan).astype(np.float32)
    seen = facts.label_of_document[(documents & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    pairs = of_document[seen >= 0] * facts.n_labels + seen[seen >= 0]
    pair_of_group = labels.feature * facts.n_labels + labels.key
    found, counts = np.unique(pairs, return_counts=True)
    table: Columns = {
        "label": labels.key.astype(np.uint32),
        "total": labels.weight.astype(np.float32),
        "n_active": labels.count.astype(np.uint32),
        "n_documents": counts[np.searchsorted(found, pair_of_group)].astype(np.uint32),
        "counts": np.bincount(labels.feature, minlength=n_features),
    }
    return columns, table


def group(codes: Codes, feature: Integer[np.ndarray, " n_codes"], keys: Integer[np.ndarray, " n_codes"]) -> Groups:
    """Sum |v| over the codes with the same feature and key; codes with a negative key are left out."""
    packed = feature << np.uint64(48) | keys.astype(np.uint64) << np.uint64(16) | _bits(np.abs(codes.packed))
    # One sort of 64-bit integers: NumPy vectorises it, unlike argsort and lexsort.
    ordered = np.sort(packed[keys >= 0])
    pair = ordered >> np.uint64(16)
    starts = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else np.zeros(0, np.int64)
    weights = (ordered & np.uint64(0xFFFF)).astype(np.uint16).view(np.float16)
    weights = unpack_values(weights, codes.exponent).astype(np.float64)
    first = pair[starts]
    return Groups(
        feature=(first >> np.uint64(32)).astype(np.int64),
        key=(first & np.uint64(0xFFFFFFFF)).astype(np.int64),
        weight=np.add.reduceat(weights, starts) if len(starts) else np.zeros(0),
        count=np.diff(np.append(starts, len(pair))),
    )


def segment_sum(
    x: Shaped[np.ndarray, " n_codes"], offsets: Integer[np.ndarray, " n_plus_1"]
) -> Float[np.ndarray, " n"]:
    """float64 sums of consecutive segments of `x`; 0 for empty ones."""
    sums = np.zeros(len(offsets) - 1)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[filled] = np.add.reduceat(x, offsets[filled], dtype=np.float64)
    return sums


def _value_quantiles(codes: Codes, feature: Integer[np.ndarray, " n_codes"]) -> Columns:
    """`quantiles` [n_features n_levels], `max`, q50, q90, q99."""
    ordered = np.sort(feature << np.uint64(16) | order_key(codes.packed))
    keys = ordered.astype(np.uint16)
    n_active = np.diff(codes.offsets)
    alive = np.flatnonzero(n_active)
    at = (n_active[alive] - 1)[:, None] * np.array(QUANTILE_LEVELS)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, (n_active[alive] - 1)[:, None])
    start = codes.offsets[alive][:, None]
    below, above = (_values_of(keys[start + index], codes.exponent) for index in (low, high))
    quantiles = np.full((len(n_active), len(QUANTILE_LEVELS)), np.nan, dtype=np.float32)
    quantiles[alive] = below + (above - below) * (at - low)
    names = {"max": 1.0, "q50": 0.5, "q90": 0.9, "q99": 0.99}
    return {
        "quantiles": quantiles,
        **{name: np.ascontiguousarray(quantiles[:, QUANTILE_LEVELS.index(level)]) for name, level in names.items()},
    }


def _positions(codes: Codes, facts: RowFacts, n_active: Integer[np.ndarray, " n_features"]) -> Columns:
    mean = segment_sum(facts.position[codes.rows], codes.offsets) / _nan_for_none(n_active)
    spread = float(facts.position.std()) if len(facts.position) else 0.0
    bias = (mean - facts.position.mean()) / spread if spread else np.where(n_active > 0, 0.0, np.nan)
    return {"position_mean": mean.astype(np.float32), "position_bias": bias.astype(np.float32)}


def _concentration(
    groups: Groups, n_features: int
) -> tuple[Float[np.ndarray, " n"], Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Entropy in bits, top key (-1 for none) and its share, of each feature's distribution over keys."""
    whole = np.bincount(groups.feature, weights=groups.weight, minlength=n_features)
    share = groups.weight / whole[groups.feature]
    # `+ 0.0` turns the -0.0 of a single key into 0.0.
    entropy = -np.bincount(groups.feature, weights=share * np.log2(share), minlength=n_features) + 0.0
    starts = np.flatnonzero(np.diff(groups.feature, prepend=-1))
    if len(starts):
        highest = np.repeat(np.maximum.reduceat(groups.weight, starts), np.diff(np.append(starts, len(share))))
        at_highest = np.flatnonzero(groups.weight == highest)
        best = at_highest[np.flatnonzero(np.diff(groups.feature[at_highest], prepend=-1))]
    else:
        best = starts
    top, top_share = np.full(n_features, -1, dtype=np.int32), np.full(n_features, np.nan, dtype=np.float32)
    top[groups.feature[best]] = groups.key[best]
    top_share[groups.feature[best]] = share[best]
    return np.where(whole > 0, entropy, np.nan).astype(np.float32), top, top_share


def _distinct(keys: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n_distinct"]:
    ordered = np.sort(keys)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _nan_for_none(counts: Integer[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.where(counts > 0, counts, np.nan)


def _bits(packed: Float[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
    return packed.view(np.uint16).astype(np.uint64)


def _values_of(keys: Integer[np.ndarray, "..."], exponent: int) -> Float[np.ndarray, "..."]:
    return from_order_key(keys).astype(np.float64) * 2.0**exponent
