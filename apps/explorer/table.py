"""The table of features: its columns, its rows, and the whole list as CSV. Pure, NumPy only."""

import csv
import io

import numpy as np
from jaxtyping import Float, Int

from saekit.index import FeatureIndex
from saekit_explorer.browse import Listing, entropy_column
from saekit_explorer.widgets import Json, described, finite, top_string, unit_name


def table_rows(
    index: FeatureIndex, features: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"] | None
) -> list[Json]:
    """Rows of the Features table."""
    rows = []
    entropy = entropy_column(index)
    for i, feature in enumerate(features.tolist()):
        annotation = index.annotations.get(feature)
        rows.append(
            {
                **described(index, feature),
                "dead": bool(index.stats["is_dead"][feature]),
                "density": finite(index.stats["density"][feature]),
                "max": finite(index.stats["max"][feature]),
                "mean": finite(index.stats["mean"][feature]),
                "entropy": finite(index.stats[entropy][feature]) if entropy else None,
                "nearest": finite(index.stats["nearest_cosine"][feature]),
                "best": None if score is None else finite(score[i]),
                "tags": list(annotation.tags),
                "note": annotation.note,
            }
        )
    return rows


def table_columns(index: FeatureIndex, is_search: bool) -> list[tuple[str, str, str, bool]]:
    """Columns of the Features table: key, title, help, whether its title sorts."""
    unit = unit_name(index)
    entropy = entropy_column(index)
    columns = [
        ("number", "Feature", "number of the feature", True),
        (
            "label",
            "Label",
            f"your label; without one, the {'token' if unit == 'token' else 'class'} it fires on most",
            True,
        ),
        ("best", "Match", "how well firing agrees with what you search for, 0 to 1", True),
        ("density", "Density", f"share of {unit}es on which it fires".replace("tokenes", "tokens"), True),
        ("max", "Max", "highest activation", True),
        ("mean", "Mean", "mean of the active values", True),
        ("entropy", "Entropy", "bits; 0 when it always fires on the same thing", True),
        ("nearest", "Nearest", "cosine with the most similar feature's decoder direction", True),
        ("tags", "Tags", "your tags", False),
        ("note", "Note", "your note", False),
    ]
    written = index.annotations.all().values()
    dropped = {
        "best": not is_search,
        "entropy": entropy is None,
        "tags": not any(each.tags for each in written),
        "note": not any(each.note for each in written),
    }
    return [column for column in columns if not dropped.get(column[0])]


def to_csv(index: FeatureIndex, listing: Listing) -> str:
    """The whole list as CSV. A cell that a spreadsheet would take for a formula gets an apostrophe in front."""
    entropy = entropy_column(index)
    names = ["density", "n_active", "max", "mean", *([entropy] if entropy else []), "nearest_cosine", "nearest_feature"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["feature", "label", "fires_on", *names, "tags", "note"])
    for feature in listing.features.tolist():
        annotation = index.annotations.get(feature)
        numbers = [index.stats[name][feature] for name in names]
        words = [annotation.label, top_string(index, feature), ";".join(annotation.tags), annotation.note]
        label, fires_on, tags, note = (
            f"'{word}" if word[:1] in ("=", "+", "-", "@", "\t", "\r") else word for word in words
        )
        writer.writerow([feature, label, fires_on, *(f"{number:.6g}" for number in numbers), tags, note])
    return text.getvalue()
