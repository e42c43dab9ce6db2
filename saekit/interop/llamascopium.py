"""llamascopium (OpenMOSS, formerly Language-Model-SAEs): `config.json` and `sae_weights.safetensors`."""

import dataclasses

from saekit.errors import CheckpointError
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.hook_names import from_transformer_lens
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, load_safetensors, one_of

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm."


def matches(source: Source) -> bool:
    return source.has(CONFIG, WEIGHTS) and "W_E" in source.safetensors_names(WEIGHTS)


def read(source: Source, options: ReadOptions) -> Dictionary:
    where = str(source.folder)
    config = source.config(CONFIG)
    one_of(f"{where}/{CONFIG}", "sae_type", config.get("sae_type", "sae"), ["sae"])
    if config.get("use_glu_encoder"):
        raise CheckpointError(f"{where} has a gated linear unit for an encoder, which is not one affine map.")
    kind = one_of(
        f"{where}/{CONFIG}", "act_fn", str(config.get("act_fn", "relu")).lower(), ["relu", "jumprelu", "topk"]
    )
    tensors = load_safetensors(source.folder / WEIGHTS)
    norms = {name.removeprefix(_NORM): float(tensor) for name, tensor in tensors.items() if name.startswith(_NORM)}
    has_bias = config.get("use_decoder_bias", True)
    d_in, factor = config.get("d_model"), config.get("expansion_factor")
    check(
        where,
        tensors,
        {
            "W_E": "d F",
            "b_E": "F",
            "W_D": "F d",
            **({"b_D": "d"} if has_bias else {}),
            **({_LOG_THRESHOLD: "F"} if kind == "jumprelu" else {}),
        },
        ignored=[_NORM + name for name in norms],
        sizes={"d": d_in, "F": int(d_in * factor) if d_in and factor else None},
        said_by=CONFIG,
    )
    hooks = config.get("hook_point_in"), config.get("hook_point_out")
    is_transcoder = hooks[0] != hooks[1]
    dictionary = Dictionary(
        W_enc=tensors["W_E"],
        b_enc=tensors["b_E"],
        W_dec=tensors["W_D"],
        b_dec=tensors["b_D"] if has_bias else tensors["W_D"].new_zeros(tensors["W_D"].shape[1]),
        activation=Activation(kind="relu"),
        subtracts_b_dec=False,
        is_transcoder=is_transcoder,
        hook_point=None if is_transcoder else from_transformer_lens(hooks[0]),
        source={"format": "llamascopium", "hook_point_in": hooks[0], "hook_point_out": hooks[1]},
    )
    decoder_norms = dictionary.W_dec.norm(dim=1) if config.get("sparsity_include_decoder_norm", True) else None
    if kind == "jumprelu":
        threshold = tensors[_LOG_THRESHOLD].exp()
        threshold = threshold if decoder_norms is None else threshold / decoder_norms
        dictionary = dataclasses.replace(dictionary, activation=Activation(kind="jumprelu", threshold=threshold))
    if kind == "topk":
        if decoder_norms is not None:
            dictionary = dictionary.scaled_latents(decoder_norms).noting(
                "Its rows choose the k largest of latent times decoder norm: latents here are those products, and rows "
                "of W_dec have norm 1."
            )
        dictionary = dataclasses.replace(dictionary, activation=Activation(kind="topk", k=int(config["top_k"])))
    return _with_norm(where, config, dictionary, norms, hooks, options)


def _with_norm(
    where: str,
    config: dict,
    dictionary: Dictionary,
    norms: dict[str, float],
    hooks: tuple[str | None, str | None],
    options: ReadOptions,
) -> Dictionary:
    mode = one_of(
        f"{where}/{CONFIG}",
        "norm_activation",
        config.get("norm_activation", "dataset-wise"),
        ["dataset-wise", "inference", "token-wise"],
    )
    if mode == "inference":
        return dictionary
    if mode == "token-wise":
        if dictionary.is_transcoder:
            raise CheckpointError(f"{where} normalises each token of a transcoder, which saekit cannot hold.")
        return dataclasses.replace(dictionary, token_norm="rms").noting("Carried token-wise norms as token_norm='rms'.")
    root = dictionary.d_in**0.5
    factors = [root / norms[hook] if hook in norms else options.input_scale for hook in hooks]
    if factors[0] is None or factors[1] is None:
        raise CheckpointError(
            f"{where} was trained on activations scaled to a mean norm of sqrt(d_in) and lacks the norms: no tensor "
            f"{_NORM}{hooks[0]}. Give input_scale: sqrt(d_in) / mean norm of the activations."
        )
    was_given = any(hook not in norms for hook in hooks)
    return dictionary.with_input_scale(factors[0], output=factors[1], was_given=was_given)
