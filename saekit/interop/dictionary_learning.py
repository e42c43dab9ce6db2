"""dictionary_learning: `ae.pt` (tensors alone) and `config.json`, seven classes of dictionaries."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.errors import CheckpointError, ConfigError
from saekit.files import write_json
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.hook_names import layer_of
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, tensors_of

CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight": "F d", "decoder.weight": "d F"}
_THRESHOLD = {"k": "", "threshold": ""}
_MATRICES = {"W_enc": "d F", "b_enc": "F", "W_dec": "F d", "b_dec": "d"}
SHAPES: dict[str, dict[str, str]] = {
    "AutoEncoder": {**_LINEAR, "encoder.bias": "F", "bias": "d"},
    "AutoEncoderNew": {**_LINEAR, "encoder.bias": "F", "decoder.bias": "d"},
    "GatedAutoEncoder": {**_LINEAR, "decoder_bias": "d", "r_mag": "F", "gate_bias": "F", "mag_bias": "F"},
    "AutoEncoderTopK": {**_LINEAR, "encoder.bias": "F", "b_dec": "d", **_THRESHOLD},
    "BatchTopKSAE": {**_LINEAR, "encoder.bias": "F", "b_dec": "d", **_THRESHOLD},
    "MatryoshkaBatchTopKSAE": {**_MATRICES, **_THRESHOLD, "group_sizes": "G"},
    "JumpReluAutoEncoder": {**_MATRICES, "threshold": "F"},
}
_OPTIONAL = {
    "AutoEncoderTopK": {"k": "", "threshold": ""},  # files from before the buffers
    "BatchTopKSAE": {"k": ""},
    "MatryoshkaBatchTopKSAE": {"k": ""},
}


def matches(source: Source) -> bool:
    if source.path.is_dir() and source.has(WEIGHTS):
        return True
    value = source.pickled
    return isinstance(value, dict) and bool(_classes_by_names(value))


def read(source: Source, options: ReadOptions) -> Dictionary:
    if source.path.is_dir() and source.has(WEIGHTS):
        source = Source(source.path / WEIGHTS, source.label)
    path = source.path
    value = source.pickled
    if value is None:
        raise CheckpointError(f"{path} is not a whole torch file. Fetch it again.")
    notes: tuple[str, ...] = ()
    if isinstance(value, dict) and isinstance(value.get("ae"), dict):  # an interrupted run's checkpoint
        factor = float(value.get("norm_factor") or 1.0)
        tensors = tensors_of(value["ae"], path)
        notes = (f"A run that was not finished: folded its norm_factor {factor:.6g} into the weights.",)
    else:
        factor, tensors = 1.0, tensors_of(value, path)
    config = _config(path)
    trainer: dict[str, Any] = config["trainer"] if isinstance(config.get("trainer"), dict) else {}
    candidates = [trainer["dict_class"]] if "dict_class" in trainer else _classes_by_names(tensors)
    if len(candidates) != 1:
        which = " or ".join(candidates) or "none of dictionary_learning's classes"
        raise CheckpointError(
            f"{path} is {which} by its tensors' names ({', '.join(tensors)}), and no {CONFIG} says which. Put one "
            'beside it: {"trainer": {"dict_class": NAME}}.'
        )
    name = candidates[0]
    if name not in SHAPES:
        raise CheckpointError(f"{path} is a {name!r} of dictionary_learning; saekit can read {', '.join(SHAPES)}.")
    optional = _OPTIONAL.get(name, {})
    check(
        str(path),
        tensors,
        {key: axes for key, axes in SHAPES[name].items() if key not in optional},
        optional=optional,
        sizes={"d": trainer.get("activation_dim"), "F": trainer.get("dict_size")},
        said_by=CONFIG,
    )
    matrices = "W_enc" in SHAPES[name]
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
    encoder_bias = "b_enc" if matrices else "gate_bias" if name == "GatedAutoEncoder" else "encoder.bias"
    dictionary = Dictionary(
        W_enc=tensors["W_enc"] if matrices else tensors["encoder.weight"].T,
        b_enc=tensors[encoder_bias],
        W_dec=tensors["W_dec"] if matrices else tensors["decoder.weight"].T,
        b_dec=tensors[bias.get(name, "b_dec")],
        activation=_activation(path, name, tensors, trainer.get("k") or options.k, options),
        subtracts_b_dec=name not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        hook_point=_hook_point(trainer, config.get("buffer") or {}),
        source={"format": "dictionary_learning", "dict_class": name, "trainer": trainer},
        notes=notes,
    )
    if factor != 1.0:
        # Activations were divided by the factor. A finished run scales its biases and thresholds, which gives latents
        # in the units of raw activations: so does this.
        dictionary = dictionary.scaled_input(1 / factor).scaled_latents(torch.full((dictionary.d_sae,), factor))
    return dictionary


def write(dictionary: Dictionary, folder: Path) -> Dictionary:
    """Write `ae.pt` and `config.json`; ReLU as an AutoEncoder."""
    return _write(dictionary, folder, "AutoEncoder")


def write_new(dictionary: Dictionary, folder: Path) -> Dictionary:
    """The same, ReLU as an AutoEncoderNew, whose encoder does not subtract the decoder's bias."""
    return _write(dictionary, folder, "AutoEncoderNew")


