"""Which features a list holds and in which order: the state of the Features page, and of previous/next. NumPy only."""

from dataclasses import asdict, dataclass, fields
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

import numpy as np
from jaxtyping import Float, Int

from saekit.index import FeatureIndex

MAX_TOKENS = 40
"""Token ids a search looks up; more strings than this contain most one- and two-letter queries."""
MATCHES_PER_KEY = 300
"""Features looked up for each token or label of a search."""

DENSITY_STOPS: tuple[tuple[str, float], ...] = (
    ("0", 0.0),
    ("1e-6", 1e-6),
    ("1e-5", 1e-5),
    ("1e-4", 1e-4),
    ("0.1%", 1e-3),
    ("1%", 1e-2),
    ("10%", 1e-1),
    ("100%", 1.0),
)
"""Stops of the density filter, as shown and as shares of tokens."""

TEXT_COLUMNS = ("label", "tags", "note")


@dataclass(frozen=True, kw_only=True)
class Browse:
    """A list of features: search, filters and order. Its `to_query` is what a URL carries."""

    q: str = ""
    """What to search for."""
    by: str = "token"
    """Where: `token`, `class` (label of the documents or images) or `words` (people's labels, tags, notes, ids)."""
    sort: str = "best"
    """One of `sort_columns`."""
    ascending: bool = False
    low: str = "0"
    """Lowest density, one of `DENSITY_STOPS`."""
    high: str = "100%"
    """Highest density, one of `DENSITY_STOPS`."""
    alive: bool = True
    """Leave out features that never fire."""
    annotated: bool = False
    """Only features with a label, tag or note."""

    def to_query(self) -> str:
        """URL-encoded settings that differ from the defaults; an empty string for the defaults."""
        changed = {name: value for name, value in asdict(self).items() if value != getattr(Browse(), name)}
        return urlencode({name: int(value) if isinstance(value, bool) else value for name, value in changed.items()})

    @classmethod
    def from_query(cls, text: str) -> "Browse":
        """The inverse of `to_query`; what it does not know is left out, since anybody can write a URL."""
        given = dict(parse_qsl(text))
        known: dict[str, str | bool] = {}
        for field in fields(cls):
            if field.name in given:
                raw = given[field.name]
                known[field.name] = raw == "1" if isinstance(field.default, bool) else raw
        stops = {name for name, _ in DENSITY_STOPS}
        for name in ("low", "high"):
            if known.get(name, "0") not in stops:
                del known[name]
        if known.get("by", "token") not in ("token", "class", "words"):
            del known["by"]
        return cls(**known)  # type: ignore[arg-type]


class Listing(NamedTuple):
    """The features of a `Browse`, in order."""

    features: Int[np.ndarray, " n"]
    score: Float[np.ndarray, " n"] | None
    """Match score of a search by token or class, in [0, 1]."""
    note: str
    """What the search looked up, in words; empty when there is nothing to say."""


def list_features(index: FeatureIndex, browse: Browse) -> Listing:
    """All features that pass the search and the filters of `browse`, in its order; ties are in order of id."""
    chosen = np.ones(index.d_sae, dtype=bool)
    score: Float[np.ndarray, " d_sae"] | None = None
    note = ""
    if browse.q.strip():
        if browse.by == "words":
            chosen = _matching_words(index, browse.q)
        else:
            score, note = _search(index, browse)
            chosen = score > 0
    density = np.asarray(index.stats["density"])
    stops = dict(DENSITY_STOPS)
    chosen &= (density >= stops[browse.low]) & (density <= stops[browse.high])
    if browse.alive:
        chosen &= ~np.asarray(index.stats["is_dead"], dtype=bool)
    if browse.annotated:
        annotated = np.zeros(index.d_sae, dtype=bool)
        annotated[list(index.annotations.all())] = True
        chosen &= annotated
    features = np.flatnonzero(chosen)
    features = features[_order(index, features, browse, score)]
    return Listing(features, None if score is None else score[features], note)


def sort_columns(index: FeatureIndex) -> dict[str, str]:
    """What a list can be sorted by: the word that people read (and addresses hold) -> the statistics column.

    `best` is the match score while searching and `promise` otherwise; `number` and `label` are no statistics.
    """
    entropy = entropy_column(index)
    return {
        "best": "",
        "density": "density",
        "max": "max",
        "mean": "mean",
        **({"entropy": entropy} if entropy else {}),
        "nearest": "nearest_cosine",
        "number": "",
        "label": "",
    }


