"""Faithfulness of several reconstructions to one backbone, on examples of a store."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from saekit.backbones import Backbone
from saekit.errors import ConfigError
from saekit.evaluation.baselines import Reconstruct
from saekit.evaluation.faithfulness import (
    CLEAN,
    Intervention,
    NextToken,
    next_token_losses,
)
from saekit.evaluation.result import Number
from saekit.intervene import splice
from saekit.store import ActivationStore, Example

ABLATIONS = ("zero", "mean")
# A stored bf16 row of a bf16 model differs from the float32 pass by 2-3 %; another layer or checkpoint by 100 %.
SAME_ACTIVATIONS = 0.15

Measured = tuple[dict[str, Any], dict[str, dict[str, Number]]]


@dataclass(frozen=True)
class SplicedBackbone:
    """A backbone in which the stored tokens of the store's examples can be replaced."""

    backbone: Backbone
    store: ActivationStore
    hook_point: str
    batch_size: int
    n_bootstrap: int
    seed: int

    def next_token(self, chosen: Int[np.ndarray, " n"], methods: Mapping[str, Reconstruct]) -> Measured:
        """Facts about the measurement and, by method, its numbers, on the `chosen` examples of a store of texts.

        `methods` must contain `"zero"` and `"mean"`. For a model that does not predict the next token the facts are
        `{"skipped": why}`. Raises `ConfigError` when the backbone does not give the stored activations.
        """
        return _next_token(self, chosen, methods)

    def interventions(self, methods: Mapping[str, Reconstruct]) -> dict[str, Intervention]:
        return {name: self._intervention(reconstruct) for name, reconstruct in methods.items()}

    def _intervention(self, reconstruct: Reconstruct) -> Intervention:
        def intervention(examples: Sequence[Example]) -> AbstractContextManager[None]:
            kept = [example.kept for example in examples]
            return splice(self.backbone, self.hook_point, reconstruct, positions=kept)

        return intervention

    def check(self, examples: Sequence[Example], indices: Sequence[int]) -> float:
        """Relative difference between what the backbone gives for `examples` and their stored rows."""
        self._check_vocabulary(examples)
        offsets = self.store.examples.row_offsets
        error = norm = 0.0
        for which, found in self.backbone.activations(examples, [self.hook_point], self.batch_size):
            stored = torch.cat(
                [
                    self.store.rows(int(offsets[i]), int(offsets[i + 1]), self.hook_point)
                    for i in np.take(indices, which)
                ]
            )
            rows = found[self.hook_point].double().cpu()
            if rows.shape != stored.shape:
                raise ConfigError(
                    f"{self.backbone.spec} gives {list(rows.shape)} activations at {self.hook_point!r} where the store "
                    f"has {list(stored.shape)}; it is not the model, or these are not the inputs, of this store."
                )
            error += float((rows - stored.double()).square().sum())
            norm += float(stored.double().square().sum())
        difference = (error / norm) ** 0.5 if norm else float(error > 0)
        if difference > SAME_ACTIVATIONS:
            raise ConfigError(
                f"{self.backbone.spec} does not give the stored activations at {self.hook_point!r}: they differ by "
                f"{difference:.0%}. It is another model, or the inputs have changed; name the right one with "
                "--backbone, or leave faithfulness out with --backbone none."
            )
        return difference

    def _check_vocabulary(self, examples: Sequence[Example]) -> None:
        largest = max((int(e.token_ids.max()) for e in examples if e.token_ids is not None), default=-1)
        if largest < 0:
            return
        model: Any = self.backbone.model
        if largest >= (size := model.get_input_embeddings().weight.shape[0]):
            raise ConfigError(
                f"The store has token {largest}, {self.backbone.spec} has {size} tokens: not the model of this store."
            )


def _next_token(
    spliced: SplicedBackbone, chosen: Int[np.ndarray, " n"], methods: Mapping[str, Reconstruct]
) -> Measured:
    backbone, table = spliced.backbone, spliced.store.examples
    if backbone.family != "causal_lm":
        return {"skipped": f"{backbone.spec} ({backbone.family}) does not predict the next token"}, {}
    # Windows of one length share a batch: less padding.
    order = chosen[np.argsort([len(table.token_ids(int(i))) for i in chosen], kind="stable")]
    batches = [order[i : i + spliced.batch_size] for i in range(0, len(order), spliced.batch_size)]
    read = [([table[int(i)] for i in batch], [int(table.document_of[i]) for i in batch]) for batch in batches]
    difference = spliced.check(read[0][0], batches[0].tolist())
    progress = tqdm(read, unit=" batches", desc="next-token loss", disable=None)
    losses = next_token_losses(backbone.logits, progress, spliced.interventions(methods))
    facts = {
        "kind": "next_token",
        "n_examples": len(chosen),
        "n_documents": len(np.unique(losses.documents)),
        "n_predictions": losses.n_tokens,
        **cross_entropies(losses),
        "activation_difference": difference,
    }
    return facts, {name: prediction_numbers(losses, name, spliced) for name in methods}


def cross_entropies(losses: NextToken) -> dict[str, float]:
    """The loss of the clean model and of each ablation: what everything else lies between."""
    return {f"cross_entropy_{name}": losses.mean_cross_entropy(name) for name in (CLEAN, *ABLATIONS)}


def prediction_numbers(losses: NextToken, name: str, spliced: SplicedBackbone) -> dict[str, Number]:
    """Of one method: losses, KL, their quantiles, and the shares recovered with their intervals."""
    numbers: dict[str, Number] = {
        "cross_entropy": losses.mean_cross_entropy(name),
        "kl": losses.mean_kl(name),
        "kl_interval": losses.kl_interval(name, n_bootstrap=spliced.n_bootstrap, seed=spliced.seed),
    }
    for level, kl, increase in zip(
        ("q50", "q90", "q99"), losses.kl_quantiles(name), losses.increase_quantiles(name), strict=True
    ):
        numbers |= {f"kl_{level}": kl, f"cross_entropy_increase_{level}": increase}
    for ablated in ABLATIONS:
        numbers[f"ce_recovered_{ablated}"] = losses.recovered(name, ablated)
        numbers[f"ce_recovered_{ablated}_interval"] = losses.recovered_interval(
            name, ablated, n_bootstrap=spliced.n_bootstrap, seed=spliced.seed
        )
        numbers[f"kl_recovered_{ablated}"] = losses.kl_recovered(name, ablated)
    return numbers
