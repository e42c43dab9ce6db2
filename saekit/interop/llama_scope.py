"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`, or, of the R1 distillates, `config.json` and
`sae_weights.safetensors` with a threshold for each latent."""

import dataclasses

import torch

from saekit.errors import CheckpointError
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.hook_names import from_transformer_lens
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, load_safetensors, one_of

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
R1_CONFIG, R1_WEIGHTS = "config.json", "sae_weights.safetensors"
_LOG_THRESHOLD = "log_jumprelu_threshold"


def matches(source: Source) -> bool:
    if source.has(CONFIG, WEIGHTS):
        return True
    return source.has(R1_CONFIG, R1_WEIGHTS) and "encoder.weight" in source.safetensors_names(R1_WEIGHTS)


def read(source: Source, options: ReadOptions) -> Dictionary:
    is_first = source.has(CONFIG, WEIGHTS)
    where = str(source.folder)
    config = source.config(CONFIG if is_first else R1_CONFIG)
    tensors = load_safetensors(source.folder / (WEIGHTS if is_first else R1_WEIGHTS))
    d_in = config.get("d_model")
    d_sae = config.get("d_sae") or (
        d_in * config["expansion_factor"] if d_in and "expansion_factor" in config else None
    )
    norms = {name: tensor for name, tensor in tensors.items() if name.startswith("dataset_average_activation_norm")}
    check(
        where,
        tensors,
        {
            "encoder.weight": "F d",
            "encoder.bias": "F",
            "decoder.weight": "d F",
            "decoder.bias": "d",
            **({} if is_first else {_LOG_THRESHOLD: "F"}),
        },
        ignored=norms,
        sizes={"d": d_in, "F": d_sae},
        said_by=CONFIG if is_first else R1_CONFIG,
    )
    one_of(where, "act_fn", str(config.get("act_fn", "jumprelu")).lower(), ["jumprelu"])
    if config.get("hook_point_in") != config.get("hook_point_out"):
        raise CheckpointError(f"{where} reads {config.get('hook_point_in')} and rebuilds another hook point.")
    factor = _input_scale(where, config, norms, options)
    threshold = (
        # The file's one threshold is of latents in raw units: times the scale it is of those that the weights give.
        torch.full((tensors["encoder.bias"].shape[0],), float(config["jump_relu_threshold"]) * factor)
        if is_first
        else tensors[_LOG_THRESHOLD].exp()
    )
    dictionary = Dictionary(
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["decoder.weight"].T,
        b_dec=tensors["decoder.bias"],
        activation=Activation(kind="relu"),
        subtracts_b_dec=False,
        hook_point=from_transformer_lens(config.get("hook_point_in")),
        source={"format": "llama_scope", "name": source.label, "hook_name": config.get("hook_point_in")},
    )
    if config.get("sparsity_include_decoder_norm"):
        threshold = threshold / dictionary.W_dec.norm(dim=1)
    dictionary = dataclasses.replace(dictionary, activation=Activation(kind="jumprelu", threshold=threshold))
    was_given = options.input_scale is not None and config.get("norm_activation") != "inference"
    return dictionary.with_input_scale(factor, was_given=was_given)


def _input_scale(where: str, config: dict, norms: dict, options: ReadOptions) -> float:
    """sqrt(d_in) over the mean norm of the activations."""
    mode = one_of(
        where, "norm_activation", config.get("norm_activation", "dataset-wise"), ["dataset-wise", "inference"]
    )
    if mode == "inference":
        return 1.0
    said = config.get("dataset_average_activation_norm") or {}
    found = {float(norm) for norm in said.values()} | {float(norm) for norm in norms.values()}
    if options.input_scale is not None:
        return options.input_scale
    if len(found) != 1:
        raise CheckpointError(
            f"{where} was trained on activations scaled to a mean norm of sqrt(d_in), and "
            + ("says several norms for them" if found else "does not say their norm")
            + ". Give input_scale: sqrt(d_in) / mean norm of the activations."
        )
    return float(config["d_model"]) ** 0.5 / found.pop()
