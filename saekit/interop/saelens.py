"""SAELens: `cfg.json` and `sae_weights.safetensors`, in the layout of version 6 and the flat one before it."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import saekit
from saekit.errors import CheckpointError, ConfigError
from saekit.files import write_json
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.hook_names import from_transformer_lens, layer_of, to_transformer_lens
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, load_safetensors, one_of

CONFIG, WEIGHTS, SCALER, WHITENING = (
    "cfg.json",
    "sae_weights.safetensors",
    "activation_scaler.json",
    "activation_whitening.safetensors",
)
_FORMAT_VERSION = "6.0.0"  # of the layout that `write` writes: readers take one without a version for the old layout
_TRANSCODERS = {
    "transcoder": ("relu", False),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
_KINDS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka",
    **{name: kind for name, (kind, _) in _TRANSCODERS.items()},
}
_REFUSED = {
    "abstopk": "its latents may be negative",
    "matching_pursuit": "its latents are found one after the other, not by one affine map",
    "temporal": "its latents depend on other tokens",
}
_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "rms"}


def matches(source: Source) -> bool:
    return source.has(CONFIG, WEIGHTS)


def read(source: Source, options: ReadOptions) -> Dictionary:
    where = str(source.folder)
    config = _as_version_6(source.config(CONFIG))
    architecture = config.get("architecture", "standard")
    if architecture in _REFUSED:
        raise CheckpointError(f"{where} is a {architecture!r} of SAELens: {_REFUSED[architecture]}.")
    kind = _KINDS[one_of(f"{where}/{CONFIG}", "architecture", architecture, list(_KINDS))]
    tensors = load_safetensors(source.folder / WEIGHTS)
    if "log_threshold" in tensors and kind == "jumprelu":
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    is_transcoder, has_skip = architecture in _TRANSCODERS, _TRANSCODERS.get(architecture, ("", False))[1]
    out = "o" if is_transcoder else "d"
    shapes = {"W_enc": "d F", "W_dec": f"F {out}", "b_dec": out}
    shapes |= {"b_gate": "F", "b_mag": "F", "r_mag": "F"} if kind == "gated" else {"b_enc": "F"}
    shapes |= {"threshold": "F"} if kind == "jumprelu" else {}
    shapes |= {"topk_threshold": ""} if kind in ("batchtopk", "matryoshka") else {}
    shapes |= {"W_skip": "o d"} if has_skip else {}
    finetuning = ("finetuning_scaling_factor", "scaling_factor")
    check(
        where,
        tensors,
        shapes,
        optional=dict.fromkeys(finetuning, "F"),
        sizes={"d": config.get("d_in"), "F": config.get("d_sae"), **({"o": config.get("d_out")} if out == "o" else {})},
        said_by=CONFIG,
    )
    notes = []
    if config.get("reshape_activations") == "hook_z":
        notes.append("It takes hook_z with its heads side by side, [n_heads * d_head] wide.")
    W_dec = tensors["W_dec"]
    if config.get("finetuning_scaling_factor"):
        W_dec = W_dec * next(tensors[name] for name in finetuning if name in tensors)[:, None]
        notes.append("Folded the finetuning scaling factor of each latent into W_dec.")
    skip = tensors["W_skip"].T if has_skip else None
    dictionary = Dictionary(
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_gate" if kind == "gated" else "b_enc"],
        W_dec=W_dec,
        b_dec=tensors["b_dec"],
        activation=Activation(kind="relu"),
        subtracts_b_dec=bool(config.get("apply_b_dec_to_input", not is_transcoder)),
        is_transcoder=is_transcoder,
        W_skip=skip,
        hook_point=_hook_point(config["metadata"]),
        source={"format": "saelens", "architecture": architecture, **config["metadata"]},
        notes=tuple(notes),
    )
    is_topk = kind in ("topk", "batchtopk", "matryoshka")
    if is_topk and config.get("rescale_acts_by_decoder_norm", kind != "topk"):
        # The activation is of pre-activations times decoder norms: with those in the encoder its thresholds are right.
        dictionary = dictionary.scaled_latents(dictionary.W_dec.norm(dim=1)).noting(
            "Folded decoder norms into the encoder; rows of W_dec have norm 1."
        )
    dictionary = dataclasses.replace(dictionary, activation=_activation(where, kind, config, tensors))
    if is_transcoder:
        dictionary = dictionary.subtracting_b_dec(False)
    return _with_norm(source, config, dictionary, options)


def write(dictionary: Dictionary, folder: Path) -> Dictionary:
    """Write the layout of version 6; returns what was written, with notes."""
    dictionary, config, metadata, tensors = _parts(dictionary)
    versions = {"sae_lens_version": _FORMAT_VERSION, "saekit_version": saekit.__version__}
    write_json(folder / CONFIG, {**config, "metadata": {**metadata, **versions}})
    save_file(tensors, folder / WEIGHTS)
    return dictionary


def write_legacy(dictionary: Dictionary, folder: Path) -> Dictionary:
    """Write the flat config from before version 6, which had neither transcoders nor per-latent rescaling."""
    dictionary, config, metadata, tensors = _parts(dictionary)
    if dictionary.is_transcoder:
        raise ConfigError("SAELens had no transcoders before version 6. Write format 'saelens'.")
    k = config.pop("k", None)
    config.pop("rescale_acts_by_decoder_norm", None)
    flat = {
        **config,
        "architecture": "standard" if k is not None else config["architecture"],
        "activation_fn_str": "relu" if k is None else "topk",
        "activation_fn_kwargs": {} if k is None else {"k": k},
        "finetuning_scaling_factor": False,
        "hook_layer": layer_of(dictionary.hook_point),
        "hook_head_index": None,
        "sae_lens_training_version": None,
        "dataset_trust_remote_code": False,
        **metadata,
    }
    write_json(folder / CONFIG, flat)
    save_file(tensors, folder / WEIGHTS)
    return dictionary


def _parts(dictionary: Dictionary) -> tuple[Dictionary, dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """What to write: the dictionary with notes, config without metadata, metadata, tensors."""
    activation = dictionary.activation
    kind = activation.kind
    metadata = _metadata(dictionary)
    if kind in ("batchtopk", "matryoshka"):
        name = {"batchtopk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}[kind]
        metadata["training_architecture"] = name
        dictionary = dictionary.noting(f"Wrote {name} as jumprelu with its one threshold, as SAELens itself does.")
        activation = activation.as_jumprelu(dictionary.d_sae)
        kind = "jumprelu"
    tensors: dict[str, Any] = {"W_enc": dictionary.W_enc, "W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    config: dict[str, Any] = {
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtracts_b_dec,
        "normalize_activations": {norm: name for name, norm in _NORMS.items()}[dictionary.token_norm],
        "reshape_activations": "none",
    }
    if kind == "gated":
        tensors |= {"b_gate": dictionary.b_enc, "b_mag": activation.b_mag, "r_mag": activation.r_mag}
    else:
        tensors["b_enc"] = dictionary.b_enc
    if kind == "jumprelu":
        tensors["threshold"] = activation.threshold
    architectures = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
    if dictionary.is_transcoder:
        has_skip = dictionary.W_skip is not None
        architectures = {k: name for name, (k, skip) in _TRANSCODERS.items() if skip == has_skip}
        if kind not in architectures:
            raise ConfigError(f"SAELens has transcoders with ReLU and JumpReLU latents, not {kind}.")
        config["d_out"] = dictionary.d_out
        if dictionary.W_skip is not None:
            tensors["W_skip"] = dictionary.W_skip.T
    elif kind == "topk":
        config |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    config["architecture"] = architectures[kind]
    return dictionary, config, metadata, {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def _hook_point(metadata: dict[str, Any]) -> str | None:
    """Ours for the file's; a file that saekit wrote says it in our words where TransformerLens has none."""
    name = metadata.get("hook_name")
    return from_transformer_lens(name) or (name if "saekit_version" in metadata else None)


