"""Live passes with a feature changed: what the model writes, and how its predictions move. Imports torch on use."""

from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.errors import BackboneError, ConfigError
from saekit_explorer.change import Change
from saekit_explorer.live import LiveModel, read_picture, read_text, words_of
from saekit_explorer.widgets import Json, decode_tokens

if TYPE_CHECKING:
    from saekit.evaluation.effects import PredictionEffect
    from saekit.intervene import Edit

N_MOVERS = 8


def steer_prompt(model: LiveModel, feature: int, change: Change, prompt: str, n_tokens: int) -> Json:
    """What the model writes after `prompt` without and with the change, and how the first written token moves."""
    from saekit.jobs.steer import steer_text

    with model.lock:
        found = steer_text(
            model.backbone,
            model.hook_point,
            model.autoencoder,
            {feature: edit_of(change)},
            prompt,
            n_tokens,
            options=model.options,
        )
    return {
        "prompt": found["prompt"],
        "without": found["without"],
        "with": found["with"],
        "kl": round(found["next_token_kl"], 5),
        "movers": [
            [decode_tokens(model.vocabulary or [], [each["id"]])[0], round(each["before"], 5), round(each["after"], 5)]
            for each in found["movers"][:N_MOVERS]
        ],
    }


def effect_on_text(model: LiveModel, text: str, feature: int, change: Change, place: int | None) -> Json:
    """How every next-token prediction of `text` moves when the feature is changed, everywhere or at one place."""
    from saekit.evaluation.effects import prediction_effect

    with model.lock:
        (example, *_), n_prefix = read_text(model, text)
        positions = None if place is None else [place + n_prefix]
        effect = prediction_effect(
            model.backbone,
            model.hook_point,
            model.autoencoder,
            {feature: edit_of(change)},
            example,
            positions=positions,
            n_movers=N_MOVERS,
        )
        words = words_of(model, example, n_prefix)
    content = slice(n_prefix, None)
    return {
        "kind": "text",
        "words": words,
        "kl": np.round(effect.kl[content], 5).tolist(),
        "movers": _movers(model, effect, range(n_prefix, len(effect.kl))),
    }


def effect_on_image(
    model: LiveModel, picture: bytes, name: str, feature: int, change: Change, place: int | None
) -> Json:
    """How the image's final representation, and its class where the model has a head, moves."""
    from saekit.evaluation.effects import class_names, prediction_effect, representation_effect

    with model.lock:
        example, n_prefix, image = read_picture(model, picture, name)
        positions = None if place is None else [place + n_prefix]
        edits = {feature: edit_of(change)}
        arguments: tuple[Any, ...] = (model.backbone, model.hook_point, model.autoencoder, edits, example)
        moved = representation_effect(*arguments, positions=positions)
        try:
            effect = prediction_effect(*arguments, positions=positions, n_movers=N_MOVERS)
        except BackboneError:
            effect = None
        names = class_names(model.backbone)
    places = np.asarray(example.kept, dtype=np.int64) - n_prefix
    n_places = image["grid"][0] * image["grid"][1]
    inside = (places >= 0) & (places < n_places)
    classes = None
    if effect is not None:
        mover = effect.movers
        classes = [
            [names.get(int(i), f"class {int(i)}"), round(float(p), 5), round(float(q), 5)]
            for i, p, q in zip(mover.ids[0], mover.before[0], mover.after[0], strict=True)
        ]
    return {
        "kind": "image",
        "image": image,
        "relative": round(moved.relative, 6),
        "cosine": round(moved.cosine, 6),
        "by_patch": [
            [int(at), round(float(value), 5)] for at, value in zip(places[inside], moved.by_token[inside], strict=True)
        ],
        "class_kl": None if effect is None else round(float(effect.kl[0]), 5),
        "classes": classes,
    }


def edit_of(change: Change) -> "Edit":
    """The library's edit for what a person chose."""
    from saekit.intervene import Add, Scale, Set

    if change.verb == "ablate":
        return Scale(0.0)
    if change.verb == "multiply":
        return Scale(change.amount)
    if change.verb == "set":
        return Set(change.amount)
    if change.verb == "add":
        return Add(change.amount)
    raise ConfigError(f"{change.verb!r} is nothing that can be done to a feature.")


def _movers(model: LiveModel, effect: "PredictionEffect", rows: range) -> list[list[list[Any]]]:
    mover = effect.movers
    return [
        [
            [decode_tokens(model.vocabulary or [], [int(token)])[0], round(float(p), 5), round(float(q), 5)]
            for token, p, q in zip(mover.ids[row], mover.before[row], mover.after[row], strict=True)
        ]
        for row in rows
    ]
