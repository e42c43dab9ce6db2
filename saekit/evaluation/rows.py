"""Which rows of a store a number is taken over: held-out documents, random examples, and reading them in chunks."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saekit.errors import ConfigError, InputError, StoreError
from saekit.evaluation.reconstruction import RowChunk
from saekit.store import ActivationStore
from saekit.store.split import held_out

Examples = Int[np.ndarray, "_"]
PROBE_TEST_SHARE = 0.3


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What the documents of a store are called."""

    names: list[str]
    of_document: Int[np.ndarray, " n_documents"]
    """Index into `names`, -1 for none."""

    def of_examples(self, store: ActivationStore, examples: Examples) -> Int[np.ndarray, " n"]:
        """The label of each of `examples`."""
        return self.of_document[np.asarray(store.examples.document_of)[examples]]


def store_labels(store: ActivationStore) -> Labels:
    """The labels that came with the inputs."""
    table = store.examples
    of_document = np.full(len(table.documents), -1, dtype=np.int64)
    of_document[np.asarray(table.document_of)] = np.asarray(table.label_of)
    return Labels(names=list(table.label_names), of_document=of_document)


def read_labels(path: str | Path, store: ActivationStore) -> Labels:
    """Labels from a CSV file of `document,label` lines (a first line `document,label` or `id,label` is a heading).

    Documents that it does not name have no label. Raises `InputError` that lists what is wrong: ids that the store does
    not have, ids with two labels, lines that are not pairs.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [(number, line) for number, line in enumerate(csv.reader(file), 1) if line]
    except (OSError, UnicodeDecodeError) as cause:
        raise InputError(f"{path} cannot be read as a CSV file of document,label lines: {cause}") from None
    if lines and [word.strip().lower() for word in lines[0][1]] in (["document", "label"], ["id", "label"]):
        del lines[0]
    malformed = [number for number, line in lines if len(line) != 2]
    pairs = [(line[0], line[1]) for _, line in lines if len(line) == 2]
    known = {document: i for i, document in enumerate(store.examples.documents)}
    labels: dict[str, str] = {}
    twice = sorted({id for id, label in pairs if labels.setdefault(id, label) != label})
    unknown = sorted(set(labels) - set(known))
    problems = [
        f"{len(items)} {what}, first {', '.join(map(repr, items[:3]))}"
        for what, items in (
            ("lines are not document,label", malformed),
            ("documents are not in the store", unknown),
            ("documents have two labels", twice),
        )
        if items
    ]
    if problems or not labels:
        documents = ", ".join(map(repr, list(known)[:3]))
        raise InputError(
            f"{path} does not match the labels of {store.path}: {'; '.join(problems) or 'it names no document'}. The "
            f"store's documents are called {documents} ..."
        )
    names = sorted(set(labels.values()))
    of_document = np.full(len(known), -1, dtype=np.int64)
    for id, label in labels.items():
        of_document[known[id]] = names.index(label)
    return Labels(names=names, of_document=of_document)


def probe_split(store: ActivationStore, evaluated: Examples, seen: Examples) -> tuple[Examples, Examples]:
    """Examples to fit probes on and to judge them on: seen and held out; split by hash where nothing was held out."""
    if not len(np.intersect1d(evaluated, seen)):
        return seen, evaluated
    is_test = held_out(store.examples.documents, PROBE_TEST_SHARE)[store.examples.document_of]
    return evaluated[~is_test[evaluated]], evaluated[is_test[evaluated]]


def first_of_each_document(store: ActivationStore, examples: Examples) -> Examples:
    """Of `examples` (ascending) the first of every document: more documents for the same number of rows."""
    _, first = np.unique(np.asarray(store.examples.document_of)[examples], return_index=True)
    return examples[np.sort(first)]


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
