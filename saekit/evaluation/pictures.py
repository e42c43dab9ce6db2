"""Faithfulness to a vision model: its classes where it has a head, else probes on its final representation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from saekit.backbones import Backbone, ImageTokens
from saekit.errors import BackboneError, InputError
from saekit.evaluation.baselines import Reconstruct
from saekit.evaluation.faithfulness import (
    CLEAN,
    class_agreement,
    class_losses,
    knn_accuracy,
    recovered_representation,
    representations,
)
from saekit.evaluation.intervals import bootstrap_ratio
from saekit.evaluation.probing import linear_probe
from saekit.evaluation.result import Number
from saekit.evaluation.spliced import ABLATIONS, Measured, SplicedBackbone, cross_entropies, prediction_numbers
from saekit.files import from_tagged
from saekit.inputs import ImageInput, SkipLog
from saekit.store import ActivationStore, Example

KNN_K = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Examples of a store with their pixels, which a store does not keep."""

    examples: list[Example]
    indices: list[int]
    """Which examples of the store they are."""

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, wanted: Int[np.ndarray, " n"]) -> "Pictures":
        """Those of `wanted` (indices into the store's examples), in the order they are here."""
        chosen = set(wanted.tolist())
        kept = [i for i, index in enumerate(self.indices) if index in chosen]
        return Pictures(examples=[self.examples[i] for i in kept], indices=[self.indices[i] for i in kept])


def read_pictures(
    backbone: Backbone,
    store: ActivationStore,
    hook_point: str,
    inputs: Iterable[ImageInput],
    wanted: Int[np.ndarray, " n"],
) -> Pictures:
    """The `wanted` examples of the store, read again from `inputs` and prepared as for the store.

    Raises `InputError` that names those which are not there.
    """
    documents = store.examples.documents
    which = {documents[store.examples.document_of[i]]: int(i) for i in wanted}
    recorded = store.provenance(hook_point)["options"]
    options = from_tagged(recorded, ImageTokens) if recorded else backbone.default_options()
    skipped = SkipLog()
    examples = list(backbone.examples((image for image in inputs if image.id in which), options, skipped))
    missing = sorted(set(which) - {example.document for example in examples})
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(which)} images to evaluate on are not among the inputs or unreadable: "
            f"{', '.join(missing[:8])}{' ...' if missing[8:] else ''}. Give the folder that the store is made from."
        )
    return Pictures(examples=examples, indices=[which[example.document] for example in examples])


def last_layer(backbone: Backbone) -> str:
    """The hook point whose mean over the kept tokens is an image's final representation."""
    return f"layers.{backbone.n_layers - 1}"


@torch.no_grad()
def represent(backbone: Backbone, batch: Sequence[Example]) -> Float[Tensor, "example width"]:
    """The final representation of each image: the mean over its kept tokens of the last layer, before any norm."""
    last = last_layer(backbone)
    ((order, found),) = backbone.activations(batch, [last], batch_size=len(batch))
    assert order == list(range(len(batch)))
    return torch.stack([rows.mean(0) for rows in found[last].float().split([len(e.kept) for e in batch])])


def picture_faithfulness(
    spliced: SplicedBackbone,
    pictures: Pictures,
    labels: Int[np.ndarray, " n"],
    fit: Float[np.ndarray, "fitted width"] | None,
    fit_labels: Int[np.ndarray, " fitted"] | None,
    methods: Mapping[str, Reconstruct],
) -> Measured:
    """Facts about the measurement and, by method, its numbers, on `pictures`, whose `labels` are -1 for none.

    `fit` are final representations of other images, clean, with their labels: what the linear probe is fitted on; None
    leaves it out. `methods` must contain `"zero"` and `"mean"`. Raises `ConfigError` when the backbone does not give
    the stored activations.
    """
    backbone, examples, size = spliced.backbone, pictures.examples, spliced.batch_size
    batches = [examples[i : i + size] for i in range(0, len(examples), size)]
    difference = spliced.check(batches[0], pictures.indices[: len(batches[0])])
    interventions = spliced.interventions(methods)
    progress = tqdm(batches, unit=" batches", desc="final representation", disable=None)
    vectors = representations(lambda batch: represent(backbone, batch), progress, interventions)
    try:
        logits = representations(backbone.logits, batches, interventions)
    except BackboneError:
        logits = None
    labelled = np.flatnonzero(labels >= 0)
    has_classes = len(np.unique(labels[labelled])) > 1
    facts: dict[str, Any] = {
        "kind": "representation",
        "n_examples": len(examples),
        "n_labelled": len(labelled),
        "n_classes": len(np.unique(labels[labelled])),
        "layer": last_layer(backbone),
        "knn_k": KNN_K,
        "activation_difference": difference,
        "has_head": logits is not None,
    }
    losses = None if logits is None else class_losses(logits)
    if losses is not None:
        facts |= cross_entropies(losses)
    if has_classes:
        facts["knn_accuracy_clean"] = knn_accuracy(vectors[CLEAN][labelled], labels[labelled], KNN_K)[0]
    guesses = None
    if fit is not None and fit_labels is not None and len(np.unique(fit_labels[fit_labels >= 0])) > 1 and has_classes:
        tested = {name: found[labelled].numpy() for name, found in vectors.items()}
        guesses = linear_probe(fit, fit_labels, tested)
        facts["n_probe_images"] = int((fit_labels >= 0).sum())
        facts["linear_probe_accuracy_clean"] = float((guesses[CLEAN] == labels[labelled]).mean())

    def accuracy(name: str, right: np.ndarray) -> dict[str, Number]:
        return {
            name: float(right.mean()),
            f"{name}_interval": bootstrap_ratio(
                right.astype(np.float64), np.ones(len(right)), n_replicates=spliced.n_bootstrap, seed=spliced.seed
            ),
        }

    faithfulness: dict[str, dict[str, Number]] = {}
    for name in methods:
        numbers: dict[str, Number] = {
            f"representation_recovered_{ablated}": recovered_representation(
                vectors[CLEAN], vectors[name], vectors[ablated]
            )
            for ablated in ABLATIONS
        }
        if has_classes:
            numbers |= accuracy("knn_accuracy", knn_accuracy(vectors[name][labelled], labels[labelled], KNN_K)[1])
        if guesses is not None:
            numbers |= accuracy("linear_probe_accuracy", guesses[name] == labels[labelled])
        if logits is not None and losses is not None:
            numbers |= prediction_numbers(losses, name, spliced)
            numbers["class_agreement"] = class_agreement(logits[CLEAN], logits[name])
        faithfulness[name] = numbers
    return facts, faithfulness
