"""Can a label be read off a few latents? k-sparse probes against probes on the raw activations, and linear probes.

Gurnee et al. 2023 (arXiv:2305.01610), as SAEBench runs it: features are averaged over each document, for every class
the k features whose means differ most between the class and the rest are chosen on the fitting documents, and a
logistic regression on those k is judged on other documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from saekit.errors import InputError
from saekit.evaluation.intervals import Interval

KS = (1, 2, 5, 16)
MIN_FIT, MIN_TEST = 8, 3
"""Fewest documents of a class, among those to fit on and those to judge on, for it to be probed."""
RIDGE = 1.0


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How well classes are told from the rest by probes on one kind of features."""

    features: str
    """`"latents"` or `"raw"`."""
    k: int | None
    """Features that a probe reads; None for all of them."""
    accuracy: float
    """Balanced accuracy (mean of the hit rates inside and outside the class), averaged over classes; chance is 0.5."""
    accuracy_interval: Interval | None
    """95 % bootstrap over the documents judged."""
    auc: float
    """Area under the ROC curve, averaged over classes; chance is 0.5."""


@dataclass(frozen=True, kw_only=True)
class Probing:
    """k-sparse probes on latents and on raw activations."""

    n_fit: int
    n_test: int
    classes: tuple[int, ...]
    """Labels that were probed; others have too few documents."""
    best_latents: tuple[int, ...]
    """For each class, the latent of its 1-sparse probe."""
    best_accuracies: tuple[float, ...]
    """For each class, the balanced accuracy of its 1-sparse probe on latents."""
    results: tuple[ProbeResult, ...]


