"""Pure renderers: from an index to the JSON that the browser's components draw. No Streamlit, no torch, no HTML.

Text leaves here as plain strings and enters the page as text nodes (components/common.js), so nothing is escaped
twice and nothing can become markup.
"""

import codecs
import math
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int

from saekit.index import FeatureExample, FeatureIndex
from saekit_explorer.browse import Browse, Listing, entropy_column

Json = dict[str, Any]

MAX_REACH = 128
"""Tokens kept on each side of an example's peak: what "all" can show."""
N_TOP, N_BANDS, PER_BAND, N_RANDOM = 20, 5, 8, 16
MAX_ROWS_DESCRIBED = 50_000
"""Features with more active rows are described by one token: counting more of them would hold up a page."""
DENSE, VERY_DENSE = 0.01, 0.1
DUPLICATE_COSINE = 0.95
"""Two decoder directions closer than this are called near-duplicates."""


def decode_tokens(vocabulary: Sequence[bytes], token_ids: Iterable[int]) -> list[str]:
    """The text of every token. A character spread over several tokens is shown on the one that completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    words: list[str] = []
    is_waiting = False
    for token in token_ids:
        piece = vocabulary[token] if token < len(vocabulary) else b"?"
        if is_waiting and piece and piece[0] & 0xC0 != 0x80:
            # A new character begins: bytes that wait for their end will not get it, and belong to the token before.
            words[-1] += decoder.decode(b"", final=True)
            is_waiting = False
        if not is_waiting:
            try:
                words.append(piece.decode())
                continue
            except UnicodeDecodeError:
                pass
        words.append(decoder.decode(piece))
        is_waiting = bool(decoder.getstate()[0])
    if words:
        words[-1] += decoder.decode(b"", final=True)
    return words


def shown_number(x: float, digits: int = 3) -> str:
    """`x` to `digits` significant digits; thousands are grouped, NaN is a dash."""
    if x is None or math.isnan(x):
        return "–"
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.{digits}g}" if x == 0 or abs(x) >= 1e-3 else f"{x:.1e}"


def shown_percent(x: float) -> str:
    """A share as a percentage."""
    return "–" if math.isnan(x) else f"{shown_number(100 * x)}%"


def one_in(density: float) -> str:
    """A density as people count: "1 in 412"."""
    return "never" if not density else f"1 in {1 / density:,.0f}" if density < 0.5 else shown_percent(density)


def finite(x: Any) -> float | None:
    """A Python float for JSON; None for NaN and infinity."""
    value = float(x)
    return value if math.isfinite(value) else None


def unit_name(index: FeatureIndex) -> str:
    """What one row of the index is called: token or patch."""
    return index.examples.layout.content


def summary(index: FeatureIndex, feature: int) -> Json:
    """What a link to a feature says: its id, its label, or what it fires on most."""
    label = index.annotations.get(feature).label
    return {"id": int(feature), "label": label, "top": "" if label else top_string(index, feature)}


def described(index: FeatureIndex, feature: int, n: int = 3) -> Json:
    """`summary` with up to `n` of the tokens it fires on: for lists in which people choose."""
    about = summary(index, feature)
    is_cheap = 0 < int(index.stats["n_active"][feature]) <= MAX_ROWS_DESCRIBED
    if not about["label"] and is_cheap and "top_token" in index.stats and index.examples.vocabulary is not None:
        tokens = index.top_tokens(feature, n=n)
        about["more"] = [index.examples.token_text(each.token) for each in tokens[1:] if each.share >= 0.05]
    return about


def top_string(index: FeatureIndex, feature: int) -> str:
    """The token (text) or class (image) that carries most of a feature's activation; empty when there is none."""
    stats = index.stats
    if "top_token" in stats:
        token = int(stats["top_token"][feature])
        return index.examples.token_text(token) if token >= 0 and index.examples.vocabulary is not None else ""
    if "top_label" in stats:
        label = int(stats["top_label"][feature])
        return index.label_names[label] if label >= 0 else ""
    return ""


def flags(index: FeatureIndex, feature: int) -> list[tuple[str, str, int | None]]:
    """What to beware of: text, explanation, and the other feature where there is one."""
    stats = index.stats
    found: list[tuple[str, str, int | None]] = []
    density = float(stats["density"][feature])
    if stats["is_dead"][feature]:
        found.append(("dead", f"silent on all {index.n_rows:,} rows of this index", None))
    if density > VERY_DENSE:
        found.append(("very dense", f"fires on more than {VERY_DENSE:.0%} of rows", None))
    elif density > DENSE:
        found.append(("dense", f"fires on more than {DENSE:.0%} of rows", None))
    if float(stats["nearest_cosine"][feature]) > DUPLICATE_COSINE:
        other = int(stats["nearest_feature"][feature])
        found.append((f"near-duplicate of {other}", f"decoder cosine above {DUPLICATE_COSINE}", other))
    return found


