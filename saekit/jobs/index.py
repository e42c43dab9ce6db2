"""`saekit index`: what every latent of a checkpoint fires on, so that browsing needs neither model nor torch."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saekit.autoencoders import Autoencoder, SparseAutoencoder, Transcoder, load_autoencoder
from saekit.backbones import Backbone, load_backbone
from saekit.backbones.base import resolve_device
from saekit.errors import BackboneError, CheckpointError, ConfigError, SaekitError, StoreError
from saekit.files import hash_bytes, read_json, to_tagged
from saekit.index import FeatureIndex
from saekit.index.builder import Encode, IndexPlan, RowCodes, write_index
from saekit.index.dictionary import dictionary_arrays
from saekit.store import ActivationStore

_NO_LENS = "Type --no-logit-lens to build the index without a logit lens."


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Index what every latent of a checkpoint fires on, in one pass over a store; the explorer reads the result."""

    checkpoint: Path
    """Folder of a training run, or of a checkpoint."""
    store: Path
    """Activations to encode: those that the checkpoint was trained on, or see --allow-other-store."""
    out: Path
    """Folder of the index. When it holds an unfinished one of the same kind, it is continued."""
    hook_point: str | None = None
    """Which hook point of the store; by default the one that the checkpoint was trained on."""
    backbone: str | None = None
    """Language model for the logit lens; by default the one that the store was extracted from."""
    logit_lens: bool = True
    """For texts: which tokens each feature promotes and suppresses. Needs the language model once."""
    allow_other_store: bool = False
    """Accept a store other than the one trained on, of the same backbone and hook point."""
    batch_size: int = 4096
    """Rows per encoding step."""
    device: str | None = None
    """Where to encode; by default CUDA where there is one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"IndexConfig.batch_size={self.batch_size}; it is 1 or larger.")


def run(config: IndexConfig) -> Path:
    """Build the index that `config` describes and return its path."""
    store = ActivationStore.open(config.store)
    checkpoint = find_checkpoint(config.checkpoint)
    sae = load_autoencoder(checkpoint)
    # Before the language model is loaded, which is what takes long.
    hook_point = matching_hook_point(sae, store, config.hook_point, config.allow_other_store)
    backbone = None
    if config.logit_lens and store.examples.kind == "text":
        backbone = _load_for_lens(config.backbone or (store.provenance(hook_point)["backbone"] or {}).get("spec"))
    index = build_index(
        sae.to(resolve_device(config.device)),
        store,
        config.out,
        hook_point=hook_point,
        backbone=backbone,
        allow_other_store=config.allow_other_store,
        batch_size=config.batch_size,
        checkpoint=checkpoint,
    )
    dead = float(index.stats["is_dead"].mean())
    l0 = index.n_codes / max(index.n_rows, 1)
    print(f"{index.path}: {index.d_sae:,} features over {index.n_rows:,} rows, L0 {l0:.1f}, {dead:.1%} never fire")
    return index.path


def build_index(
    sae: Autoencoder,
    store: ActivationStore,
    out: str | Path,
    *,
    hook_point: str | None = None,
    backbone: Backbone | None = None,
    allow_other_store: bool = False,
    batch_size: int = 4096,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> FeatureIndex:
    """Encode every row of `store` with `sae`, where it is, and write the index `out`; an unfinished one is continued.

    With a language `backbone` the index gets a logit lens. `checkpoint` is only recorded: where `sae` was loaded from.

    Raises `CheckpointError` when `sae` and `store` do not belong together, `FeatureIndexError` when `out` holds
    something else or the disk is too small, `StoreError` for rows that are not finite.
    """
    if not isinstance(sae, SparseAutoencoder):
        raise ConfigError(f"An index needs a SparseAutoencoder; a {type(sae).__name__} has no sparse latents.")
    point = matching_hook_point(sae, store, hook_point, allow_other_store)
    unembedding = None if backbone is None else _unembedding(backbone, sae.config.d_in, point)
    d_sae = sae.config.d_sae
    plan = IndexPlan(
        d_sae=d_sae,
        examples=store.examples.path,
        meta=_describe(sae, store, point, backbone, checkpoint, batch_size),
    )

    def dictionary() -> dict[str, np.ndarray]:
        return dictionary_arrays(sae.W_enc.detach(), sae.W_dec.detach(), unembedding)

    write_index(out, plan, _encoder(sae, store, point, batch_size), dictionary, progress)
    return FeatureIndex.open(out)


def matching_hook_point(
    sae: Autoencoder, store: ActivationStore, hook_point: str | None, allow_other_store: bool = False
) -> str:
    """The hook point of `store` that `sae` is for; `CheckpointError` that lists every way in which they do not match.

    A checkpoint without provenance (trained on tensors of one's own) has to have the right width only.
    """
    provenance = sae.provenance or {}
    trained_on = provenance.get("hook_point")
    point = store.resolve(hook_point or (trained_on if trained_on in store.hook_points else None))
    ours, d_in = store.provenance(point), getattr(sae.config, "d_in", None)
    problems = []
    if isinstance(sae, Transcoder):
        problems.append("it is a transcoder, which rebuilds another hook point than the one that it reads")
    if d_in != store.d_model(point):
        problems.append(
            f"the checkpoint takes rows of width {d_in}, those of {point!r} are {store.d_model(point)} wide"
        )
    if trained_on is not None and trained_on != point:
        problems.append(f"it was trained on hook point {trained_on!r}, not {point!r}")
    trained_model, our_model = provenance.get("backbone") or {}, ours["backbone"] or {}
    different = [
        f"{name} {trained_model[name]!r} instead of {our_model[name]!r}"
        for name in ("spec", "family", "d_model", "n_layers")
        if name in trained_model and name in our_model and trained_model[name] != our_model[name]
    ]
    if different:
        problems.append(f"it was trained on another backbone ({', '.join(different)})")
    is_other = provenance.get("store_hash") not in (None, ours["store_hash"])
    if is_other and not allow_other_store:
        problems.append(
            f"it was trained on another store (content hash {provenance['store_hash']}, this one has "
            f"{ours['store_hash']}; if that is meant: --allow-other-store)"
        )
    if problems:
        raise CheckpointError(f"The checkpoint and {store.path} do not belong together: {'; '.join(problems)}.")
    return point


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint in `path`, which is one itself or a finished training run with one model."""
    path = Path(path)
    if (path / "meta.json").is_file() or not path.is_dir():
        return path
    found = sorted(meta.parent for meta in path.glob("checkpoint*/meta.json"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(each) for each in found)
        raise CheckpointError(f"{path} holds {len(found)} checkpoints; name one of them: {names}.")
    if (path / "run.json").is_file() and read_json(path / "run.json", CheckpointError)["finished"]:
        raise CheckpointError(
            f"The training run in {path} is finished, but its checkpoint/ is gone. Bring it back, or delete {path} and "
            "train again."
        )
    if (path / "run.json").is_file() or (path / "config.json").is_file():
        raise CheckpointError(
            f"The training run in {path} is not finished. Run the `saekit train` that began it again."
        )
    raise CheckpointError(f"{path} is neither a checkpoint nor a training run (no meta.json, no checkpoint/).")


def _encoder(sae: SparseAutoencoder, store: ActivationStore, hook_point: str, batch_size: int) -> Encode:
    device = sae.W_dec.device

    def read(start: int, stop: int) -> Tensor:
        rows = store.rows(start, stop, hook_point)
        return rows.pin_memory() if device.type == "cuda" else rows

    def encode(start: int, stop: int) -> Iterator[RowCodes]:
        bounds = [(at, min(at + batch_size, stop)) for at in range(start, stop, batch_size)]
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(read, *bounds[0]) if bounds else None
            for i, (first, _) in enumerate(bounds):
                assert ahead is not None
                x = ahead.result().to(device, non_blocking=True)
                ahead = reader.submit(read, *bounds[i + 1]) if i + 1 < len(bounds) else None
                _refuse_non_finite(x, first, store)
                codes = sae.encode_sparse(x)
                yield RowCodes(
                    counts=codes.row_offsets.diff().cpu().numpy(),
                    features=codes.latents.cpu().numpy(),
                    values=codes.values.float().cpu().numpy(),
                )

    return encode


def _refuse_non_finite(x: Float[Tensor, "n width"], first: int, store: ActivationStore) -> None:
    # A NaN row has no active latent: it would not show in the codes. The sum is cheap; rows are looked at if it is bad.
    if bool(x.sum(dtype=torch.float32).isfinite()):
        return
    is_bad = ~torch.isfinite(x).all(dim=1)
    if bool(is_bad.any()):
        row = first + int(is_bad.nonzero()[0])
        example = int(store.row_example[row])
        raise StoreError(
            f"Row {row} of {store.path} (example {example}, {store.examples[example].document!r}) holds NaN or "
            "infinity. Extract it again without that input, or in a wider dtype."
        )


def _unembedding(backbone: Backbone, d_in: int, hook_point: str) -> tuple[Tensor, Tensor | None]:
    if not hasattr(backbone, "unembedding"):
        raise BackboneError(f"{backbone.spec} is no language model with an output matrix. {_NO_LENS}")
    if d_in != backbone.d_model:
        raise BackboneError(
            f"{hook_point} is {d_in} wide and not part of the residual stream of {backbone.spec} ({backbone.d_model}): "
            f"its directions have no logits. {_NO_LENS}"
        )
    try:
        W_U, norm_weight = backbone.unembedding()
    except BackboneError as error:
        raise BackboneError(f"{error} {_NO_LENS}") from None
    return W_U.detach(), None if norm_weight is None else norm_weight.detach()


def _load_for_lens(spec: str | None) -> Backbone:
    if spec is None:
        raise BackboneError(f"The store does not say which model it is from; name it with --backbone. {_NO_LENS}")
    try:
        return load_backbone(spec)
    except SaekitError as error:
        raise BackboneError(f"The language model for the logit lens cannot be loaded: {error} {_NO_LENS}") from error


def _describe(
    sae: SparseAutoencoder,
    store: ActivationStore,
    hook_point: str,
    backbone: Backbone | None,
    checkpoint: str | Path | None,
    batch_size: int,
) -> dict[str, Any]:
    ours = store.provenance(hook_point)
    trained_on = (sae.provenance or {}).get("store_hash")
    return {
        "hook_point": hook_point,
        "backbone": ours["backbone"],
        "layout": ours["layout"],
        "input_options": ours["options"],
        "store": {
            "path": str(store.path.absolute()),
            "content_hash": ours["store_hash"],
            "is_training_store": None if trained_on is None else trained_on == ours["store_hash"],
            "n_high_norm_rows": store.meta["hook_points"][hook_point]["norms"]["n_high"],
        },
        "checkpoint": {
            "path": None if checkpoint is None else str(Path(checkpoint).absolute()),
            "weights_hash": _hash_weights(sae),
            "class": type(sae).__name__,
            "config": to_tagged(sae.config),
            "n_tokens_seen": int(sae.n_tokens_seen),
            "provenance": sae.provenance,
        },
        "has_logit_lens": backbone is not None,
        "logit_lens_backbone": None if backbone is None else backbone.spec,
        "batch_size": batch_size,
    }


def _hash_weights(sae: SparseAutoencoder) -> str:
    state = sorted(sae.state_dict().items())
    return hash_bytes(*(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for _, tensor in state))
