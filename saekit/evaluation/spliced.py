"""Faithfulness of several reconstructions to one backbone, on examples of a store."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from saekit.backbones import Backbone, ImageTokens
from saekit.errors import BackboneError, ConfigError, InputError
from saekit.evaluation.baselines import Reconstruct
from saekit.evaluation.faithfulness import (
    CLEAN,
    Intervention,
    NextToken,
    class_change,
    knn_accuracy,
    next_token_losses,
    recovered_representation,
    representations,
)
from saekit.evaluation.intervals import bootstrap_ratio
from saekit.evaluation.result import Number
from saekit.files import from_tagged
from saekit.inputs import ImageInput, SkipLog
from saekit.intervene import splice
from saekit.store import ActivationStore, Example

ABLATIONS = ("zero", "mean")
KNN_K = 10
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

    def faithfulness(
        self, chosen: Int[np.ndarray, " n"], methods: Mapping[str, Reconstruct], inputs: Iterable[ImageInput] | None
    ) -> Measured:
        """Facts about the measurement and, by method, its numbers, on the `chosen` examples of the store.

        `methods` must contain `"zero"` and `"mean"`. Text needs a causal model, images need `inputs`; where
        faithfulness cannot be measured the facts are `{"skipped": why}`.

        Raises `ConfigError` when the backbone does not give the stored activations, and `InputError` when `inputs`
        lacks chosen images.
        """
        if self.store.examples.kind == "text":
            return _next_token(self, chosen, methods)
        return _representation(self, chosen, methods, inputs)

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
        "cross_entropy_clean": losses.mean_cross_entropy(CLEAN),
        "activation_difference": difference,
    }
    return facts, {name: _next_token_numbers(losses, name, spliced) for name in methods}


def _next_token_numbers(losses: NextToken, name: str, spliced: SplicedBackbone) -> dict[str, Number]:
    q50, q90, q99 = losses.kl_quantiles(name)
    numbers: dict[str, Number] = {
        "cross_entropy": losses.mean_cross_entropy(name),
        "kl": losses.mean_kl(name),
        "kl_q50": q50,
        "kl_q90": q90,
        "kl_q99": q99,
    }
    for ablated in ABLATIONS:
        numbers[f"ce_recovered_{ablated}"] = losses.recovered(name, ablated)
        numbers[f"ce_recovered_{ablated}_interval"] = losses.recovered_interval(
            name, ablated, n_bootstrap=spliced.n_bootstrap, seed=spliced.seed
        )
        numbers[f"kl_recovered_{ablated}"] = losses.kl_recovered(name, ablated)
    return numbers


def _representation(
    spliced: SplicedBackbone,
    chosen: Int[np.ndarray, " n"],
    methods: Mapping[str, Reconstruct],
    inputs: Iterable[ImageInput] | None,
) -> Measured:
    backbone = spliced.backbone
    if inputs is None:
        return {"skipped": "the images were not given; the store has thumbnails only"}, {}
    examples, indices = _images(spliced, chosen, inputs)
    batches = [examples[i : i + spliced.batch_size] for i in range(0, len(examples), spliced.batch_size)]
    difference = spliced.check(batches[0], indices[: len(batches[0])])
    interventions = spliced.interventions(methods)
    last = f"layers.{backbone.n_layers - 1}"

    def represent(batch: Sequence[Example]) -> Float[Tensor, "example width"]:
        ((order, found),) = backbone.activations(batch, [last], batch_size=len(batch))
        assert order == list(range(len(batch)))
        return torch.stack([rows.mean(0) for rows in found[last].float().split([len(e.kept) for e in batch])])

    progress = tqdm(batches, unit=" batches", desc="final representation", disable=None)
    vectors = representations(represent, progress, interventions)
    try:
        classes = representations(backbone.logits, batches, interventions)
    except BackboneError:
        classes = None
    names = sorted({example.label for example in examples if example.label is not None})
    labels = np.array([-1 if e.label is None else names.index(e.label) for e in examples])
    labelled = np.flatnonzero(labels >= 0)
    has_classes = len(names) > 1
    facts: dict[str, Any] = {
        "kind": "representation",
        "n_examples": len(examples),
        "n_labelled": len(labelled),
        "n_classes": len(names),
        "layer": last,
        "knn_k": KNN_K,
        "activation_difference": difference,
    }
    if has_classes:
        facts["knn_accuracy_clean"] = knn_accuracy(vectors[CLEAN][labelled], labels[labelled], KNN_K)[0]
    faithfulness: dict[str, dict[str, Number]] = {}
    for name in methods:
        numbers: dict[str, Number] = {
            f"representation_recovered_{ablated}": recovered_representation(
                vectors[CLEAN], vectors[name], vectors[ablated]
            )
            for ablated in ABLATIONS
        }
        if has_classes:
            accuracy, right = knn_accuracy(vectors[name][labelled], labels[labelled], KNN_K)
            numbers["knn_accuracy"] = accuracy
            numbers["knn_accuracy_interval"] = bootstrap_ratio(
                right.astype(np.float64), np.ones(len(right)), n_replicates=spliced.n_bootstrap, seed=spliced.seed
            )
        if classes is not None:
            numbers["kl"], numbers["class_agreement"] = class_change(classes[CLEAN], classes[name])
        faithfulness[name] = numbers
    return facts, faithfulness


def _images(
    spliced: SplicedBackbone, chosen: Int[np.ndarray, " n"], inputs: Iterable[ImageInput]
) -> tuple[list[Example], list[int]]:
    """The chosen examples of the store with their pixels, and which they are, in the order of `inputs`."""
    store, backbone = spliced.store, spliced.backbone
    documents = store.examples.documents
    wanted = {documents[store.examples.document_of[i]]: int(i) for i in chosen}
    recorded = store.provenance(spliced.hook_point)["options"]
    options = from_tagged(recorded, ImageTokens) if recorded else backbone.default_options()
    skipped = SkipLog()
    examples = list(backbone.examples((image for image in inputs if image.id in wanted), options, skipped))
    missing = sorted(set(wanted) - {example.document for example in examples})
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(wanted)} images to evaluate on are not among the inputs or unreadable: "
            f"{', '.join(missing[:8])}{' ...' if missing[8:] else ''}. Give the folder that the store is made from."
        )
    return examples, [wanted[example.document] for example in examples]
