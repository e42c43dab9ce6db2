"""Windows of tokens laid out as the rows of a batch: padded, or several packed in one row."""

from collections.abc import Sequence

import numpy as np
import torch

from saekit.backbones.base import Batch
from saekit.errors import InputError
from saekit.store.examples import Example


def by_length(examples: Sequence[Example]) -> list[int]:
    """Indices of `examples`, longest first; equal lengths keep their order."""
    return sorted(range(len(examples)), key=lambda index: -examples[index].n_tokens)


def first_fit(indices: Sequence[int], examples: Sequence[Example], row_size: int) -> list[list[int]]:
    """Rows of at most `row_size` tokens: each window, longest first, goes in the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(indices, key=lambda index: -examples[index].n_tokens):
        n_tokens = examples[index].n_tokens
        row = next((row for row, free in enumerate(room) if free >= n_tokens), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_size)
        rows[row].append(index)
        room[row] -= n_tokens
    return rows


def padded_rows(indices: list[int], examples: Sequence[Example], pad_id: int) -> Batch:
    """One window per row, padded on the right; the attention mask is left out where nothing is padded."""
    lengths = np.array([examples[index].n_tokens for index in indices])
    width = int(lengths.max())
    ids = np.full((len(indices), width), pad_id, dtype=np.int64)
    for row, index in enumerate(indices):
        ids[row, : lengths[row]] = _token_ids(examples[index])
    kept = np.concatenate([row * width + examples[index].kept.astype(np.int64) for row, index in enumerate(indices)])
    inputs = {"input_ids": torch.from_numpy(ids)}
    if lengths.min() < width:
        inputs["attention_mask"] = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
    return Batch(indices, inputs, torch.from_numpy(kept))


def packed_rows(rows: list[list[int]], examples: Sequence[Example], pad_id: int) -> Batch:
    """Several windows per row. Positions restart at each; Transformers derives the block-diagonal mask from that."""
    width = max(sum(examples[index].n_tokens for index in row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    kept = []
    for row, indices in enumerate(rows):
        offset = 0
        for index in indices:
            n_tokens = examples[index].n_tokens
            ids[row, offset : offset + n_tokens] = _token_ids(examples[index])
            positions[row, offset : offset + n_tokens] = np.arange(n_tokens)
            kept.append(row * width + offset + examples[index].kept.astype(np.int64))
            offset += n_tokens
        positions[row, offset:] = np.arange(width - offset)
    inputs = {"input_ids": torch.from_numpy(ids), "position_ids": torch.from_numpy(positions)}
    return Batch([index for row in rows for index in row], inputs, torch.from_numpy(np.concatenate(kept)))


def _token_ids(example: Example) -> np.ndarray:
    if example.token_ids is None:
        raise InputError(f"Example {example.document!r} is not a text.")
    return example.token_ids
