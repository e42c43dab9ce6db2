"""A live pass: backbone and autoencoder, loaded on first use. The only part of the explorer that imports torch."""

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.errors import BackboneError, CheckpointError, ConfigError, InputError
from saekit.files import from_tagged
from saekit.index import FeatureIndex
from saekit_explorer.encoded import Encoded, data_address
from saekit_explorer.settings import Settings
from saekit_explorer.widgets import decode_tokens

if TYPE_CHECKING:
    from saekit.autoencoders import SparseAutoencoder
    from saekit.backbones import Backbone
    from saekit.store.examples import Example


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveModel:
    """A backbone with the autoencoder that reads it. One pass at a time: `lock` serves the browsers in turn."""

    backbone: "Backbone"
    autoencoder: "SparseAutoencoder"
    hook_point: str
    options: Any
    """`TextWindows` or `ImageTokens`, as the store was extracted with."""
    vocabulary: list[bytes] | None
    lock: threading.Lock = field(default_factory=threading.Lock)


def load_live(index: FeatureIndex, settings: Settings) -> LiveModel:
    """Load what the index names, or what the settings name instead.

    Raises `CheckpointError` or `BackboneError` when it is not there, `MissingExtraError` when a package is not.
    """
    from saekit.autoencoders import SparseAutoencoder, load_autoencoder
    from saekit.backbones import ImageTokens, TextBackbone, TextWindows, load_backbone

    checkpoint = settings.checkpoint or (index.meta.get("checkpoint") or {}).get("path")
    if not checkpoint:
        raise CheckpointError(
            "This index does not say where its autoencoder is. Type: saekit explore INDEX --checkpoint CHECKPOINT"
        )
    autoencoder = load_autoencoder(checkpoint)
    if not isinstance(autoencoder, SparseAutoencoder):
        raise CheckpointError(
            f"{checkpoint} holds a {type(autoencoder).__name__}; live inputs need a SparseAutoencoder."
        )
    if autoencoder.config.d_sae != index.d_sae:
        raise CheckpointError(
            f"{checkpoint} has {autoencoder.config.d_sae} latents and the index {index.d_sae}; they do not match. "
            "Type: saekit explore INDEX --checkpoint CHECKPOINT"
        )
    about = index.meta
    spec = settings.backbone or (about.get("backbone") or {}).get("spec")
    if not spec:
        raise CheckpointError("Nobody wrote down which backbone this is. Type: saekit explore INDEX --backbone SPEC")
    backbone = load_backbone(spec)
    if backbone.kind != index.kind:
        raise ConfigError(f"{spec} reads {backbone.kind}; this index is of {index.kind}.")
    hook_point = about["hook_point"]
    width = backbone.width(hook_point)
    if width != autoencoder.config.d_in:
        raise ConfigError(f"{spec} is {width} wide at {hook_point}; the autoencoder takes {autoencoder.config.d_in}.")
    stored = about.get("input_options")
    options = from_tagged(stored, TextWindows | ImageTokens) if stored else backbone.default_options()
    autoencoder.to(backbone.device).eval()
    vocabulary = backbone.token_bytes() if isinstance(backbone, TextBackbone) else None
    return LiveModel(
        backbone=backbone, autoencoder=autoencoder, hook_point=hook_point, options=options, vocabulary=vocabulary
    )


def encode_text(model: LiveModel, text: str) -> Encoded:
    """A text through the model: its first window. Raises `InputError` for a text without tokens."""
    with model.lock:
        (example, *others), n_prefix = read_text(model, text)
        words = words_of(model, example, n_prefix)
        n_cut = sum(len(other.token_ids) - n_prefix for other in others if other.token_ids is not None)
        return _encode(model, example, n_prefix, kind="text", words=words, n_places=len(words), n_cut=n_cut)


