"""overcomplete: a torch file of a `state_dict`, an encoder of one linear layer with batch norm and a dictionary."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from saekit.errors import CheckpointError
from saekit.interop.activation import Activation
from saekit.interop.dictionary import Dictionary
from saekit.interop.options import ReadOptions
from saekit.interop.source import Source, check, tensors_of

_DICTIONARY = ("dictionary._weights", "dictionary.dictionary")
_BATCH_NORM_EPSILON = 1e-5  # torch's default, and overcomplete's


def matches(source: Source) -> bool:
    return isinstance(source.pickled, dict) and any(name in source.pickled for name in _DICTIONARY)


def read(source: Source, options: ReadOptions) -> Dictionary:
    where = str(source.pickle)
    tensors = tensors_of(source.pickled, source.path)
    deep = sorted({name.split(".")[1] for name in tensors if name.startswith("encoder.") and "_blocks" in name})
    if deep:
        raise CheckpointError(
            f"{where} has an encoder of several layers ({', '.join(deep)}), which is not one affine map; saekit reads "
            "encoders of one linear layer, with or without batch norm."
        )
    # Newer encoders are `final_block` of a module, older ones a bare sequence: layer 0 is linear, layer 1 the norm.
    block = "encoder.final_block." if any(name.startswith("encoder.final_block.") for name in tensors) else "encoder."
    weights = next(name for name in _DICTIONARY if name in tensors)
    has_norm = f"{block}1.running_mean" in tensors
    if f"{block}1.weight" in tensors and not has_norm:
        raise CheckpointError(
            f"{where} normalises pre-activations of each row (LayerNorm), which is not an affine map."
        )
    moments = {f"{block}1.{name}": "F" for name in ("weight", "bias", "running_mean", "running_var")}
    check(
        where,
        tensors,
        {f"{block}0.weight": "F d", f"{block}0.bias": "F", weights: "F d", **(moments if has_norm else {})},
        optional={"thresholds": "F", f"{block}1.num_batches_tracked": ""},
    )
    dictionary = Dictionary(
        W_enc=tensors[f"{block}0.weight"].T,
        b_enc=tensors[f"{block}0.bias"],
        W_dec=tensors[weights],
        b_dec=tensors[weights].new_zeros(tensors[weights].shape[1]),
        activation=Activation(kind="relu"),
        subtracts_b_dec=False,
        source={"format": "overcomplete", "name": source.label},
    )
    if has_norm:
        dictionary = _without_batch_norm(dictionary, {name.rsplit(".", 1)[1]: tensors[name] for name in moments})
    return dataclasses.replace(dictionary, activation=_activation(tensors, options)).noting(*_remarks(tensors, options))


def _without_batch_norm(dictionary: Dictionary, moments: dict[str, Tensor]) -> Dictionary:
    """The affine map of the linear layer and the batch norm after it, as it is when it is used."""
    gain = moments["weight"].double() / (moments["running_var"].double() + _BATCH_NORM_EPSILON).sqrt()
    b_enc = (dictionary.b_enc.double() - moments["running_mean"].double()) * gain + moments["bias"].double()
    return dataclasses.replace(
        dictionary, W_enc=(dictionary.W_enc.double() * gain).float(), b_enc=b_enc.float()
    ).noting("Folded the batch norm of the pre-activations into the encoder.")


def _activation(tensors: dict[str, Tensor], options: ReadOptions) -> Activation:
    if "thresholds" in tensors:
        # Theirs passes values equal to the threshold, ours those above it: the next smaller number is the same cut.
        threshold = torch.nextafter(tensors["thresholds"].exp(), torch.zeros(()))
        return Activation(kind="jumprelu", threshold=threshold)
    if options.threshold is not None:
        threshold = torch.nextafter(torch.tensor(float(options.threshold)), torch.zeros(()))
        return Activation(kind="batchtopk", k=options.k or 1, threshold=threshold)
    return Activation(kind="relu") if options.k is None else Activation(kind="topk", k=options.k)


def _remarks(tensors: dict[str, Tensor], options: ReadOptions) -> list[str]:
    if "thresholds" in tensors or options.k is not None or options.threshold is not None:
        return []
    remark: Any = (
        "Taken for a ReLU: a state_dict does not say whether it is a TopKSAE or BatchTopKSAE. Give k (top_k), or "
        "threshold (running_threshold), if it is."
    )
    return [remark]
