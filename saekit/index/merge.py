"""Merges the blocks of a build into the arrays of an index, a range of features at a time. NumPy only."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from tqdm import tqdm

from saekit.index import format as layout
from saekit.index.statistics import Codes, Columns, RowFacts, block_statistics
from saekit.store.examples import ExampleTable

_CODES_AT_ONCE = 2**21
_FEATURES_AT_ONCE = 2**16


class Block:
    """One finished block, memory-mapped."""

    def __init__(self, path: Path, first_row: int) -> None:
        self.first_row = first_row
        self.exponent = int(layout.map_array(path, "exponent")[0])
        self.row_counts = layout.map_array(path, "row_counts")
        self.features = layout.map_array(path, "features")
        self.values = layout.map_array(path, "values")
        self.feature_counts = layout.map_array(path, "feature_counts")
        self.feature_offsets = layout.offsets_of(self.feature_counts)
        self.feature_rows = layout.map_array(path, "feature_rows")
        self.feature_values = layout.map_array(path, "feature_values")

    def rescaled(self, packed: Float[np.ndarray, " n"], exponent: int) -> Float[np.ndarray, " n"]:
        """fp16 values on the index's scale; exact but for the very smallest."""
        if self.exponent == exponent:
            return packed
        return layout.pack_values(layout.unpack_values(packed, self.exponent), exponent)


def merge(out: Path, d_sae: int, block_rows: int, examples: ExampleTable, progress: bool) -> dict[str, Any]:
    """Write every array that the codes determine; returns the facts for `meta.json`."""
    paths = sorted(path for path in (out / layout.PARTIAL / "blocks").iterdir() if not path.name.startswith("."))
    blocks = [Block(path, number * block_rows) for number, path in enumerate(paths)]
    exponents = [block.exponent for block in blocks if len(block.features)]
    exponent = max(exponents, default=0)
    n_codes = sum(len(block.features) for block in blocks)
    _write_by_row(out, blocks, n_codes, d_sae, exponent)
    facts = _row_facts(out, examples)
    _write_by_feature(out, blocks, d_sae, exponent, facts, progress)
    if facts.label is not None:
        _write_label_totals(out, facts)
    return {
        "input_kind": examples.kind,
        "n_rows": examples.n_rows,
        "n_examples": len(examples),
        "n_codes": n_codes,
        "value_exponent": exponent,
    }


def _write_by_row(out: Path, blocks: list[Block], n_codes: int, d_sae: int, exponent: int) -> None:
    counts = [block.row_counts for block in blocks] or [np.zeros(0, dtype=np.uint32)]
    layout.save_array(out, "by_row/offsets", layout.offsets_of(np.concatenate(counts)))
    features = layout.create_array(out, "by_row/features", layout.feature_dtype(d_sae), (n_codes,))
    values = layout.create_array(out, "by_row/values", layout.VALUE_DTYPE, (n_codes,))
    at = 0
    for block in blocks:
        stop = at + len(block.features)
        features[at:stop] = block.features
        values[at:stop] = block.rescaled(block.values, exponent)
        at = stop


def _row_facts(out: Path, examples: ExampleTable) -> RowFacts:
    row_example = np.asarray(examples.row_example)
    document_of = np.asarray(examples.document_of)
    label_of = np.asarray(examples.label_of)
    label_of_document = np.full(int(document_of.max(initial=-1)) + 1, -1, dtype=np.int32)
    label_of_document[document_of] = label_of
    has_labels = bool((label_of >= 0).any())
    return RowFacts(
        position=np.asarray(examples.row_position),
        document=document_of[row_example],
        token=_write_tokens(out, examples) if examples.kind == "text" else None,
        label=label_of[row_example] if has_labels else None,
        n_labels=len(examples.label_names),
        label_of_document=label_of_document,
    )


def _write_tokens(out: Path, examples: ExampleTable) -> Integer[np.ndarray, " n_rows"]:
    """The token id of every row, and the rows of every token id."""
    of_row = np.empty(examples.n_rows, dtype=np.int32)
    borders = examples.row_offsets.tolist()
    for example in range(len(examples)):
        ids = examples.token_ids(example)[examples.kept(example)]
        of_row[borders[example] : borders[example + 1]] = ids
    n_ids = max(len(examples.vocabulary or ()), int(of_row.max(initial=-1)) + 1)
    keys = of_row.astype(np.uint64) << np.uint64(32) | np.arange(len(of_row), dtype=np.uint64)
    keys.sort()
    layout.save_array(out, "tokens/of_row", of_row)
    layout.save_array(out, "tokens/offsets", layout.offsets_of(np.bincount(of_row, minlength=n_ids)))
    layout.save_array(out, "tokens/rows", keys.astype(np.uint32))
    return of_row


