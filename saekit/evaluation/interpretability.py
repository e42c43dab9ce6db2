"""Does a latent stand for one thing? Monosemanticity by an independent embedding, and how latents fall on labels."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class MonosemanticityMeter:
    """How alike the examples are that a latent fires on, for all latents in one pass.

    Pach et al. 2025 (arXiv:2504.02821): the mean cosine of the embeddings of all pairs of examples, weighted by the
    product of their activations, min-max scaled. With unit embeddings e and b = a - min a the pairs need not be formed:
    MS = (|sum b e|^2 - sum b^2) / ((sum b)^2 - sum b^2); the largest activation cancels.
    """

    def __init__(self, n_latents: int, width: int) -> None:
        self.n = 0
        self._ae = torch.zeros(n_latents, width, dtype=torch.float64)
        self._e = torch.zeros(width, dtype=torch.float64)
        self._a = torch.zeros(n_latents, dtype=torch.float64)
        self._aa = torch.zeros(n_latents, dtype=torch.float64)
        self._least = torch.full((n_latents,), torch.inf, dtype=torch.float64)

    @torch.no_grad()
    def update(self, activations: Float[Tensor, "example latent"], embeddings: Float[Tensor, "example width"]) -> None:
        """Add examples. Embeddings are normalised here."""
        if not len(activations):
            return
        a = activations.double()
        e = torch.nn.functional.normalize(embeddings.double(), dim=-1)
        self._ae += a.T @ e
        self._e += e.sum(0)
        self._a += a.sum(0)
        self._aa += a.square().sum(0)
        self._least = torch.minimum(self._least, a.amin(0))
        self.n += len(a)

    def value(self) -> Float[np.ndarray, " latent"]:
        """-1..1, 1 when all examples that a latent fires on have one embedding; NaN where fewer than two differ."""
        least = torch.where(torch.isfinite(self._least), self._least, 0.0)
        total = self._a - self.n * least
        squares = self._aa - 2 * least * self._a + self.n * least.square()
        vector = self._ae - least[:, None] * self._e
        pairs = total.square() - squares
        # One example alone leaves rounding, which would be divided by rounding.
        enough = pairs > 1e-9 * total.square().clamp(min=1e-300)
        score = (vector.square().sum(1) - squares) / torch.where(enough, pairs, 1.0)
        return np.asarray(torch.where(enough, score, torch.nan).numpy())


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelUse:
    """How each latent's activation is spread over labels."""

    entropy: Float[np.ndarray, " latent"]
    """Bits, of the distribution of total activation over labels; 0 fires under one label. NaN where it never fires."""
    top_label: Int[np.ndarray, " latent"]
    """The label with most of its activation; -1 where it never fires."""
    lift: Float[np.ndarray, " latent"]
    """Share of its activation under that label over the label's share of rows; 1 means no relation."""


def label_use(
    latents: Float[np.ndarray, "document latent"],
    labels: Int[np.ndarray, " document"],
    n_rows: Int[np.ndarray, " document"],
) -> LabelUse:
    """From mean activations by document; documents with a label below 0 do not count."""
    known = labels >= 0
    n_labels = int(labels.max(initial=-1)) + 1
    totals = np.zeros((n_labels, latents.shape[1]))
    np.add.at(totals, labels[known], np.abs(latents[known]).astype(np.float64) * n_rows[known, None])
    whole = totals.sum(0)
    fires = whole > 0
    share = np.divide(totals, whole, out=np.zeros_like(totals), where=fires)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(share > 0, share * np.log2(share), 0.0).sum(0) + 0.0
    base = np.bincount(labels[known], weights=n_rows[known], minlength=n_labels) / max(1, n_rows[known].sum())
    top = np.argmax(totals, axis=0) if n_labels else np.zeros(latents.shape[1], dtype=np.int64)
    best = share[top, np.arange(latents.shape[1])] if n_labels else np.zeros(latents.shape[1])
    lift = np.divide(best, base[top], out=np.full(len(best), np.nan), where=fires) if n_labels else best * np.nan
    return LabelUse(
        entropy=np.where(fires, entropy, np.nan), top_label=np.where(fires, top, -1).astype(np.int64), lift=lift
    )
