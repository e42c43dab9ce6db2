"""Mean and spread of rows, gathered batch by batch and merged exactly, and the report of rows with a huge norm."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SLICE_ELEMENTS = {"cpu": 2**16, "cuda": 2**24}
"""Elements turned to float64 at once: on a CPU what its cache holds, on a GPU enough to keep it busy."""
HIGH_NORM_FACTOR = 10.0
N_LISTED = 20


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean [width] and summed squared distance from the mean, in float64."""

    n: int
    mean: Float[np.ndarray, " width"]
    squared: float
    """Sum over rows of |row - mean|^2."""

    @property
    def mean_squared_norm_about_mean(self) -> float:
        return self.squared / self.n


def merge_moments(parts: Iterable[Moments]) -> Moments:
    """Moments of all rows behind `parts`, merged in order (Chan, Golub and LeVeque 1979: no cancellation)."""
    iterator = iter(parts)
    total = next(iterator)
    for part in iterator:
        if part.n == 0 or total.n == 0:
            total = part if total.n == 0 else total
            continue
        n, difference = total.n + part.n, part.mean - total.mean
        mean = total.mean + difference * (part.n / n)
        cross = float(difference @ difference) * (total.n * (part.n / n))
        total = Moments(n, mean, total.squared + part.squared + cross)
    return total


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """What `row_statistics` measured, still on the device of the rows: reading it is what waits for the device."""

    norms: Float[Tensor, " n"]
    """Norm of each row, float64; not finite exactly where the row holds a NaN or an infinity."""
    means: list[tuple[int, Float[Tensor, " width"], Float[Tensor, ""]]]
    """(rows, mean, squared) of consecutive slices of the rows."""

    def moments(self) -> Moments:
        """The moments of all the rows, on the host."""
        return merge_moments(Moments(n, mean.cpu().numpy(), float(squared)) for n, mean, squared in self.means)


def row_statistics(rows: Float[Tensor, "n width"]) -> RowStatistics:
    """Norms and moments of `rows` in float64, without waiting for the device."""
    norms, means = [], []
    for part in rows.split(max(1, SLICE_ELEMENTS.get(rows.device.type, 2**22) // rows.shape[1])):
        exact = part.double()
        mean = exact.mean(0)
        norms.append(torch.linalg.vector_norm(exact, dim=1))
        means.append((len(part), mean, (exact - mean).square_().sum()))
    return RowStatistics(torch.cat(norms), means)


def norm_report(
    norms: Float[np.ndarray, " n_rows"],
    row_example: Int[np.ndarray, " n_rows"],
    row_position: Int[np.ndarray, " n_rows"],
) -> dict[str, Any]:
    """Median and largest norm, and the rows above 10 times the median (attention sinks and their like): how many, at
    which positions (the 20 commonest), and the first 20 of them."""
    median = float(np.median(norms))
    high = np.flatnonzero(norms > HIGH_NORM_FACTOR * median)
    positions, counts = np.unique(row_position[high], return_counts=True)
    commonest = np.lexsort((positions, -counts))[:N_LISTED]
    return {
        "median": median,
        "largest": float(norms.max()),
        "high_above": HIGH_NORM_FACTOR * median,
        "n_high": len(high),
        "high_by_position": [[int(positions[i]), int(counts[i])] for i in commonest],
        "first_high": [
            {"row": int(row), "example": int(row_example[row]), "position": int(row_position[row])}
            for row in high[:N_LISTED]
        ],
    }
