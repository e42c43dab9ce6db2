"""What a dictionary is good for, beside how well it reconstructs: probes, monosemanticity, labels, bits, geometry."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.autoencoders import Autoencoder, SparseAutoencoder
from saekit.errors import InputError
from saekit.evaluation.baselines import principal_directions
from saekit.evaluation.description_length import BINS, DescriptionLength, dense_length, sparse_length
from saekit.evaluation.geometry import NEAR_DUPLICATE, decoder_geometry
from saekit.evaluation.interpretability import MonosemanticityMeter, label_use
from saekit.evaluation.latents import active_latents, decode_active
from saekit.evaluation.pairs import FeaturePairs
from saekit.evaluation.pooled import Pooled
from saekit.evaluation.probing import k_sparse_probing
from saekit.evaluation.rows import Examples, row_chunks
from saekit.kernels import SparseLatents
from saekit.store import ActivationStore

HIGH_LIFT = 3.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Usefulness:
    """Numbers about single latents and about the dictionary as a whole, as JSON; each part may say why it is absent."""

    probing: dict[str, Any] = field(default_factory=dict)
    monosemanticity: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    dictionary: dict[str, Any] = field(default_factory=dict)
    description_length: tuple[DescriptionLength, ...] = ()
    pairs: FeaturePairs | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Per latent, for `latents.csv`."""

    def to_json(self) -> dict[str, Any]:
        """Without the columns."""
        return {
            "probing": self.probing,
            "monosemanticity": self.monosemanticity,
            "labels": self.labels,
            "dictionary": self.dictionary,
            "description_length": [dataclasses.asdict(each) for each in self.description_length],
            "pairs": None if self.pairs is None else dataclasses.asdict(self.pairs),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Some documents with an embedding of each, to judge latents by."""

    pooled: Pooled
    embeddings: Float[Tensor, "document width"]
    source: str
    """Where the embeddings are from, in words."""


def probing_numbers(fit: Pooled, test: Pooled, label_names: list[str], n_bootstrap: int, seed: int) -> dict[str, Any]:
    """`k_sparse_probing` as JSON, or `{"skipped": why}`."""
    try:
        found = k_sparse_probing(
            {"latents": fit.latents, "raw": fit.raw},
            fit.labels,
            {"latents": test.latents, "raw": test.raw},
            test.labels,
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
    except InputError as error:
        return {"skipped": str(error)}
    return {
        "n_fit": found.n_fit,
        "n_test": found.n_test,
        "classes": [
            {"label": label_names[label], "latent": latent, "accuracy": accuracy}
            for label, latent, accuracy in zip(found.classes, found.best_latents, found.best_accuracies, strict=True)
        ],
        "results": [dataclasses.asdict(result) for result in found.results],
    }


def monosemanticity_numbers(embedded: Embedded) -> tuple[dict[str, Any], Float[np.ndarray, " latent"]]:
    """Spread of the monosemanticity score over latents and over raw dimensions, and the score of each latent."""
    pooled, embeddings = embedded.pooled, embedded.embeddings
    scores = {}
    for name, matrix in (("latents", pooled.latents), ("raw", pooled.raw)):
        meter = MonosemanticityMeter(matrix.shape[1], embeddings.shape[1])
        meter.update(torch.from_numpy(matrix), embeddings)
        scores[name] = meter.value()
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    n = len(unit)
    everything = float((unit.sum(0).square().sum() - n) / (n * (n - 1))) if n > 1 else float("nan")
    numbers = {
        "embedding": embedded.source,
        "n_examples": n,
        "all_pairs": everything,
        "latents": spread(scores["latents"]),
        "raw": spread(scores["raw"]),
    }
    return numbers, scores["latents"]


def label_numbers(pooled: Pooled, label_names: list[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Spread of label entropy and class lift, and both of each latent; `{"skipped": why}` without labels."""
    if not (pooled.labels >= 0).any():
        return {"skipped": "the examples have no labels"}, {}
    use = label_use(pooled.latents, pooled.labels, pooled.n_rows)
    lifts = use.lift[~np.isnan(use.lift)]
    numbers = {
        "n_documents": int((pooled.labels >= 0).sum()),
        "n_labels": len(np.unique(pooled.labels[pooled.labels >= 0])),
        "entropy": spread(use.entropy),
        "lift": spread(use.lift),
        "high_lift_share": float(np.mean(lifts > HIGH_LIFT)) if len(lifts) else None,
    }
    names = np.array([*label_names, ""], dtype=object)
    return numbers, {"label_entropy": use.entropy, "top_label": names[use.top_label], "top_label_lift": use.lift}


def dictionary_numbers(sae: Autoencoder) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """`decoder_geometry` in short, and its columns; `{"skipped": why}` for an autoencoder without a decoder matrix."""
    if not isinstance(sae, SparseAutoencoder):
        return {"skipped": f"a {type(sae).__name__} has no decoder directions"}, {}
    found = decoder_geometry(sae)
    numbers = {
        "nearest_cosine": spread(found.nearest_cosine),
        "near_duplicate_share": float(np.mean(found.nearest_cosine > NEAR_DUPLICATE)),
        "encoder_decoder_cosine": spread(found.encoder_decoder_cosine),
        "effective_rank": found.effective_rank,
    }
    columns = {
        "nearest_latent": found.nearest_latent,
        "nearest_cosine": found.nearest_cosine,
        "encoder_decoder_cosine": found.encoder_decoder_cosine,
    }
    return numbers, columns


@torch.no_grad()
def description_lengths(
    sae: Autoencoder,
    store: ActivationStore,
    examples: Examples,
    hook_point: str,
    mean: Float[Tensor, " d_in"],
    covariance: Float[Tensor, "d_in d_in"],
    k: int,
    device: torch.device | str = "cpu",
    max_codes: int = 2**25,
) -> tuple[DescriptionLength, ...]:
    """Bits and error of the autoencoder's codes, of the raw activations and of PCA's, at three precisions.

    Rows are those of `examples` until `max_codes` active latents are reached.
    """
    rows: list[Tensor] = []
    parts: list[SparseLatents] = []
    n_latents = n_codes = 0
    for chunk, _ in row_chunks(store, examples, hook_point, chunk_rows=1024, device=device):
        active, n_latents = active_latents(sae, chunk.float())
        rows.append(chunk.float())
        parts.append(active)
        n_codes += len(active.values)
        if n_codes >= max_codes:
            break
    x = torch.cat(rows)
    counts = torch.cat([part.row_offsets.diff() for part in parts])
    codes = SparseLatents(
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        torch.cat([part.latents for part in parts]),
        torch.cat([part.values for part in parts]),
    )
    centre, basis = mean.to(x), principal_directions(covariance)[:, : min(k, len(mean))].to(x)

    def decode(sparse: SparseLatents) -> Tensor:
        if isinstance(sae, SparseAutoencoder):
            return decode_active(sae, sparse, x)
        return sae.decode_for(x, sparse.to_dense(n_latents))

    found = []
    for n_bins in BINS:
        found.append(sparse_length(codes, n_latents, n_bins, decode, x))
        found.append(dense_length((x - centre) @ basis, n_bins, lambda z: centre + z @ basis.T, x, "pca"))
        found.append(dense_length(x, n_bins, lambda z: z, x, "raw"))
    return tuple(sorted(found, key=lambda each: (["sae", "pca", "raw"].index(each.code), each.n_bins)))


def spread(values: Float[np.ndarray, " n"]) -> dict[str, float | int | None]:
    """Mean and quantiles of what is not NaN, and how many values that is."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return {"n": 0, "mean": None, "q10": None, "q50": None, "q90": None}
    q10, q50, q90 = np.quantile(known, [0.1, 0.5, 0.9])
    return {"n": len(known), "mean": float(known.mean()), "q10": float(q10), "q50": float(q50), "q90": float(q90)}


def store_embedding(fit: Pooled, test: Pooled) -> Embedded:
    """Documents embedded by their own mean activations, about the common mean: where no backbone was run."""
    both = join(fit, test)
    raw = torch.from_numpy(both.raw).double()
    return Embedded(pooled=both, embeddings=raw - raw.mean(0), source="mean stored activations, centred")


def join(a: Pooled, b: Pooled) -> Pooled:
    """Both, each document once."""
    new = ~np.isin(b.documents, a.documents)
    parts = {
        name: np.concatenate([getattr(a, name), getattr(b, name)[new]])
        for name in ("documents", "labels", "n_rows", "latents", "raw")
    }
    return Pooled(**parts)


def rows_of_documents(pooled: Pooled, documents: Int[np.ndarray, " n"]) -> Pooled:
    """The pooled rows of `documents`, in that order."""
    order = np.argsort(pooled.documents)
    return pooled.take(order[np.searchsorted(pooled.documents[order], documents)])
