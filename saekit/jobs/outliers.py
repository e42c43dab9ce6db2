"""NormFilter: leaves out tokens whose activations are far larger than the others'.

A few tokens that a language model attends to when it has nothing to attend to (attention sinks: the first position, and
often the first punctuation mark of a window) have norms a hundred times the median. In SmolLM2 98 of 330,000 of them
hold 86 % of the squared distance to the mean: mean, scale and FVU of a store that kept them describe little else.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saekit.store import Example

Batch = tuple[list[int], dict[str, Tensor]]
"""Indices of examples, and at each hook point the rows `[n width]` of their kept tokens."""


class NormFilter:
    """Decides which rows stay; a row goes when at any hook point its norm is above `ratio` times the median there.

    The medians are those of the first chunk of the extraction and stay fixed, in the state, so that a resumed
    extraction decides as an uninterrupted one.
    """

    def __init__(self, ratio: float, state: Mapping[str, Any] | None) -> None:
        self._ratio = ratio
        self._limits: dict[str, float] | None = dict(state["limits"]) if state else None
        self._by_position: Counter[int] = Counter({int(p): n for p, n in state["by_position"]} if state else {})

    def apply(self, examples: Sequence[Example], batches: Sequence[Batch]) -> tuple[list[Example], list[Batch]]:
        """The examples with the rest of their kept positions, and the batches with the rest of their rows."""
        if self._limits is None:
            self._limits = _limits(batches, self._ratio)
        left = list(examples)
        rest: list[Batch] = []
        for indices, rows in batches:
            stays = self._stays(rows)
            if bool(stays.all()):
                rest.append((indices, rows))
                continue
            start = 0
            on_host = stays.cpu().numpy()
            for i in indices:
                kept = examples[i].kept
                mask = on_host[start : start + len(kept)]
                start += len(kept)
                self._by_position.update(kept[~mask].tolist())
                left[i] = replace(examples[i], kept=kept[mask])
            rest.append((indices, {point: values[stays] for point, values in rows.items()}))
        return left, rest

    def state(self) -> dict[str, Any]:
        """JSON: the limits, and how many rows went at which positions."""
        return {"limits": self._limits or {}, "by_position": sorted(self._by_position.items())}

    def report(self) -> dict[str, Any]:
        """What the store says of it: the ratio, the limit at each hook point, how many rows went, and from where."""
        commonest = sorted(self._by_position.items(), key=lambda item: (-item[1], item[0]))[:20]
        return {
            "max_norm_ratio": self._ratio,
            "limits": self._limits or {},
            "n_rows": sum(self._by_position.values()),
            "by_position": [[position, n] for position, n in commonest],
        }

    def _stays(self, rows: Mapping[str, Float[Tensor, "n _"]]) -> Bool[Tensor, " n"]:
        assert self._limits is not None
        # NaN is not above any limit: such a row stays, and is refused by name when it is written.
        too_large = [_norms(values) > self._limits[point] for point, values in rows.items()]
        return ~torch.stack(too_large).any(dim=0)


def _limits(batches: Sequence[Batch], ratio: float) -> dict[str, float]:
    points = batches[0][1] if batches else {}
    limits = {}
    for point in points:
        norms = torch.cat([_norms(rows[point]) for _, rows in batches]).cpu().numpy()
        limits[point] = float(np.median(norms)) * ratio if len(norms) else float("inf")
    return limits


def _norms(rows: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
    return torch.linalg.vector_norm(rows.float(), dim=1)