def _write_by_feature(
    out: Path, blocks: list[Block], d_sae: int, exponent: int, facts: RowFacts, progress: bool
) -> None:
    counts = np.zeros(d_sae, dtype=np.int64)
    for block in blocks:
        counts += block.feature_counts
    offsets = layout.offsets_of(counts)
    layout.save_array(out, "by_feature/offsets", offsets)
    rows = layout.create_array(out, "by_feature/rows", layout.ROW_DTYPE, (int(offsets[-1]),))
    values = layout.create_array(out, "by_feature/values", layout.VALUE_DTYPE, (int(offsets[-1]),))

    def do(first: int, last: int) -> tuple[Columns, Columns]:
        codes = _collect(blocks, offsets, first, last, exponent)
        at = slice(int(offsets[first]), int(offsets[last]))
        rows[at], values[at] = codes.rows, codes.packed
        return block_statistics(codes, facts, len(facts.position))

    columns: dict[str, list[np.ndarray]] = {}
    labels: dict[str, list[np.ndarray]] = {}
    bar = tqdm(total=d_sae, unit="feature", unit_scale=True, desc="merge", disable=not progress)
    n_threads = min(8, os.cpu_count() or 1)
    with bar, ThreadPoolExecutor(max_workers=n_threads) as pool:
        pending: list[tuple[int, Future[tuple[Columns, Columns]]]] = []
        work = _feature_ranges(offsets)
        while True:
            while len(pending) < n_threads and (bounds := next(work, None)) is not None:
                pending.append((bounds[1] - bounds[0], pool.submit(do, *bounds)))
            if not pending:
                break
            n_features, future = pending.pop(0)
            for target, found in zip((columns, labels), future.result(), strict=True):
                for name, array in found.items():
                    target.setdefault(name, []).append(array)
            bar.update(n_features)
    layout.save_array(out, "quantiles", np.concatenate(columns.pop("quantiles")))
    for name, parts in columns.items():
        layout.save_array(out, f"statistics/{name}", np.concatenate(parts))
    if labels:
        layout.save_array(out, "labels/offsets", layout.offsets_of(np.concatenate(labels.pop("counts"))))
    for name, parts in labels.items():
        layout.save_array(out, f"labels/{name}", np.concatenate(parts))


def _feature_ranges(offsets: Integer[np.ndarray, " d_sae_plus_1"]) -> Iterator[tuple[int, int]]:
    """Ranges of features that hold about `_CODES_AT_ONCE` codes, at least one feature each."""
    first, d_sae = 0, len(offsets) - 1
    while first < d_sae:
        last = int(np.searchsorted(offsets, offsets[first] + _CODES_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), first + _FEATURES_AT_ONCE, d_sae)
        yield first, last
        first = last


def _collect(
    blocks: list[Block], offsets: Integer[np.ndarray, " d_sae_plus_1"], first: int, last: int, exponent: int
) -> Codes:
    """Counting sort by feature: every block's codes of the range go to where the earlier blocks' left off."""
    local = offsets[first : last + 1] - offsets[first]
    rows = np.empty(int(local[-1]), dtype=np.uint32)
    packed = np.empty(int(local[-1]), dtype=layout.VALUE_DTYPE)
    at = local[:-1].copy()
    for block in blocks:
        counts = block.feature_counts[first:last].astype(np.int64)
        part = slice(int(block.feature_offsets[first]), int(block.feature_offsets[last]))
        target = layout.ranges(at, counts)
        rows[target] = block.feature_rows[part] + np.uint32(block.first_row)
        packed[target] = block.rescaled(block.feature_values[part], exponent)
        at += counts
    return Codes(local, rows, packed, exponent)


def _write_label_totals(out: Path, facts: RowFacts) -> None:
    assert facts.label is not None
    of_rows, of_documents = facts.label, facts.label_of_document
    rows = np.bincount(of_rows[of_rows >= 0], minlength=facts.n_labels)
    documents = np.bincount(of_documents[of_documents >= 0], minlength=facts.n_labels)
    layout.save_array(out, "labels/rows_per_label", rows)
    layout.save_array(out, "labels/documents_per_label", documents)
