"""`saekit eval`: measure a checkpoint on activations and on the backbone behind them, beside baselines."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saekit.autoencoders import Autoencoder, SparseAutoencoder, load_autoencoder
from saekit.backbones import Backbone, ImageTokens, TextWindows, load_backbone
from saekit.backbones.base import resolve_device
from saekit.errors import CheckpointError, ConfigError, require
from saekit.evaluation import (
    CountingReconstruction,
    Evaluation,
    Method,
    identity,
    mean_ablation,
    measure_reconstruction,
    pca,
    pca_of_equal_fvu,
    random_dictionary,
    zero_ablation,
)
from saekit.evaluation.baselines import Reconstruct
from saekit.evaluation.outputs import check_out, write_outputs
from saekit.evaluation.pairs import feature_pairs
from saekit.evaluation.pictures import Pictures, picture_faithfulness, read_pictures, represent
from saekit.evaluation.pooled import pool
from saekit.evaluation.result import SAE, Number
from saekit.evaluation.rows import (
    Labels,
    first_of_each_document,
    mean_and_covariance,
    probe_split,
    random_documents,
    random_examples,
    read_labels,
    row_chunks,
    split_examples,
    store_labels,
)
from saekit.evaluation.spliced import SplicedBackbone
from saekit.evaluation.usefulness import (
    Embedded,
    Usefulness,
    description_lengths,
    dictionary_numbers,
    join,
    label_numbers,
    monosemanticity_numbers,
    probing_numbers,
    rows_of_documents,
    store_embedding,
)
from saekit.files import from_tagged, make_directory, to_tagged
from saekit.index import FeatureIndex
from saekit.inputs import Document, ImageInput, SkipLog, read_documents, read_images
from saekit.jobs.extract import extract
from saekit.jobs.index import find_checkpoint, matching_hook_point
from saekit.store import ActivationStore
from saekit.store.split import held_out

PCA_ROWS = 32_768  # rows that PCA is fitted on: many times any width, and seconds to read


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a checkpoint: reconstruction, faithfulness to the model, and what its latents are good for, beside
    baselines. On a store, or with --inputs alone on activations of a model that are made for this and thrown away."""

    checkpoint: Path
    """Folder of a training run, or of a checkpoint."""
    store: Path | None = None
    """Activations to measure on: those it was trained on (held-out documents are used) or others of the same hook
    point. Without a store, activations of --inputs are made."""
    out: Path
    """Folder that gets metrics.json, latents.csv, evaluation.html and evaluation.png: new, empty, the run's own, or
    that of an earlier evaluation of the same checkpoint."""
    hook_point: str | None = None
    """Which hook point; by default the one that the checkpoint was trained on."""
    backbone: str = "recorded"
    """Model for faithfulness: "recorded" is the one that the activations were extracted from, "none" leaves it out."""
    inputs: Path | None = None
    """Images that the store was made from: faithfulness needs them, because a store has thumbnails only. Without a
    store: texts or images to measure on, as for `saekit extract`."""
    labels: Path | None = None
    """CSV file of document,label lines, to use instead of the labels of the inputs."""
    index: Path | None = None
    """Index of this checkpoint, to look for pairs of features that split or absorb each other."""
    held_out_share: float | None = None
    """Share of documents, by a fixed hash of their id, to measure on; by default what training held out. 0 is all."""
    n_examples: int = 64
    """Windows of text, or images, for faithfulness: each costs one full forward pass per method."""
    batch_size: int = 8
    """Examples per forward pass."""
    n_tokens: int = 100_000
    """Without a store: about how many activations to make."""
    n_baseline_tokens: int = 8_192
    """Rows that baselines and bits are measured on."""
    usefulness: bool = True
    """Also measure latents one by one: probing, monosemanticity, labels, decoder geometry, bits."""
    n_probe_tokens: int = 24_576
    """Rows to fit probes on (images have a number of their own) and to judge them on, of each document its first
    window."""
    n_probe_images: int = 256
    """Images, other than those measured on, to fit probes on."""
    embedder: str | None = None
    """Images: another vision model, whose final representation judges monosemanticity; by default the backbone's."""
    report: bool = True
    """Also draw evaluation.html and evaluation.png, which needs matplotlib."""
    device: str | None = None
    """Where to compute; by default CUDA where there is one."""
    seed: int = 0
    """Draws examples, baseline rows, random directions and bootstrap replicates."""

    def __post_init__(self) -> None:
        small = [
            f"{name}={getattr(self, name)} is not 1 or larger"
            for name in (
                "n_examples",
                "batch_size",
                "n_tokens",
                "n_baseline_tokens",
                "n_probe_tokens",
                "n_probe_images",
            )
            if getattr(self, name) < 1
        ]
        if self.store is None and self.inputs is None:
            small.append("neither a store (--store) nor inputs (--inputs) to measure on")
        if self.embedder is not None and self.inputs is None:
            small.append("an embedder needs the images (--inputs)")
        if small:
            raise ConfigError(f"EvaluateConfig: {'; '.join(small)}.")


