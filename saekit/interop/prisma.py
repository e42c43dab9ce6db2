"""Prisma (ViT-Prisma): `config.json` and a torch file of tensors, ReLU or TopK on layer-normed activations of a ViT."""

import dataclasses
from typing import Any

from saekit.errors import CheckpointError
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.hook_names import from_transformer_lens
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, one_of, tensors_of

CONFIG = "config.json"
_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "rms"}
_FIELDS = {"hook_point_layer", "activation_fn_str", "architecture", "normalize_activations", "vit_model_cfg"}


def matches(source: Source) -> bool:
    if source.pickle is None or not source.has(CONFIG):
        return False
    config = source.config(CONFIG)
    return len(_FIELDS & set(config)) >= 2 and "trainer" not in config


def read(source: Source, options: ReadOptions) -> Dictionary:
    where = str(source.pickle)
    config = source.config(CONFIG)
    value: Any = source.pickled
    if value is None:
        raise CheckpointError(f"{where} is not a whole torch file. Fetch it again.")
    tensors = tensors_of(value.get("state_dict", value) if isinstance(value, dict) else value, source.path)
    is_gated = one_of(where, "architecture", config.get("architecture", "standard"), ["standard", "gated"]) == "gated"
    is_transcoder = bool(config.get("is_transcoder"))
    d_in, factor = config.get("d_in"), config.get("expansion_factor")
    shapes = {"W_enc": "d F", "W_dec": "F d", "b_dec": "d"}
    shapes |= {"b_gate": "F", "b_mag": "F", "r_mag": "F"} if is_gated else {"b_enc": "F"}
    if is_transcoder:
        shapes |= {"W_dec": "F o", "b_dec_out": "o"}
    check(
        where,
        tensors,
        shapes,
        optional={"W_skip": "d d", "b_enc": "F"} if is_transcoder else {"b_enc": "F"},
        ignored=("zero_loss",),
        sizes={"d": d_in, "F": config.get("d_sae") or (d_in * factor if d_in and isinstance(factor, int) else None)},
        said_by=CONFIG,
    )
    function = one_of(where, "activation_fn_str", config.get("activation_fn_str", "relu"), ["relu", "topk"])
    k: Any = (config.get("activation_fn_kwargs") or {}).get("k", options.k)
    if function == "topk" and k is None:
        raise CheckpointError(f"{source.folder}/{CONFIG} says topk and no activation_fn_kwargs.k. Give k.")
    name = config.get("hook_point") or f"blocks.{config.get('hook_point_layer')}.{config.get('layer_subtype')}"
    dictionary = Dictionary(
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_gate" if is_gated else "b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        activation=Activation(kind="gated", r_mag=tensors["r_mag"], b_mag=tensors["b_mag"])
        if is_gated
        else Activation(kind="relu")
        if function == "relu"
        else Activation(kind="topk", k=int(k)),
        subtracts_b_dec=True,
        hook_point=None if is_transcoder else from_transformer_lens(name),
        source={"format": "prisma", "hook_name": name, "model_name": config.get("model_name")},
    )
    norm = one_of(where, "normalize_activations", config.get("normalize_activations") or "none", list(_NORMS))
    if is_transcoder:
        return _transcoder(where, norm, dictionary, tensors)
    if norm == "none":
        return dictionary
    return dataclasses.replace(dictionary, token_norm=_NORMS[norm]).noting(  # type: ignore[arg-type]
        f"Carried {norm} of each token as token_norm={_NORMS[norm]!r}."
    )


def _transcoder(where: str, norm: str, dictionary: Dictionary, tensors: dict[str, Any]) -> Dictionary:
    if norm != "none":
        raise CheckpointError(f"{where} normalises each token of a transcoder ({norm}), which saekit cannot hold.")
    skip = tensors.get("W_skip")
    if skip is not None:
        skip = skip.T + skip.new_ones(len(skip)).diag()  # its skip connection is the identity and W_skip on top
    folded = dictionary.subtracting_b_dec(False)
    return dataclasses.replace(folded, is_transcoder=True, b_dec=tensors["b_dec_out"], W_skip=skip).noting(
        "Folded b_dec @ W_enc into b_enc."
    )
