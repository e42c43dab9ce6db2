"""`saekit eval`: measure a checkpoint on a store, and on the backbone behind it, beside baselines."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saekit.autoencoders import Autoencoder, SparseAutoencoder, load_autoencoder
from saekit.backbones import Backbone, load_backbone
from saekit.backbones.base import resolve_device
from saekit.errors import ConfigError
from saekit.evaluation import (
    CountingReconstruction,
    Evaluation,
    Method,
    identity,
    mean_ablation,
    measure_reconstruction,
    pca,
    random_dictionary,
    zero_ablation,
)
from saekit.evaluation.baselines import Reconstruct
from saekit.evaluation.result import SAE, Number
from saekit.evaluation.rows import mean_and_covariance, random_documents, random_examples, row_chunks, split_examples
from saekit.evaluation.spliced import SplicedBackbone
from saekit.files import make_directory, to_tagged, write_json
from saekit.inputs import ImageInput, SkipLog, read_images
from saekit.jobs.index import find_checkpoint, matching_hook_point
from saekit.store import ActivationStore

PCA_ROWS = 32_768  # rows that PCA is fitted on: many times any width, and seconds to read


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a checkpoint: FVU, L0, dead latents, and what splicing it into the backbone costs, beside baselines."""

    checkpoint: Path
    """Folder of a training run, or of a checkpoint."""
    store: Path
    """Activations to measure on: those it was trained on (held-out documents are used) or others of the same hook
    point."""
    out: Path
    """Folder that gets metrics.json."""
    hook_point: str | None = None
    """Which hook point of the store; by default the one that the checkpoint was trained on."""
    backbone: str = "recorded"
    """Model for faithfulness: "recorded" is the one that the store was extracted from, "none" leaves it out."""
    inputs: Path | None = None
    """Folder of images that the store was made from; faithfulness needs it, because a store has thumbnails only."""
    held_out_share: float | None = None
    """Share of documents, by a fixed hash of their id, to measure on; by default what training held out. 0 is all."""
    n_examples: int = 64
    """Windows of text, or images, for faithfulness: each costs one full forward pass per method."""
    batch_size: int = 8
    """Examples per forward pass."""
    n_baseline_tokens: int = 16_384
    """Rows that baselines are measured on."""
    device: str | None = None
    """Where to compute; by default CUDA where there is one."""
    seed: int = 0
    """Draws examples, baseline rows, random directions and bootstrap replicates."""

    def __post_init__(self) -> None:
        small = [
            f"{name}={getattr(self, name)} is not 1 or larger"
            for name in ("n_examples", "batch_size", "n_baseline_tokens")
            if getattr(self, name) < 1
        ]
        if small:
            raise ConfigError(f"EvaluateConfig: {'; '.join(small)}.")


def run(config: EvaluateConfig) -> Path:
    """Evaluate what `config` names, print the table and write `metrics.json`; returns its path."""
    make_directory(config.out, ConfigError)  # now, not after the minutes that measuring takes
    store = ActivationStore.open(config.store)
    checkpoint = find_checkpoint(config.checkpoint)
    sae = load_autoencoder(checkpoint)
    # Before the model is loaded, which is what takes long.
    point = matching_hook_point(sae, store, config.hook_point, allow_other_store=True)
    backbone, skipped = None, "no backbone was asked for (--backbone none)"
    if config.backbone != "none":
        recorded = store.provenance(point)["backbone"] or {}
        spec = recorded.get("spec") if config.backbone == "recorded" else config.backbone
        if spec is None:
            raise ConfigError(f"{config.store} does not say which model it is from; name it with --backbone.")
        if store.examples.kind == "image" and config.inputs is None:
            skipped = "the images are needed again (--inputs FOLDER); the store has thumbnails only"
        else:
            dtype = recorded.get("dtype") if config.backbone == "recorded" else None
            backbone = load_backbone(spec, dtype=dtype, device=config.device)
            if backbone.kind != store.examples.kind:
                raise ConfigError(
                    f"{spec} is a model of {backbone.kind}s, {config.store} holds {store.examples.kind}s."
                )
    device = backbone.device if backbone else resolve_device(config.device)
    found = evaluate(
        sae.to(device),
        store,
        backbone=backbone,
        inputs=None if config.inputs is None else read_images(config.inputs, skipped=SkipLog()),
        hook_point=point,
        held_out_share=config.held_out_share,
        n_examples=config.n_examples,
        batch_size=config.batch_size,
        n_baseline_tokens=config.n_baseline_tokens,
        seed=config.seed,
        why_skipped=skipped,
    )
    path = config.out / "metrics.json"
    write_json(path, {**found.to_json(), "config": to_tagged(config)})
    print(found.table())
    print(path)
    return path