@dataclass(frozen=True, eq=False)
class Logistic:
    """A fitted logistic regression."""

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, " d"]
    bias: float

    def logits(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        return (x - self.mean) / self.scale @ self.weights + self.bias


def fit_logistic(
    x: Float[np.ndarray, "n d"], is_positive: Bool[np.ndarray, " n"], ridge: float = RIDGE, n_steps: int = 50
) -> Logistic:
    """Minimise the class-balanced log loss plus ridge / 2 * |weights|^2 on standardised features, by Newton's method.

    Each class weighs as much as half of all rows. The optimum is unique, so no seed and no learning rate is involved.
    """
    x = x.astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale[scale < 1e-12] = 1.0
    z = (x - mean) / scale
    # More features than rows: the optimum lies in the span of the rows, where the problem is small.
    basis = np.linalg.svd(z, full_matrices=False)[2] if z.shape[1] > z.shape[0] else None
    if basis is not None:
        z = z @ basis.T
    y = is_positive.astype(np.float64)
    n, n_positive = len(y), max(1.0, y.sum())
    weight = np.where(is_positive, n / (2 * n_positive), n / (2 * max(1.0, n - y.sum())))
    design = np.column_stack([z, np.ones(n)])
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 1e-9
    theta = np.zeros(design.shape[1])

    def loss(theta: np.ndarray) -> float:
        margin = design @ theta
        return float(weight @ (np.logaddexp(0, margin) - y * margin) + penalty @ theta**2 / 2)

    current = loss(theta)
    for _ in range(n_steps):
        p = 1 / (1 + np.exp(-np.clip(design @ theta, -500, 500)))
        gradient = design.T @ (weight * (p - y)) + penalty * theta
        hessian = (design * (weight * np.maximum(p * (1 - p), 1e-12))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (new := loss(theta - size * step)) > current and size > 1e-6:
            size /= 2
        theta = theta - size * step
        if current - new < 1e-10 * max(1.0, abs(current)):
            break
        current = new
    weights = theta[:-1] if basis is None else basis.T @ theta[:-1]
    return Logistic(mean, scale, weights, float(theta[-1]))


def auc(scores: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]) -> float:
    """Chance that a positive scores above a negative, ties counting half. NaN without one of each."""
    n_positive = int(is_positive.sum())
    n_negative = len(scores) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[is_positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def most_different(x: Float[np.ndarray, "n d"], is_positive: Bool[np.ndarray, " n"], k: int) -> Int[np.ndarray, " k"]:
    """The `k` columns of `x` with the largest difference of means, largest first; ties are in order of column."""
    difference = np.abs(x[is_positive].mean(0) - x[~is_positive].mean(0))
    return np.argsort(-difference, kind="stable")[:k]


def k_sparse_probing(
    fit: dict[str, Float[np.ndarray, "fitted _"]],
    fit_labels: Int[np.ndarray, " fitted"],
    test: dict[str, Float[np.ndarray, "tested _"]],
    test_labels: Int[np.ndarray, " tested"],
    *,
    ks: Sequence[int] = KS,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Probing:
    """Probe every class one against the rest, on `"latents"` and on `"raw"` (also with all features).

    Labels below 0 are left out. Raises `InputError` when fewer than two classes have `MIN_FIT` documents to fit on and
    `MIN_TEST` to judge on.
    """
    fit = {name: x[fit_labels >= 0] for name, x in fit.items()}
    test = {name: x[test_labels >= 0] for name, x in test.items()}
    fit_labels, test_labels = fit_labels[fit_labels >= 0], test_labels[test_labels >= 0]
    classes = [
        label
        for label in np.unique(fit_labels).tolist()
        if (fit_labels == label).sum() >= MIN_FIT and (test_labels == label).sum() >= MIN_TEST
    ]
    if len(classes) < 2:
        raise InputError(
            f"Probing needs two classes with {MIN_FIT} labelled documents to fit on and {MIN_TEST} held out; "
            f"{len(classes)} of {len(np.unique(fit_labels))} classes have them."
        )
    results: list[ProbeResult] = []
    best_latents, best_accuracies = [0] * len(classes), [0.0] * len(classes)
    for name, x in fit.items():
        orders = [most_different(x, fit_labels == label, max(ks)) for label in classes]
        for k in (*ks, *([None] if name == "raw" else [])):
            right = np.zeros((len(classes), len(test_labels)), dtype=bool)
            areas = []
            for i, label in enumerate(classes):
                columns = orders[i][:k] if k is not None else slice(None)
                probe = fit_logistic(x[:, columns], fit_labels == label)
                scores = probe.logits(test[name][:, columns].astype(np.float64))
                right[i] = (scores > 0) == (test_labels == label)
                areas.append(auc(scores, test_labels == label))
            inside = np.array([test_labels == label for label in classes])
            accuracies = _balanced(right, inside, np.ones((1, len(test_labels))))[0]
            if name == "latents" and k == 1:
                best_latents, best_accuracies = [int(order[0]) for order in orders], accuracies.tolist()
            results.append(
                ProbeResult(
                    features=name,
                    k=k,
                    accuracy=float(accuracies.mean()),
                    accuracy_interval=_interval(right, inside, n_bootstrap, seed),
                    auc=float(np.mean(areas)),
                )
            )
    return Probing(
        n_fit=len(fit_labels),
        n_test=len(test_labels),
        classes=tuple(classes),
        best_latents=tuple(best_latents),
        best_accuracies=tuple(best_accuracies),
        results=tuple(results),
    )


def linear_probe(
    fit: Float[np.ndarray, "example width"],
    labels: Int[np.ndarray, " example"],
    test: dict[str, Float[np.ndarray, "_ width"]],
) -> dict[str, Int[np.ndarray, "_"]]:
    """The class that one-against-rest logistic regressions fitted on `fit` give each row of each of `test`."""
    classes = np.unique(labels[labels >= 0])
    if len(classes) < 2:
        raise InputError(f"A linear probe needs two classes to fit on, found {len(classes)}.")
    known = labels >= 0
    probes = [fit_logistic(fit[known], labels[known] == label) for label in classes]
    return {
        name: classes[np.argmax([probe.logits(x.astype(np.float64)) for probe in probes], axis=0)]
        for name, x in test.items()
    }


def _balanced(
    right: Bool[np.ndarray, "label document"],
    inside: Bool[np.ndarray, "label document"],
    times: Float[np.ndarray, "replicate document"],
) -> Float[np.ndarray, "replicate label"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = (times @ (right & inside).T) / (times @ inside.T)
        rejections = (times @ (right & ~inside).T) / (times @ (~inside).T)
    return (hits + rejections) / 2


def _interval(
    right: Bool[np.ndarray, "label document"], inside: Bool[np.ndarray, "label document"], n_replicates: int, seed: int
) -> Interval | None:
    n = right.shape[1]
    if n < 2 or n_replicates < 1:
        return None
    generator = np.random.default_rng(seed)
    times = np.stack([np.bincount(generator.integers(0, n, n), minlength=n) for _ in range(n_replicates)])
    accuracies = _balanced(right, inside, times.astype(np.float64))
    # A replicate may miss a class of few documents altogether; its mean is over the others.
    known = ~np.isnan(accuracies)
    means = np.where(known, accuracies, 0).sum(1) / np.maximum(known.sum(1), 1)
    low, high = np.quantile(means[known.any(1)], [0.025, 0.975])
    return float(low), float(high)