def run(config: EvaluateConfig) -> Path:
    """Evaluate what `config` names, print the table and write `metrics.json`; returns its path."""
    if config.report:
        require("matplotlib.figure", "train")  # now, not after the minutes that measuring takes
    checkpoint = find_checkpoint(config.checkpoint)
    check_out(config.out, checkpoint, config.store)
    store = None if config.store is None else ActivationStore.open(config.store)
    sae = load_autoencoder(checkpoint)
    pairs = None if config.index is None else _index_of(sae, config.index)
    if store is not None:
        # Before the model is loaded, which is what takes long.
        point = matching_hook_point(sae, store, config.hook_point, allow_other_store=True)
        labels = None if config.labels is None else read_labels(config.labels, store)
    backbone: Backbone | None
    with ExitStack() as stack:
        if store is None:
            model, skipped = _load_for_inputs(sae, config), ""
            backbone = model
            make_directory(config.out, ConfigError)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".activations-", dir=config.out))
            store, point = _extract_inputs(sae, model, config, Path(folder) / "store")
            labels = None if config.labels is None else read_labels(config.labels, store)
        else:
            backbone, skipped = _load_for_store(store, point, config)
        make_directory(config.out, ConfigError)
        device = backbone.device if backbone else resolve_device(config.device)
        is_image = store.examples.kind == "image"
        found = evaluate(
            sae.to(device),
            store,
            backbone=backbone,
            inputs=read_images(config.inputs, skipped=SkipLog()) if is_image and config.inputs is not None else None,
            hook_point=point,
            labels=labels,
            index=pairs,
            embedder=None if config.embedder is None else load_backbone(config.embedder, device=config.device),
            held_out_share=config.held_out_share,
            n_examples=config.n_examples,
            batch_size=config.batch_size,
            n_baseline_tokens=config.n_baseline_tokens,
            usefulness=config.usefulness,
            n_probe_tokens=config.n_probe_tokens,
            n_probe_images=config.n_probe_images,
            seed=config.seed,
            why_skipped=skipped,
        )
    path = write_outputs(found, config.out, checkpoint, to_tagged(config), report=config.report)
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
    labels: Labels | None = None,
    index: FeatureIndex | None = None,
    embedder: Backbone | None = None,
    held_out_share: float | None = None,
    n_examples: int = 64,
    batch_size: int = 8,
    n_baseline_tokens: int = 8_192,
    usefulness: bool = True,
    n_probe_tokens: int = 24_576,
    n_probe_images: int = 256,
    n_bootstrap: int = 1000,
    seed: int = 0,
    why_skipped: str = "no backbone was given",
) -> Evaluation:
    """Measure an autoencoder on the rows of a store and, with `backbone`, inside the model that they came from.

    Rows are those of documents that training held out (`held_out_share`, by default what the checkpoint remembers; 0
    means all rows, which training saw). Reconstruction is measured on all of them in one encode pass, baselines on
    whole documents of at least `n_baseline_tokens` rows, faithfulness on `n_examples` examples, probes on the first
    windows of as many documents as have `n_probe_tokens` rows (fitted on documents that were not held out, judged on
    those that were). `inputs` are
    the images of an image store, which is not able to give them back. `sae` and `backbone` must be on one device.

    Raises `CheckpointError` when autoencoder and store do not belong together, `ConfigError` when the backbone does not
    give the stored activations or nothing is held out, `InputError` when `inputs` lacks images of the store, and
    `StoreError` for rows that are not finite.
    """
    point = matching_hook_point(sae, store, hook_point, allow_other_store=True)
    share = float((sae.provenance or {}).get("held_out_share", 0.0)) if held_out_share is None else held_out_share
    labels = labels or store_labels(store)
    evaluated, seen = split_examples(store, share)
    device = next(sae.parameters()).device
    centre = torch.from_numpy(store.moments(point)[0]).to(device)

    n_rows = int(np.diff(store.examples.row_offsets)[evaluated].sum())
    with tqdm(total=n_rows, unit=" rows", desc="reconstruction", disable=None) as progress:

        def chunks() -> Iterator[tuple[Tensor, np.ndarray]]:
            for rows, documents in row_chunks(store, evaluated, point, device=device):
                yield rows, documents
                progress.update(len(rows))

        counting = CountingReconstruction(sae)
        reconstruction = measure_reconstruction(counting, chunks(), centre, n_bootstrap=n_bootstrap, seed=seed)
    latents = counting.use()

    fitted_on = random_documents(store, seen, PCA_ROWS, seed)
    mean, covariance = mean_and_covariance(store, fitted_on, point, device=device)
    k = max(1, round(latents.l0))
    measured_on = random_documents(store, evaluated, n_baseline_tokens, seed)

    def measured_rows() -> Iterator[tuple[Tensor, np.ndarray]]:
        return row_chunks(store, measured_on, point, device=device)

    # On the very rows that baselines are measured on: other documents are easier or harder.
    here = measure_reconstruction(CountingReconstruction(sae), measured_rows(), centre, n_bootstrap=0)
    baselines = [
        identity(),
        pca(mean, covariance, k),
        pca_of_equal_fvu(mean, covariance, (rows for rows, _ in measured_rows()), here.fvu),
        random_dictionary(mean, latents.n_latents, k, seed),
        mean_ablation(centre),
        zero_ablation(),
    ]
    beside = {
        baseline.name: measure_reconstruction(
            baseline.reconstruct, measured_rows(), centre, n_bootstrap=n_bootstrap, seed=seed
        )
        for baseline in baselines
    }

    chosen = random_examples(evaluated, n_examples, seed)
    to_fit, to_test = (first_of_each_document(store, part) for part in probe_split(store, evaluated, seen))
    to_test = random_documents(store, to_test, n_probe_tokens, seed) if len(to_test) else to_test
    pictures = None
    if backbone is not None and backbone.kind == "image" and inputs is not None:
        to_fit = others = random_examples(np.setdiff1d(to_fit, chosen), n_probe_images, seed)
        pictures = read_pictures(backbone, store, point, inputs, np.union1d(chosen, others))
        fit_pictures = pictures.take(others)
        vectors = _represent_all(backbone, fit_pictures, batch_size)

    elif len(to_fit):
        to_fit = random_documents(store, to_fit, n_probe_tokens, seed)

    faithfulness: dict[str, dict[str, Number]] = {}
    facts: dict[str, Any] = {"skipped": why_skipped}
    if backbone is not None:
        methods: dict[str, Reconstruct] = {
            SAE: CountingReconstruction(sae),
            **{baseline.name: baseline.reconstruct for baseline in baselines},
        }
        model = SplicedBackbone(backbone, store, point, batch_size, n_bootstrap, seed)
        if store.examples.kind == "text":
            facts, faithfulness = model.next_token(chosen, methods)
        elif pictures is None:
            facts = {"skipped": "the images were not given; the store has thumbnails only"}
        else:
            tested = pictures.take(chosen)
            facts, faithfulness = picture_faithfulness(
                model,
                tested,
                labels.of_examples(store, np.array(tested.indices)),
                vectors.numpy(),
                labels.of_examples(store, np.array(fit_pictures.indices, dtype=np.int64)),
                methods,
            )

    useful = None
    if usefulness:
        weights, columns = dictionary_numbers(sae)
        lengths = description_lengths(sae, store, measured_on, point, mean, covariance, k, device)
        useful = Usefulness(
            dictionary=weights,
            description_length=lengths,
            pairs=None if index is None else feature_pairs(index, seed=seed),
            columns={"density": latents.density, **columns},
        )
        if len(to_fit) and len(to_test):
            fit = pool(sae, store, to_fit, point, labels, device)
            test = pool(sae, store, to_test, point, labels, device)
            embedded = store_embedding(fit, test)
            if pictures is not None:
                spec = embedder or backbone
                assert spec is not None
                judged = pictures
                if embedder is not None:
                    judged = _for_embedder(pictures, embedder)
                documents = np.asarray(store.examples.document_of)[judged.indices].astype(np.int64)
                known = np.isin(documents, join(fit, test).documents)
                embedded = Embedded(
                    pooled=rows_of_documents(join(fit, test), documents[known]),
                    embeddings=_represent_all(spec, judged, batch_size)[known],
                    source=f"final representation of {spec.spec}",
                )
            scores, by_latent = monosemanticity_numbers(embedded)
            about_labels, label_columns = label_numbers(join(fit, test), labels.names)
            useful = Usefulness(
                probing=probing_numbers(fit, test, labels.names, n_bootstrap, seed),
                monosemanticity=scores,
                labels=about_labels,
                dictionary=weights,
                description_length=lengths,
                pairs=useful.pairs,
                columns={**useful.columns, "monosemanticity": by_latent, **label_columns},
            )
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
        usefulness=useful,
    )