def evaluate(
    sae: Autoencoder,
    store: ActivationStore,
    *,
    backbone: Backbone | None = None,
    inputs: Iterable[ImageInput] | None = None,
    hook_point: str | None = None,
    held_out_share: float | None = None,
    n_examples: int = 64,
    batch_size: int = 8,
    n_baseline_tokens: int = 16_384,
    n_bootstrap: int = 1000,
    seed: int = 0,
    why_skipped: str = "no backbone was given",
) -> Evaluation:
    """Measure an autoencoder on the rows of a store and, with `backbone`, inside the model that they came from.

    Rows are those of documents that training held out (`held_out_share`, by default what the checkpoint remembers; 0
    means all rows, which training saw). Reconstruction is measured on all of them in one encode pass, baselines on
    whole documents of at least `n_baseline_tokens` rows, faithfulness on `n_examples` examples. `inputs` are the images
    of an image store, which is not able to give them back. `sae` and `backbone` must be on one device.

    Raises `CheckpointError` when autoencoder and store do not belong together, `ConfigError` when the backbone does not
    give the stored activations or nothing is held out, `InputError` when `inputs` lacks images of the store, and
    `StoreError` for rows that are not finite.
    """
    point = matching_hook_point(sae, store, hook_point, allow_other_store=True)
    share = float((sae.provenance or {}).get("held_out_share", 0.0)) if held_out_share is None else held_out_share
    evaluated, seen = split_examples(store, share)
    device = next(sae.parameters()).device
    centre = torch.from_numpy(store.moments(point)[0]).to(device)

    n_rows = int(np.diff(store.examples.row_offsets)[evaluated].sum())
    with tqdm(total=n_rows, unit=" rows", desc="reconstruction", disable=None) as progress:

        def chunks() -> Iterable[tuple[Tensor, np.ndarray]]:
            for rows, documents in row_chunks(store, evaluated, point, device=device):
                yield rows, documents
                progress.update(len(rows))

        counting = CountingReconstruction(sae)
        reconstruction = measure_reconstruction(counting, chunks(), centre, n_bootstrap=n_bootstrap, seed=seed)
    latents = counting.use()

    fitted_on = random_documents(store, seen, PCA_ROWS, seed)
    mean, covariance = mean_and_covariance(store, fitted_on, point, device=device)
    k = max(1, round(latents.l0))
    baselines = [
        identity(),
        pca(mean, covariance, k),
        random_dictionary(mean, latents.n_latents, k, seed),
        mean_ablation(centre),
        zero_ablation(),
    ]
    measured_on = random_documents(store, evaluated, n_baseline_tokens, seed)
    beside = {
        baseline.name: measure_reconstruction(
            baseline.reconstruct,
            row_chunks(store, measured_on, point, device=device),
            centre,
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        for baseline in baselines
    }

    faithfulness: dict[str, dict[str, Number]] = {}
    facts: dict[str, Any] = {"skipped": why_skipped}
    if backbone is not None:
        methods: dict[str, Reconstruct] = {
            SAE: CountingReconstruction(sae),
            **{baseline.name: baseline.reconstruct for baseline in baselines},
        }
        model = SplicedBackbone(backbone, store, point, batch_size, n_bootstrap, seed)
        facts, faithfulness = model.faithfulness(random_examples(evaluated, n_examples, seed), methods, inputs)
    return Evaluation(
        checkpoint=_describe(sae),
        data={
            "store_hash": store.content_hash,
            "hook_point": point,
            "held_out_share": share,
            "is_store_of_training": (sae.provenance or {}).get("store_hash") == store.content_hash,
            "n_tokens": reconstruction.n_tokens,
            "n_documents": reconstruction.n_documents,
        },
        latents=latents,
        methods=(
            Method(name=SAE, k=latents.l0, reconstruction=reconstruction, faithfulness=faithfulness.get(SAE, {})),
            *(
                Method(
                    name=baseline.name,
                    k=baseline.k,
                    reconstruction=beside[baseline.name],
                    faithfulness=faithfulness.get(baseline.name, {}),
                )
                for baseline in baselines
            ),
        ),
        faithfulness=facts,
    )


def _describe(sae: Autoencoder) -> dict[str, Any]:
    described = {"class": type(sae).__name__, "d_in": sae.config.d_in, "config": to_tagged(sae.config)}
    if isinstance(sae, SparseAutoencoder):
        described["n_tokens_seen"] = int(sae.n_tokens_seen)
    return described