def promise(index: FeatureIndex) -> Float[np.ndarray, " d_sae"]:
    """How likely a feature is to make sense at once; only the order means something. Dead features have -inf.

    In favour: strong activations, a low entropy over tokens, one class, a direction of its own, a density between too
    few examples and everywhere, a dozen documents at least, a top token that is a rare word. Against: what attention
    sinks look like, that is a peak far above the median, and always the same positions.
    """
    stats = {name: np.asarray(column, dtype=np.float64) for name, column in index.stats.items()}
    density = stats["density"]
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.clip(np.log(stats["q90"] / np.nanmedian(np.append(stats["q90"], 1.0))), -2, 1.5)
        outlier = np.log(stats["max"] / stats["q50"])
        rare = np.log10(max(30 / max(index.n_rows, 1), 1e-5) / density)
        dense = np.log10(density / 0.01)
        few = np.log2(min(12, index.n_examples) / stats["n_documents"])
        # The lift of a class of one document has no bound.
        lift = np.log(stats["top_label_lift"]).clip(max=3) if "top_label_lift" in stats else np.zeros(index.d_sae)
    penalties = [
        2 * np.maximum(0, outlier - 2),
        3 * np.maximum(0, rare),
        3 * np.maximum(0, dense),
        np.maximum(0, few),
        0.25 * stats.get("token_entropy", np.zeros(index.d_sae)),
        np.clip(stats["nearest_cosine"], 0, 1),
    ]
    if index.kind == "text":
        # Images have no reading order: a feature of one corner is a fine feature.
        penalties.append(2 * np.maximum(0, np.abs(stats["position_bias"]) - 0.7))
        penalties.append(_plainness(index))
    score = np.nan_to_num(strength) + 0.4 * np.nan_to_num(lift) - np.nan_to_num(sum(penalties), posinf=9.0)
    return np.where(density > 0, score, -np.inf)


def _plainness(index: FeatureIndex) -> Float[np.ndarray, " d_sae"]:
    """How little a feature's top token says: 2 for what is no word, up to 2 more for what the texts are full of."""
    tokens, which = np.unique(index.stats["top_token"], return_inverse=True)
    counts = np.diff(index.array("tokens/offsets"))
    plain = np.zeros(len(tokens))
    for i, token in enumerate(tokens.tolist()):
        if token < 0 or index.examples.vocabulary is None:
            continue
        n_letters = sum(map(str.isalpha, index.examples.token_text(token)))
        plain[i] = 2.0 * (n_letters < 4) + min(2.0, 500 * counts[token] / index.n_rows)
    return plain[which]


def entropy_column(index: FeatureIndex) -> str | None:
    """The column that says how many different things a feature fires on: by token for text, by class for images."""
    return next((key for key in ("token_entropy", "label_entropy") if key in index.stats), None)


def _order(
    index: FeatureIndex, features: Int[np.ndarray, " n"], browse: Browse, score: Float[np.ndarray, " d_sae"] | None
) -> Int[np.ndarray, " n"]:
    key = browse.sort
    columns = sort_columns(index)
    if key not in columns or key == "best":
        column = (promise(index) if score is None else score)[features]
    elif key == "number":
        column = features
    elif key == "label":
        names = {feature: note.label for feature, note in index.annotations.all().items() if note.label}
        named = [feature for feature in features.tolist() if feature in names]
        by_name = sorted(named, key=lambda feature: names[feature].casefold(), reverse=not browse.ascending)
        place = {feature: i for i, feature in enumerate(by_name)}
        # Features without a label come last whichever way the labels are sorted.
        return np.argsort([place.get(feature, len(place)) for feature in features.tolist()], kind="stable")
    else:
        column = np.asarray(index.stats[columns[key]])[features].astype(np.float64)
    column = column.astype(np.float64)
    if not browse.ascending:
        column = -column
    return np.argsort(np.where(np.isnan(column), np.inf, column), kind="stable")


def _search(index: FeatureIndex, browse: Browse) -> tuple[Float[np.ndarray, " d_sae"], str]:
    score = np.zeros(index.d_sae)
    if browse.by == "class":
        wanted = browse.q.strip().casefold()
        names = [name for name in index.label_names if wanted in name.casefold()]
        exact = [name for name in names if name.casefold() == wanted]
        names = exact or names
        found = [index.features_of_label(name, n=MATCHES_PER_KEY) for name in names[:MAX_TOKENS]]
        note = (
            f"Classes: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else "No class has this name."
        )
    else:
        tokens = index.search_tokens(browse.q) if index.kind == "text" else []
        wanted = browse.q.casefold()
        strings = {token: index.examples.token_text(token) for token in tokens}
        # "bank" also means " bank"; a space typed on purpose means itself.
        shape = str.casefold if wanted != wanted.strip() else lambda text: text.strip().casefold()
        exact_tokens = [token for token in tokens if shape(strings[token]) == shape(browse.q)]
        looked_up = (exact_tokens or tokens)[:MAX_TOKENS]
        found = [index.features_of_token(token, n=MATCHES_PER_KEY) for token in looked_up]
        shown = ", ".join(f"“{strings[token]}”" for token in looked_up[:8])
        more = f" and {len(looked_up) - 8} more" if len(looked_up) > 8 else ""
        note = f"Tokens: {shown}{more}" if looked_up else "No token of the indexed texts contains this."
    for matches in found:
        np.maximum.at(score, np.asarray(matches.features, dtype=np.int64), np.asarray(matches.score, dtype=np.float64))
    return score, note


def _matching_words(index: FeatureIndex, q: str) -> np.ndarray:
    chosen = np.zeros(index.d_sae, dtype=bool)
    wanted = q.strip().casefold()
    if wanted.isdecimal() and len(wanted) < 10 and int(wanted) < index.d_sae:
        chosen[int(wanted)] = True
    chosen[index.annotations.search(q)] = True
    return chosen