def _write(dictionary: Dictionary, folder: Path, relu_class: str) -> Dictionary:
    problems = []
    if dictionary.token_norm != "none":
        problems.append(f"it does not normalise each token by itself ({dictionary.token_norm})")
    if dictionary.is_transcoder:
        problems.append("it has no transcoders")
    if problems:
        raise ConfigError(f"dictionary_learning cannot hold this dictionary: {'; '.join(problems)}.")
    classes = {
        "relu": relu_class,
        "gated": "GatedAutoEncoder",
        "topk": "AutoEncoderTopK",
        "batchtopk": "BatchTopKSAE",
        "matryoshka": "MatryoshkaBatchTopKSAE",
        "jumprelu": "JumpReluAutoEncoder",
    }
    name = classes[dictionary.activation.kind]
    subtracts = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    if dictionary.subtracts_b_dec != subtracts:
        dictionary = dictionary.subtracting_b_dec(subtracts).noting(
            f"Folded b_dec @ W_enc into the encoder's bias: {name} does not subtract b_dec from its input."
        )
    activation = dictionary.activation
    encoder, decoder = dictionary.W_enc.T, dictionary.W_dec.T
    linear = {"encoder.weight": encoder, "decoder.weight": decoder}
    matrices = {
        "W_enc": dictionary.W_enc,
        "b_enc": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    biases = {"encoder.bias": dictionary.b_enc, "b_dec": dictionary.b_dec}
    unset = torch.tensor(-1.0)
    thresholds = {
        "k": torch.tensor(activation.k or 1, dtype=torch.int32),
        "threshold": unset if activation.threshold is None else activation.threshold,
    }
    of_class: dict[str, dict[str, Any]] = {
        "AutoEncoder": {**linear, "encoder.bias": dictionary.b_enc, "bias": dictionary.b_dec},
        "AutoEncoderNew": {**linear, "encoder.bias": dictionary.b_enc, "decoder.bias": dictionary.b_dec},
        "GatedAutoEncoder": {
            **linear,
            "decoder_bias": dictionary.b_dec,
            "r_mag": activation.r_mag,
            "gate_bias": dictionary.b_enc,
            "mag_bias": activation.b_mag,
        },
        "AutoEncoderTopK": {**linear, **biases, **thresholds},
        "BatchTopKSAE": {**linear, **biases, **thresholds},
        "MatryoshkaBatchTopKSAE": {
            **matrices,
            **thresholds,
            "group_sizes": torch.tensor(activation.group_sizes or (dictionary.d_sae,)),
        },
        "JumpReluAutoEncoder": {**matrices, "threshold": activation.threshold},
    }
    torch.save({key: tensor.contiguous().clone() for key, tensor in of_class[name].items()}, folder / WEIGHTS)
    backbone = dictionary.source.get("backbone") or {}
    trainer = {
        "dict_class": name,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.d_sae,
        "layer": layer_of(dictionary.hook_point),
        "lm_name": backbone.get("spec"),
        "submodule_name": dictionary.hook_point,
    }
    if activation.k is not None:
        trainer["k"] = activation.k
    if activation.group_sizes is not None:
        trainer["group_sizes"] = list(activation.group_sizes)
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": {"d_submodule": dictionary.d_in, "io": "out"}})
    norms = dictionary.W_dec.norm(dim=1)
    if name == "AutoEncoder" and not torch.allclose(norms, torch.ones_like(norms)):
        dictionary = dictionary.noting(
            "load_dictionary rescales an AutoEncoder to unit decoder rows, and its latents with them; "
            "AutoEncoder.from_pretrained(path, normalize_decoder=False) keeps them as they are here."
        )
    return dictionary


def _activation(path: Path, name: str, tensors: dict[str, Tensor], k: Any, options: ReadOptions) -> Activation:
    if name in ("AutoEncoder", "AutoEncoderNew"):
        return Activation(kind="relu")
    if name == "GatedAutoEncoder":
        return Activation(kind="gated", r_mag=tensors["r_mag"], b_mag=tensors["mag_bias"])
    if name == "JumpReluAutoEncoder":
        return Activation(kind="jumprelu", threshold=tensors["threshold"])
    if "k" in tensors:
        if k is not None and int(tensors["k"]) != int(k):
            raise CheckpointError(f"{CONFIG} says k={k} and {path.name} k={int(tensors['k'])}.")
        k = int(tensors["k"])
    if k is None:
        raise CheckpointError(f"Neither {path} nor a {CONFIG} says k. Give k.")
    if name == "AutoEncoderTopK":
        return Activation(kind="topk", k=int(k))
    threshold = float(tensors["threshold"]) if options.threshold is None else options.threshold
    if threshold < 0:
        raise CheckpointError(
            f"{path} has no threshold yet (training sets it after its first thousand steps), and without one its "
            "latents would be those of a ReLU. Give threshold, the smallest activation that it should let pass."
        )
    groups = None
    kind = "batchtopk"
    if name == "MatryoshkaBatchTopKSAE":
        kind, groups = "matryoshka", tuple(int(size) for size in tensors["group_sizes"])
        if sum(groups) != tensors["W_enc"].shape[1]:
            raise CheckpointError(f"{path}: group_sizes {list(groups)} add up to {sum(groups)}, not to d_sae.")
    return Activation(kind=kind, k=int(k), threshold=torch.tensor(threshold), group_sizes=groups)  # type: ignore[arg-type]


def _classes_by_names(value: dict[str, Any]) -> list[str]:
    """The classes whose tensors have these names; a run that was not finished keeps them under `ae`."""
    names = set(value["ae"] if isinstance(value.get("ae"), dict) else value)
    return [
        name for name, shapes in SHAPES.items() if set(shapes) - set(_OPTIONAL.get(name, {})) <= names <= set(shapes)
    ]


def _config(path: Path) -> dict[str, Any]:
    for folder in (path.parent, path.parent.parent):  # checkpoints/ae_1000.pt lie one folder deeper
        if (folder / CONFIG).is_file():
            return Source(folder, str(folder)).config(CONFIG)
    return {}


def _hook_point(trainer: dict[str, Any], buffer: dict[str, Any]) -> str | None:
    submodule, layer = str(trainer.get("submodule_name") or ""), trainer.get("layer")
    if submodule.startswith("layers."):
        return submodule
    if layer is not None and submodule.startswith("resid_post"):
        return f"layers.{layer}"
    return None
