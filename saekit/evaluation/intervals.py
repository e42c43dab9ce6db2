"""How sure a number is: bootstrap intervals over documents, whose tokens are not independent of each other."""

import numpy as np
from jaxtyping import Float

Interval = tuple[float, float]


def bootstrap_ratio(
    numerators: Float[np.ndarray, " n_documents"],
    denominators: Float[np.ndarray, " n_documents"],
    *,
    n_replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of `sum(numerators) / sum(denominators)` when whole documents are drawn with replacement.

    Efron 1979. None for fewer than two documents, or when a replicate's denominator is zero. The percentile interval is
    a little too narrow for few documents: read it as a lower bound on the doubt below about twenty.
    """
    n = len(numerators)
    if n < 2 or n_replicates < 1:
        return None
    generator = np.random.default_rng(seed)
    ratios = np.empty(n_replicates)
    for replicate in range(n_replicates):
        times_drawn = np.bincount(generator.integers(0, n, n), minlength=n)
        below = times_drawn @ denominators
        ratios[replicate] = (times_drawn @ numerators) / below if below else np.nan
    if not np.isfinite(ratios).all():
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)