def _describe(sae: Autoencoder) -> dict[str, Any]:
    described = {"class": type(sae).__name__, "d_in": sae.config.d_in, "config": to_tagged(sae.config)}
    if isinstance(sae, SparseAutoencoder):
        described["n_tokens_seen"] = int(sae.n_tokens_seen)
    return described


def _index_of(sae: Autoencoder, path: Path) -> FeatureIndex:
    """The index at `path`; `CheckpointError` when it is of another dictionary."""
    index = FeatureIndex.open(path)
    d_sae = getattr(sae.config, "d_sae", None)
    if index.d_sae != d_sae:
        raise CheckpointError(f"{path} is an index of {index.d_sae} features; the checkpoint has {d_sae} latents.")
    return index


def _load_for_store(store: ActivationStore, point: str, config: EvaluateConfig) -> tuple[Backbone | None, str]:
    """The backbone to splice into, or None and the reason."""
    if config.backbone == "none":
        return None, "no backbone was asked for (--backbone none)"
    recorded = store.provenance(point)["backbone"] or {}
    spec = recorded.get("spec") if config.backbone == "recorded" else config.backbone
    if spec is None:
        raise ConfigError(f"{config.store} does not say which model it is from; name it with --backbone.")
    if store.examples.kind == "image" and config.inputs is None:
        return None, "the images are needed again (--inputs FOLDER); the store has thumbnails only"
    dtype = recorded.get("dtype") if config.backbone == "recorded" else None
    backbone = load_backbone(spec, dtype=dtype, device=config.device)
    if backbone.kind != store.examples.kind:
        raise ConfigError(f"{spec} is a model of {backbone.kind}s, {config.store} holds {store.examples.kind}s.")
    return backbone, ""