def read_text(model: LiveModel, text: str) -> "tuple[list[Example], int]":
    """The windows of a text, one at least, and how many prefix tokens each has."""
    from saekit.inputs import Document, SkipLog

    if not text.strip():
        raise InputError("The text is empty.")
    options = replace(model.options, min_tokens=1, pack=False)
    windows = list(model.backbone.examples([Document(id="input", text=text)], options, SkipLog()))
    if not windows:
        raise InputError("No token of this text is one that the autoencoder reads. Write a little more.")
    return windows, model.backbone.layout_for(options).n_prefix


def words_of(model: LiveModel, example: "Example", n_prefix: int) -> list[str]:
    """What each content token of a text says."""
    assert example.token_ids is not None, "a text backbone gives token ids"
    return decode_tokens(model.vocabulary or [], example.token_ids[n_prefix:].tolist())


def encode_image(model: LiveModel, picture: bytes, name: str) -> Encoded:
    """An encoded image file through the model. Raises `InputError` when it is not a readable image."""
    with model.lock:
        example, n_prefix, image = read_picture(model, picture, name)
        n_places = image["grid"][0] * image["grid"][1]
        return _encode(model, example, n_prefix, kind="image", image=image, n_places=n_places)


def read_picture(model: LiveModel, picture: bytes, name: str) -> "tuple[Example, int, dict[str, Any]]":
    """An encoded image file as an example, its number of prefix tokens, and what the browser draws it from."""
    from saekit.inputs import ImageInput, SkipLog

    log = SkipLog()
    found = list(model.backbone.examples([ImageInput(id=name, load=picture)], model.options, log))
    if not found:
        raise InputError(f"{name} cannot be used: {next(iter(log.reasons), 'not a readable image')}.")
    example = found[0]
    geometry = example.geometry
    assert geometry is not None, "an image backbone gives the geometry"
    image = {
        "src": data_address(example.thumbnail),
        "width": geometry.width,
        "height": geometry.height,
        "crop": list(geometry.crop),
        "grid": list(geometry.grid),
        "name": name,
    }
    return example, model.backbone.layout_for(model.options).n_prefix, image


def _encode(model: LiveModel, example: "Example", n_prefix: int, **rest: Any) -> Encoded:
    import torch

    ((_, captured),) = model.backbone.activations([example], [model.hook_point], batch_size=1)
    autoencoder = model.autoencoder
    with torch.no_grad():
        x = captured[model.hook_point].to(autoencoder.W_dec.dtype)
        active = autoencoder.encode_sparse(x)
        x_hat = autoencoder(x)
        missed = (x - x_hat).square().sum(-1) / (x - autoencoder.input_mean).square().sum(-1).clamp_min(1e-12)
    read = np.asarray(example.kept, dtype=np.int64) - n_prefix
    of_row = np.repeat(np.arange(len(read)), active.row_offsets.diff().cpu().numpy())
    places = read[of_row]
    inside = (places >= 0) & (places < rest["n_places"])
    is_content = (read >= 0) & (read < rest["n_places"])
    return Encoded(
        read=read[is_content],
        places=places[inside],
        features=active.latents.cpu().numpy().astype(np.int64)[inside],
        values=active.values.float().cpu().numpy()[inside],
        error=missed.float().cpu().numpy()[is_content],
        **_direct(model, example, n_prefix, inside, rest["n_places"]),
        **rest,
    )


def _direct(model: LiveModel, example: "Example", n_prefix: int, inside: np.ndarray, n_places: int) -> dict[str, Any]:
    """What each latent adds to the logit of the token predicted next, where there is a direct path to it."""
    from saekit.backbones import CausalLM
    from saekit.evaluation.effects import direct_effects

    if not isinstance(model.backbone, CausalLM):
        return {}
    try:
        targets, direct = direct_effects(model.backbone, model.hook_point, model.autoencoder, example)
    except (BackboneError, ConfigError):
        return {}
    predicted = decode_tokens(model.vocabulary or [], targets[n_prefix : n_prefix + n_places].tolist())
    return {"direct": direct[inside], "predicted": predicted}