def _metadata(dictionary: Dictionary) -> dict[str, Any]:
    source = dictionary.source
    backbone, options = source.get("backbone") or {}, source.get("options") or {}
    found = {
        "model_name": backbone.get("spec"),
        "hook_name": to_transformer_lens(dictionary.hook_point) or dictionary.hook_point,
        "context_size": options.get("context_size"),
        "prepend_bos": bool(options.get("prefix", "none") != "none") if options else None,
    }
    carried = {**found, **{name: item for name, item in (source.get("source") or {}).items() if name in _CARRIED}}
    return {name: item for name, item in carried.items() if item is not None}


_CARRIED = {
    "model_name",
    "model_class_name",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "dataset_path",
    "context_size",
    "prepend_bos",
    "seqpos_slice",
    "model_from_pretrained_kwargs",
    "exclude_special_tokens",
    "sequence_separator_token",
    "disable_concat_sequences",
    "neuronpedia_id",
    "training_architecture",
}


_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


def _as_version_6(config: dict[str, Any]) -> dict[str, Any]:
    """The config with `metadata`; a flat one, from before version 6, is brought into that form."""
    metadata: dict[str, Any] = config["metadata"] if isinstance(config.get("metadata"), dict) else {}
    version = str(config.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    if int(version.split(".")[0] or 0) >= 6:
        return {**config, "metadata": metadata}
    flat = {_RENAMED.get(name, name): item for name, item in config.items()}
    norm = flat.get("normalize_activations")
    norm = {True: "expected_average_only_in", False: "none", None: "none"}.get(norm, norm)
    function = one_of(CONFIG, "activation_fn", flat.get("activation_fn", "relu"), ["relu", "topk"])
    return {
        **flat,
        "architecture": "topk" if function == "topk" else flat.get("architecture", "standard"),
        "k": (flat.get("activation_fn_kwargs") or {}).get("k"),
        "normalize_activations": norm,
        "rescale_acts_by_decoder_norm": False,
        "metadata": {name: item for name, item in flat.items() if name in {"hook_layer", *_CARRIED}},
    }


def _activation(where: str, kind: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Activation:
    k = config.get("k")
    if kind == "topk":
        if not isinstance(k, (int, float)) or k < 1:
            raise CheckpointError(f"{where}/{CONFIG} says k={k!r}; a topk keeps 1 latent or more per row.")
        return Activation(kind="topk", k=int(k))
    if kind == "jumprelu":
        return Activation(kind="jumprelu", threshold=tensors["threshold"])
    if kind == "gated":
        return Activation(kind="gated", r_mag=tensors["r_mag"], b_mag=tensors["b_mag"])
    if kind == "relu":
        return Activation(kind="relu")
    groups = None
    if kind == "matryoshka":
        widths = [0, *(config.get("matryoshka_widths") or []), config["d_sae"]]
        groups = tuple(b - a for a, b in itertools.pairwise(widths) if b > a)
    threshold = tensors["topk_threshold"].float()
    return Activation(kind=kind, k=round(float(k or 1)), threshold=threshold, group_sizes=groups)  # type: ignore[arg-type]


def _with_norm(source: Source, config: dict[str, Any], dictionary: Dictionary, options: ReadOptions) -> Dictionary:
    where = f"{source.folder}/{CONFIG}"
    norm = one_of(
        where,
        "normalize_activations",
        config.get("normalize_activations", "none"),
        [*_NORMS, "expected_average_only_in", "covariance_whitening"],
    )
    if norm == "expected_average_only_in":
        factor = options.input_scale
        if factor is None and source.has(SCALER):
            factor = source.config(SCALER).get("scaling_factor")
        if factor is None:
            raise CheckpointError(
                f"{where} says that activations were scaled to an average norm of sqrt(d_in), and no {SCALER} says by "
                "how much. Give input_scale: sqrt(d_in) / mean norm of the activations, or 1 if it is already folded."
            )
        output = 1.0 if dictionary.is_transcoder else None
        return dictionary.with_input_scale(float(factor), output=output, was_given=options.input_scale is not None)
    if norm == "covariance_whitening":
        return _unwhitened(source, dictionary)
    if norm != "none":
        if dictionary.is_transcoder:
            raise CheckpointError(f"{where} normalises each token of a transcoder ({norm}), which saekit cannot hold.")
        return dataclasses.replace(dictionary, token_norm=_NORMS[norm]).noting(  # type: ignore[arg-type]
            f"Carried {norm} of each token as token_norm={_NORMS[norm]!r}."
        )
    return dictionary


def _unwhitened(source: Source, dictionary: Dictionary) -> Dictionary:
    tensors = load_safetensors(source.folder / WHITENING)
    shapes = {"mean": "d", "matrix": "d d", "inverse_matrix": "d d"}
    check(str(source.folder / WHITENING), tensors, shapes, sizes={"d": dictionary.d_in}, said_by=CONFIG)
    mean, matrix, inverse = (tensors[name].double() for name in shapes)
    W_enc = matrix @ dictionary.W_enc.double()
    # Without b_dec on the input the mean's part has no other place than b_enc.
    shift = torch.zeros(dictionary.d_sae) if dictionary.subtracts_b_dec else -(mean @ W_enc)
    return dataclasses.replace(
        dictionary,
        W_enc=W_enc.float(),
        b_enc=(dictionary.b_enc.double() + shift).float(),
        W_dec=(dictionary.W_dec.double() @ inverse).float(),
        b_dec=(dictionary.b_dec.double() @ inverse + mean).float(),
        activation=dictionary.activation.shifted(shift),
    ).noting("Folded the whitening of the input into the weights.")