def _load_for_inputs(sae: Autoencoder, config: EvaluateConfig) -> Backbone:
    recorded = (sae.provenance or {}).get("backbone") or {}
    spec = recorded.get("spec") if config.backbone == "recorded" else config.backbone
    if spec in (None, "none"):
        raise ConfigError(
            f"Without a store the activations are made by a model, and {config.checkpoint} does not say by which one; "
            "name it with --backbone."
            if spec is None
            else "--backbone none leaves nothing to measure on without a store; give --store or a backbone."
        )
    return load_backbone(str(spec), dtype=recorded.get("dtype"), device=config.device)


def _extract_inputs(
    sae: Autoencoder, backbone: Backbone, config: EvaluateConfig, out: Path
) -> tuple[ActivationStore, str]:
    """Activations of `config.inputs`: the documents that training held out, and twice as many others to fit on."""
    provenance = sae.provenance or {}
    point = config.hook_point or provenance.get("hook_point")
    if point is None:
        raise ConfigError(f"{config.checkpoint} does not say which hook point it is for; name it with --hook-point.")
    backbone.width(point)
    recorded = provenance.get("options")
    options = from_tagged(recorded, TextWindows | ImageTokens) if recorded else backbone.default_options()
    share = float(provenance.get("held_out_share", 0.0)) if config.held_out_share is None else config.held_out_share
    log = SkipLog()
    assert config.inputs is not None, "the config refuses that"
    reader: Iterable[Document | ImageInput] = (
        read_documents(str(config.inputs), skipped=log)
        if backbone.kind == "text"
        else read_images(str(config.inputs), skipped=log)
    )
    wanted = reader if share == 0 else (item for item in reader if held_out([item.id], min(0.999, 3 * share))[0])
    store = extract(
        backbone,
        wanted,
        hook_points=[point],
        out=out,
        n_tokens=config.n_tokens,
        options=options,
        sample_seed=config.seed,
        batch_size=config.batch_size,
        skipped=log,
        source=str(config.inputs),
    )
    matching_hook_point(sae, store, point, allow_other_store=True)
    return store, point


def _represent_all(backbone: Backbone, pictures: Pictures, batch_size: int) -> Tensor:
    batches = [pictures.examples[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    progress = tqdm(batches, unit=" batches", desc="representations", disable=None)
    return torch.cat([represent(backbone, batch).cpu() for batch in progress] or [torch.zeros(0, backbone.d_model)])


def _for_embedder(pictures: Pictures, embedder: Backbone) -> Pictures:
    """The same pictures as the embedder wants them prepared, from the thumbnails that came with them."""
    skipped = SkipLog()
    images = [
        ImageInput(id=str(index), load=example.thumbnail or b"")
        for index, example in zip(pictures.indices, pictures.examples, strict=True)
    ]
    examples = list(embedder.examples(images, embedder.default_options(), skipped))
    return Pictures(examples=examples, indices=[int(example.document) for example in examples])