def head(index: FeatureIndex, feature: int, browse: Browse, listing: Listing) -> Json:
    """Header of a feature's page, with its neighbours in the current list."""
    stats, unit = index.stats, unit_name(index)
    annotation = index.annotations.get(feature)
    at = np.flatnonzero(listing.features == feature)
    here = int(at[0]) if len(at) else None
    n = len(listing.features)
    entropy = entropy_column(index)
    density = float(stats["density"][feature])
    facts = [
        (
            "Fires on",
            f"{one_in(density)} {'tokens' if unit == 'token' else 'patches'}",
            f"density {shown_percent(density)}",
        ),
        (
            "Times",
            f"{int(stats['n_active'][feature]):,}",
            f"active {unit}s of {index.n_rows:,}".replace("patchs", "patches"),
        ),
        ("Highest", shown_number(float(stats["max"][feature])), "highest activation"),
        ("Mean", shown_number(float(stats["mean"][feature])), "mean of the active values"),
        ("Median", shown_number(float(stats["q50"][feature])), "median of the active values"),
    ]
    if entropy:
        name = "Token entropy" if entropy == "token_entropy" else "Class entropy"
        facts.append((name, f"{shown_number(float(stats[entropy][feature]), 2)} bits", "0: always the same one"))
    if "encoder_decoder_cosine" in stats:
        facts.append(
            (
                "Encoder · decoder",
                shown_number(float(stats["encoder_decoder_cosine"][feature]), 2),
                "cosine of the two directions",
            )
        )
    return {
        **summary(index, feature),
        "label": annotation.label,
        "tags": list(annotation.tags),
        "flags": flags(index, feature),
        "facts": facts,
        "previous": int(listing.features[here - 1]) if here else None,
        "next": int(listing.features[here + 1]) if here is not None and here + 1 < n else None,
        "place": f"{here + 1:,} of {n:,}" if here is not None else f"not among the {n:,} of this list",
        "list": browse.to_query(),
    }


def text_example(index: FeatureIndex, example: FeatureExample, strings: dict[str, int]) -> Json:
    """One text example; `strings` collects the distinct tokens of a page, which examples refer to by number."""
    record = index.examples[example.example]
    assert record.token_ids is not None, "an index of texts holds token ids"
    n_prefix = index.examples.layout.n_prefix
    first = max(min(n_prefix, example.position), example.position - MAX_REACH)
    last = min(len(record.token_ids), example.position + MAX_REACH + 1)
    words = decode_tokens(index.examples.vocabulary or [], record.token_ids[first:last].tolist())
    acts = [
        [position - first, round(value, 4)]
        for position, value in zip(example.positions.tolist(), example.values.tolist(), strict=True)
        if first <= position < last
    ]
    return {
        **_about(example),
        "document": record.document,
        "label": record.label,
        "tokens": [strings.setdefault(word, len(strings)) for word in words],
        "peak": example.position - first,
        "acts": acts,
        "cut_left": first > n_prefix or record.start > 0,
        "cut_right": last < len(record.token_ids),
    }


def image_record(index: FeatureIndex, example: int) -> Json:
    """An example's picture and where the model looked in it. `src` is relative to the explorer's pages."""
    record = index.examples[example]
    geometry = record.geometry
    assert geometry is not None, "an index of images holds their geometry"
    return {
        "src": f"thumbnail/{quote(str(index.meta.get('content_hash', '0'))[:16])}/{example}",
        "width": geometry.width,
        "height": geometry.height,
        "crop": list(geometry.crop),
        "grid": list(geometry.grid),
        "name": record.caption or record.label or record.document,
    }


def image_example(index: FeatureIndex, example: FeatureExample) -> Json:
    """One image example with the heat of its patches."""
    record = index.examples[example.example]
    n_prefix = index.examples.layout.n_prefix
    pairs = zip(example.positions.tolist(), example.values.tolist(), strict=True)
    return {
        **_about(example),
        **image_record(index, example.example),
        "document": record.document,
        "label": record.label,
        "caption": record.caption,
        "acts": [[position - n_prefix, round(value, 4)] for position, value in pairs if position >= n_prefix],
    }


