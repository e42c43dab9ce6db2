"""The records that a FeatureIndex answers with."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer


class Activations(NamedTuple):
    """Every row on which a feature is active."""

    rows: Integer[np.ndarray, " n_active"]
    """uint32, ascending."""
    values: Float[np.ndarray, " n_active"]
    """float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureExample:
    """One example on which a feature is active, with the token that it is shown for."""

    example: int
    """Index into `FeatureIndex.examples`."""
    document: int
    """Index of the document the example is from; no list of examples holds a document twice."""
    row: int
    """Row of the token it is shown for: the feature's peak in the document, unless the method says otherwise."""
    position: int
    """Position of that token in the model's token sequence, prefix included."""
    value: float
    """The feature's activation there."""
    quantile: float
    """Share of the feature's active values that are at most `value`, in (0, 1]."""
    positions: Integer[np.ndarray, " n_active"]
    """int32 positions, ascending, of all tokens of this example on which the feature is active."""
    values: Float[np.ndarray, " n_active"]
    """float32 activations at `positions`."""
    band: int | None = None
    """For `quantile_examples`: the band, 0 the lowest."""


class Neighbours(NamedTuple):
    """Features by cosine of their decoder rows, nearest first."""

    features: Integer[np.ndarray, " n"]
    cosines: Float[np.ndarray, " n"]


class Coactivation(NamedTuple):
    """Features g that fire on the same rows as a feature f, highest Jaccard index first."""

    features: Integer[np.ndarray, " n"]
    jaccard: Float[np.ndarray, " n"]
    """Rows where both fire / rows where either fires."""
    p_given: Float[np.ndarray, " n"]
    """P(g|f): share of f's rows on which g fires."""
    p_inverse: Float[np.ndarray, " n"]
    """P(f|g): share of g's rows on which f fires."""
    n_sampled: int
    """Rows of f that were looked at: all of them, or an evenly spaced sample of a dense feature."""


class LogitLens(NamedTuple):
    """Token ids whose logits a feature moves most: `promoted` from the highest, `suppressed` from the lowest."""

    promoted: Integer[np.ndarray, " n"]
    promoted_values: Float[np.ndarray, " n"]
    suppressed: Integer[np.ndarray, " n"]
    suppressed_values: Float[np.ndarray, " n"]


class LabelLift(NamedTuple):
    """How much more a feature fires under one label than the data would make one expect."""

    label: str
    share: float
    """Share of the feature's total activation that falls on this label."""
    base_rate: float
    """Share of all rows that have this label."""
    lift: float
    """`share / base_rate`; 1 means no relation."""
    n: int
    """Rows with this label on which the feature fires."""
    n_documents: int
    """Documents with this label on which the feature fires."""


class TokenShare(NamedTuple):
    """One token id among those a feature fires on."""

    token: int
    share: float
    """Share of the feature's total activation that falls on this token id."""
    n: int
    """Rows with this token id on which the feature fires."""
    mean: float
    """Mean activation over those rows."""


class FeatureMatches(NamedTuple):
    """Features that stand for a token or a label, best first."""

    features: Integer[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    """Harmonic mean of `precision` and `recall`."""
    precision: Float[np.ndarray, " n"]
    """Share of the feature's total activation that falls on the token or label."""
    recall: Float[np.ndarray, " n"]
    """Share of the token's rows (of the label's documents) on which the feature fires."""
