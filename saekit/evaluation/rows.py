"""Which rows of a store a number is taken over: held-out documents, random examples, and reading them in chunks."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saekit.errors import ConfigError, StoreError
from saekit.evaluation.reconstruction import RowChunk
from saekit.store import ActivationStore
from saekit.store.split import held_out

Examples = Int[np.ndarray, "_"]


def split_examples(store: ActivationStore, held_out_share: float) -> tuple[Examples, Examples]:
    """Ascending indices of the examples to evaluate on and of those that training saw.

    With a share of 0 both are all of them. Raises `ConfigError` when no document is held out.
    """
    table = store.examples
    everything = np.arange(len(table))
    if held_out_share == 0:
        return everything, everything
    is_out: Bool[np.ndarray, " n_examples"] = held_out(table.documents, held_out_share)[table.document_of]
    if not is_out.any():
        raise ConfigError(
            f"None of the {len(table.documents)} documents of {store.path} is held out at held_out_share="
            f"{held_out_share}. Evaluate on all of them with held_out_share=0, which training has then seen."
        )
    return everything[is_out], everything[~is_out]


def random_examples(examples: Examples, n: int, seed: int) -> Examples:
    """At most `n` of `examples`, drawn without replacement, ascending."""
    drawn = np.random.default_rng(seed).permutation(examples)[:n]
    return np.sort(drawn)


def random_documents(store: ActivationStore, examples: Examples, n_rows: int, seed: int) -> Examples:
    """Ascending: those of `examples` that belong to random documents, drawn whole until they have `n_rows` rows."""
    table = store.examples
    document_of = np.asarray(table.document_of)[examples]
    counts = np.diff(table.row_offsets)[examples]
    documents, which = np.unique(document_of, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(documents))
    rows_of = np.bincount(which, weights=counts, minlength=len(documents))[order]
    n_documents = int(np.searchsorted(np.cumsum(rows_of), n_rows)) + 1
    chosen = np.zeros(len(documents), dtype=bool)
    chosen[order[:n_documents]] = True
    return examples[chosen[which]]


def row_chunks(
    store: ActivationStore,
    examples: Examples,
    hook_point: str,
    *,
    chunk_rows: int = 8192,
    device: torch.device | str = "cpu",
) -> Iterator[RowChunk]:
    """The rows of `examples` (ascending) in order, about `chunk_rows` at a time, with the document of each."""
    table = store.examples
    starts, stops = np.asarray(table.row_offsets)[examples], np.asarray(table.row_offsets)[examples + 1]
    if not len(examples):
        return
    # Rows of neighbouring examples are neighbours on disk: read them in one go.
    begins = np.concatenate([[True], starts[1:] != stops[:-1]])
    first, last = starts[begins], stops[np.append(begins[1:], True)]
    parts: list[Tensor] = []
    documents: list[np.ndarray] = []
    n_waiting = 0
    for run_start, run_stop in zip(first.tolist(), last.tolist(), strict=True):
        start = run_start
        while start < run_stop:
            stop = min(run_stop, start + chunk_rows - n_waiting)
            parts.append(store.rows(start, stop, hook_point))
            documents.append(np.asarray(table.document_of)[table.row_example[start:stop]])
            n_waiting, start = n_waiting + stop - start, stop
            if n_waiting == chunk_rows:
                yield _finite(torch.cat(parts), store).to(device), np.concatenate(documents)
                parts, documents, n_waiting = [], [], 0
    if n_waiting:
        yield _finite(torch.cat(parts), store).to(device), np.concatenate(documents)


@torch.no_grad()
def mean_and_covariance(
    store: ActivationStore,
    examples: Examples,
    hook_point: str,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
    """Mean and covariance of the rows of `examples`, float64 on the CPU."""
    centre = torch.from_numpy(store.moments(hook_point)[0]).to(device=device, dtype=torch.float32)
    d_in, n = len(centre), 0
    total = torch.zeros(d_in, dtype=torch.float64)
    products = torch.zeros(d_in, d_in, dtype=torch.float64)
    for rows, _ in row_chunks(store, examples, hook_point, device=device):
        centred = rows.float() - centre
        total += centred.sum(0).double().cpu()
        products += (centred.T @ centred).double().cpu()
        n += len(rows)
    shift = total / n
    return centre.double().cpu() + shift, products / n - torch.outer(shift, shift)


def _finite(rows: Tensor, store: ActivationStore) -> Tensor:
    # One NaN would make every number of the evaluation NaN; a sum shows it, and finite rows that overflow it are rare.
    if not torch.isfinite(rows.sum(dtype=torch.float32)) and not torch.isfinite(rows).all():
        raise StoreError(
            f"{store.path} holds NaN or infinite activations; find out which shard was altered. "
            f"Type: ActivationStore.open({str(store.path)!r}, verify=True)"
        )
    return rows