def examples(index: FeatureIndex, feature: int) -> Json:
    """Everything that the examples panel can show, so that choosing among it needs no server."""
    # No document is shown twice, so a few documents have to be shared among the bands.
    per_band = max(1, min(PER_BAND, int(index.stats["n_documents"][feature]) // N_BANDS))
    banded = index.quantile_examples(feature, n_bands=N_BANDS, per_band=per_band)
    unit = "tokens" if index.kind == "text" else "patches"
    groups: list[tuple[str, str, str, list[FeatureExample]]] = [
        ("top", "Top", "The highest activations, one per document.", index.top_examples(feature, n=N_TOP))
    ]
    for band in reversed(range(N_BANDS)):
        low, high = 100 * band // N_BANDS, 100 * (band + 1) // N_BANDS
        note = f"Quantile band: the part of this feature's active {unit} from {low}% to {high}% by activation."
        groups.append((f"q{low}", f"{low}–{high}%", note, [each for each in banded if each.band == band]))
    drawn = index.random_examples(feature, n=N_RANDOM, seed=0)
    groups.append(("random", "Random", "Documents drawn at random from all where it fires, at their peaks.", drawn))
    strings: dict[str, int] = {}
    drawn_groups = [
        {
            "key": key,
            "name": name,
            "note": note,
            "examples": [
                text_example(index, each, strings) if index.kind == "text" else image_example(index, each)
                for each in found
            ],
        }
        for key, name, note, found in groups
    ]
    return {
        "kind": index.kind,
        "feature": feature,
        "max": finite(index.stats["max"][feature]) or 0.0,
        "n_active": int(index.stats["n_active"][feature]),
        "groups": drawn_groups,
        "tokens": list(strings),
    }


def side(index: FeatureIndex, feature: int) -> Json:
    """Histogram, logit lens, tokens or classes, and the two kinds of neighbours."""
    found: Json = {"histogram": _histogram(index, feature), "promoted": None, "tokens": [], "labels": []}
    lens = index.logits(feature)
    if lens is not None and index.examples.vocabulary is not None:
        found["promoted"] = _logit_rows(index, lens.promoted, lens.promoted_values)
        found["suppressed"] = _logit_rows(index, lens.suppressed, lens.suppressed_values)
        values = [abs(value) for _, value in found["promoted"] + found["suppressed"]]
        found["logit_scale"] = max([*values, 1e-9])
    is_dead = bool(index.stats["is_dead"][feature])
    if index.kind == "text" and index.examples.vocabulary is not None and not is_dead:
        found["token_columns"] = ["Share", "Mean"]
        found["tokens"] = [
            [index.examples.token_text(each.token), finite(each.share), finite(each.mean)]
            for each in index.top_tokens(feature, n=8)
        ]
    lifts = [] if is_dead else index.label_lift(feature) or []
    found["labels"] = [
        {"label": each.label, "share": finite(each.share), "base": finite(each.base_rate), "lift": finite(each.lift)}
        for each in lifts[:8]
    ]
    near = index.neighbours(feature, n=8) if index.has("neighbours/features") else None
    pairs = zip(near.features.tolist(), near.cosines.tolist(), strict=True) if near else ()
    found["similar"] = [{**summary(index, other), "values": [finite(cosine)]} for other, cosine in pairs]
    together = index.coactivating(feature, n=8)
    found["together"] = [
        {**summary(index, other), "values": [finite(given), finite(inverse)]}
        for other, given, inverse in zip(
            together.features.tolist(), together.p_given.tolist(), together.p_inverse.tolist(), strict=True
        )
    ]
    return found


def _about(example: FeatureExample) -> Json:
    return {"example": example.example, "value": round(example.value, 4), "quantile": round(example.quantile, 4)}


def _logit_rows(
    index: FeatureIndex, ids: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> list[tuple[str, float]]:
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return [(index.examples.token_text(token), round(value, 4)) for token, value in list(pairs)[:8]]


def _histogram(index: FeatureIndex, feature: int) -> Json | None:
    stats = index.stats
    if stats["is_dead"][feature]:
        return None
    edges, counts = index.histogram(feature, n_bins=40)
    n, high = int(stats["n_active"][feature]), float(stats["max"][feature])
    q50, q99 = float(stats["q50"][feature]), float(stats["q99"][feature])
    return {
        "edges": [round(float(edge), 5) for edge in edges],
        "counts": [int(count) for count in counts],
        "ticks": [[q50, "median"], [q99, "99%"]] if q99 - q50 > 0.15 * high else [[q50, "median"]],
        "xlabel": f"activation, {n:,} active {'tokens' if index.kind == 'text' else 'patches'} (log count)",
        "alt": f"Histogram of {n:,} active values up to {shown_number(high)}; median {shown_number(q50)}, "
        f"99th percentile {shown_number(q99)}.",
    }
