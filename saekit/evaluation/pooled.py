"""Latents and raw activations averaged over each document or image: what labels are about."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from saekit.autoencoders import Autoencoder
from saekit.errors import ConfigError
from saekit.evaluation.latents import active_latents
from saekit.evaluation.rows import Examples, Labels, row_chunks
from saekit.store import ActivationStore

MAX_ENTRIES = 2**27  # of the [document latent] matrix: half a GiB


@dataclass(frozen=True, kw_only=True, eq=False)
class Pooled:
    """Means over the rows of each of some documents."""

    documents: Int[np.ndarray, " document"]
    """Which documents of the store."""
    labels: Int[np.ndarray, " document"]
    """Index into the names of the `Labels`, -1 for none."""
    n_rows: Int[np.ndarray, " document"]
    latents: Float[np.ndarray, "document latent"]
    """float32 mean activation; inactive latents are 0."""
    raw: Float[np.ndarray, "document d_in"]
    """float32 mean row of activations."""

    def __len__(self) -> int:
        return len(self.documents)

    def take(self, chosen: np.ndarray) -> "Pooled":
        """The documents at `chosen` (indices or booleans)."""
        return Pooled(
            documents=self.documents[chosen],
            labels=self.labels[chosen],
            n_rows=self.n_rows[chosen],
            latents=self.latents[chosen],
            raw=self.raw[chosen],
        )


@torch.no_grad()
def pool(
    sae: Autoencoder,
    store: ActivationStore,
    examples: Examples,
    hook_point: str,
    labels: Labels,
    device: torch.device | str = "cpu",
) -> Pooled:
    """Encode the rows of `examples` and average them by document; at most as many documents as fit half a GiB."""
    document_of = np.asarray(store.examples.document_of)
    documents = np.unique(document_of[examples])
    _, n_latents = active_latents(sae, torch.zeros(1, store.d_model(hook_point), device=device))
    if len(documents) * n_latents > MAX_ENTRIES:
        documents = documents[: max(1, MAX_ENTRIES // n_latents)]
        examples = examples[np.isin(document_of[examples], documents)]
    if not len(documents):
        raise ConfigError("There are no documents to pool latents over.")
    latents = torch.zeros(len(documents) * n_latents, device=device)
    raw = torch.zeros(len(documents), store.d_model(hook_point), dtype=torch.float64)
    n_rows = np.zeros(len(documents), dtype=np.int64)
    for rows, document in row_chunks(store, examples, hook_point, device=device):
        x, slot = rows.float(), torch.from_numpy(np.searchsorted(documents, document)).to(device)
        active, _ = active_latents(sae, x)
        # Values of one document add up in double precision only at the very end: means of thousands are well within.
        latents.index_add_(0, slot[active.rows()] * n_latents + active.latents.long(), active.values.float())
        raw.index_add_(0, slot.cpu(), x.double().cpu())
        n_rows += np.bincount(slot.cpu().numpy(), minlength=len(documents))
    return Pooled(
        documents=documents.astype(np.int64),
        labels=labels.of_document[documents],
        n_rows=n_rows,
        latents=latents.view(len(documents), n_latents).cpu().numpy() / n_rows[:, None].astype(np.float32),
        raw=(raw.numpy() / n_rows[:, None]).astype(np.float32),
    )
