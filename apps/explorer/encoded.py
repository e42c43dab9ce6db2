"""One input with the features that fire on it: from the index, or from a live pass. Pure, NumPy only."""

import base64
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from saekit.errors import FeatureIndexError
from saekit.index import FeatureIndex
from saekit_explorer.widgets import Json, decode_tokens, finite, image_record, shown_number, shown_percent, summary

PER_PLACE = 64
"""Features sent for one token or patch; a dictionary with a larger L0 is cut to its strongest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The latents of one input. A place is a content token of it, counted from 0: a word piece, or a patch."""

    kind: str
    """`"text"` or `"image"`."""
    words: list[str] = field(default_factory=list)
    """Text: what every place says."""
    image: Json = field(default_factory=dict)
    """Image: as `widgets.image_record`, or with a data address as `src`."""
    n_places: int
    read: Int[np.ndarray, " n_read"]
    """Places that the autoencoder saw, ascending; others were dropped like in training."""
    places: Int[np.ndarray, " n_codes"]
    """Place of every nonzero latent, ascending."""
    features: Int[np.ndarray, " n_codes"]
    values: Float[np.ndarray, " n_codes"]
    error: Float[np.ndarray, " n_read"] | None = None
    """|x - x_hat|^2 / |x - mean|^2 of every read place; None without a live pass."""
    direct: Float[np.ndarray, " n_codes"] | None = None
    """What each code adds to the logit of the token predicted next, later layers left out; None without such a path."""
    predicted: list[str] = field(default_factory=list)
    """The token predicted after each place; empty where `direct` is None."""
    n_cut: int = 0
    """Tokens left out because the text was longer than the context."""


def from_index(index: FeatureIndex, example: int) -> Encoded:
    """An example as it was indexed: no model is needed, and no reconstruction error is known."""
    if not 0 <= example < index.n_examples:
        raise FeatureIndexError(f"There is no example {example}; this index has examples 0 to {index.n_examples - 1}.")
    n_prefix = index.examples.layout.n_prefix
    rows, features, values = index.latents_of_example(example)
    places = np.asarray(index.row_position)[rows].astype(np.int64) - n_prefix
    read = np.asarray(index.examples[example].kept, dtype=np.int64) - n_prefix
    words: list[str] = []
    image: Json = {}
    if index.kind == "text":
        ids = index.examples.token_ids(example)[n_prefix:].tolist()
        words = decode_tokens(index.examples.vocabulary or [], ids)
        n_places = len(words)
    else:
        image = image_record(index, example)
        n_places = image["grid"][0] * image["grid"][1]
    inside = (places >= 0) & (places < n_places)
    return Encoded(
        kind=index.kind,
        words=words,
        image=image,
        n_places=n_places,
        read=read[(read >= 0) & (read < n_places)],
        places=places[inside],
        features=np.asarray(features, dtype=np.int64)[inside],
        values=np.asarray(values)[inside],
    )


def data_address(picture: bytes, media_type: str = "image/webp") -> str:
    """`picture` as an address that carries the picture itself: for uploads, which are never stored."""
    return f"data:{media_type};base64,{base64.b64encode(picture).decode()}"


def payload(index: FeatureIndex, encoded: Encoded) -> Json:
    """What the browser draws: every feature that fires, most telling first, with its activations by place."""
    kept = _strongest(encoded)
    places, features, values = encoded.places[kept], encoded.features[kept], encoded.values[kept]
    direct = None if encoded.direct is None else encoded.direct[kept]
    density = np.asarray(index.stats["density"], dtype=np.float64)
    order = np.lexsort((places, features))
    found, starts = np.unique(features[order], return_index=True)
    highest = np.maximum.reduceat(values[order], starts) if len(found) else np.zeros(0)
    # A rare feature says more about an input than one that fires on a tenth of everything.
    rarity = -np.log10(np.clip(density[found], 0.1 / max(index.n_rows, 1), 0.999))
    codes: list[Json] = []
    runs = np.split(order, starts[1:]) if len(found) else []
    for at in np.argsort(-highest * rarity, kind="stable").tolist():
        feature, run = int(found[at]), runs[at]
        acts = [[int(place), round(float(value), 4)] for place, value in zip(places[run], values[run], strict=True)]
        if direct is not None:
            acts = [[*act, round(float(added), 4)] for act, added in zip(acts, direct[run], strict=True)]
        codes.append(
            {
                **summary(index, feature),
                "max": finite(index.stats["max"][feature]),
                "telling": round(float(highest[at] * rarity[at]), 4),
                "acts": acts,
            }
        )
    error: list[float | None] = [None] * encoded.n_places
    if encoded.error is not None:
        for place, missed in zip(encoded.read.tolist(), encoded.error.tolist(), strict=True):
            error[place] = finite(round(missed, 5))
    read = [False] * encoded.n_places
    for place in encoded.read.tolist():
        read[place] = True
    return {
        "kind": encoded.kind,
        "tokens": encoded.words,
        "image": encoded.image,
        "read": read,
        "error": error if encoded.error is not None else None,
        "predicted": encoded.predicted,
        "counts": np.bincount(encoded.places, minlength=encoded.n_places).tolist(),
        "codes": codes,
        "facts": _facts(encoded, len(np.unique(encoded.features))),
    }


def _strongest(encoded: Encoded) -> Int[np.ndarray, " n_kept"]:
    """Indices of the `PER_PLACE` strongest latents of every place."""
    order = np.lexsort((-encoded.values, encoded.places))
    places = encoded.places[order]
    first = np.searchsorted(places, places, side="left")
    return order[np.arange(len(order)) - first < PER_PLACE]


def _facts(encoded: Encoded, n_features: int) -> list[tuple[str, str, str]]:
    unit = "Tokens" if encoded.kind == "text" else "Patches"
    n_read = len(encoded.read)
    facts = [
        (unit, f"{encoded.n_places:,}", "places of this input"),
        ("Features", f"{n_features:,}", "distinct features that fire anywhere in it"),
        ("L0", shown_number(len(encoded.features) / max(n_read, 1)), "features active per place, on average"),
    ]
    if encoded.error is not None and n_read:
        facts.append(
            (
                "Error (FVU), median",
                shown_percent(float(np.median(encoded.error))),
                "share of a place's variance missed",
            )
        )
    return facts
