"""FeatureIndex: opens an index with NumPy alone and answers what every latent fires on."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Integer, Shaped

from saekit.errors import FeatureIndexError
from saekit.files import hash_file, read_meta
from saekit.index import matches, queries
from saekit.index.annotations import Annotations
from saekit.index.firings import Firings, FiringsCache
from saekit.index.format import EXAMPLES, KIND, PARTIAL, SCHEMA, map_array, unpack_values
from saekit.index.results import (
    Activations,
    Coactivation,
    FeatureExample,
    FeatureMatches,
    LabelLift,
    LogitLens,
    Neighbours,
    TokenShare,
)
from saekit.store.examples import ExampleTable

if TYPE_CHECKING:
    from saekit.index.feature import Feature


META_KEYS = ("d_sae", "n_rows", "n_codes", "value_exponent", "arrays", "files")


class FeatureIndex:
    """What each of `d_sae` latents fires on over the `n_rows` rows of a store, memory-mapped.

    `index[17]` is a `Feature` for people; the methods below are for programs. Every method that takes a feature
    raises `FeatureIndexError` when there is no such feature. Safe to share between threads.
    """

    def __init__(self, path: str | Path, meta: dict[str, Any]) -> None:
        self.path = Path(path)
        self.meta = meta
        self.d_sae: int = meta["d_sae"]
        self.n_rows: int = meta["n_rows"]
        self.n_codes: int = meta["n_codes"]
        self.value_exponent: int = meta["value_exponent"]
        self._arrays: dict[str, np.ndarray] = {
            name: map_array(self.path, name) for name in meta["arrays"] if not name.startswith("statistics/")
        }
        self.examples = ExampleTable.open(self.path / EXAMPLES)
        """The examples that the rows come from: tokens, labels, documents, thumbnails."""
        self.kind = self.examples.kind
        """`"text"` or `"image"`."""
        self.n_examples = len(self.examples)
        self.row_example: Integer[np.ndarray, " n_rows"] = self.examples.row_example.view(np.ndarray)
        self.row_position: Integer[np.ndarray, " n_rows"] = self.examples.row_position.view(np.ndarray)
        self._firings = FiringsCache()

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> "FeatureIndex":
        """Open an index; `verify` also reads every byte and compares it with the recorded hashes.

        Raises `FeatureIndexError` that lists every missing, truncated or (with `verify`) altered file.
        """
        path = Path(path)
        if not (path / "meta.json").exists() and (path / PARTIAL).is_dir():
            raise FeatureIndexError(f"{path} is an unfinished index. Run the `saekit index` that began it again.")
        meta = read_meta(path, KIND, SCHEMA, FeatureIndexError, keys=META_KEYS)
        _check_files(path, meta["files"], verify)
        return cls(path, meta)

    @cached_property
    def stats(self) -> dict[str, Shaped[np.ndarray, " d_sae"]]:
        """Columns of the statistics table [d_sae], defined in `saekit.index.statistics` and docs/formats.md."""
        names = [name for name in self.meta["arrays"] if name.startswith("statistics/")]
        return {name.removeprefix("statistics/"): map_array(self.path, name) for name in names}

    @property
    def annotations_path(self) -> Path:
        """The file with people's labels, tags and notes; absent until the first one is written."""
        return self.path / "annotations.jsonl"

    @cached_property
    def annotations(self) -> Annotations:
        """People's labels, tags and notes about features."""
        return Annotations(self.path)

    def __len__(self) -> int:
        return self.d_sae

    def __getitem__(self, feature: int) -> "Feature":
        from saekit.index.feature import Feature

        return Feature(self, self.check(feature))

    def __iter__(self) -> Iterator["Feature"]:
        return (self[feature] for feature in range(self.d_sae))

    def __repr__(self) -> str:
        return (
            f"FeatureIndex({str(self.path)!r}: {self.d_sae:,} features over {self.n_rows:,} rows of "
            f"{self.n_examples:,} {self.kind} examples, L0 {self.n_codes / max(self.n_rows, 1):.1f})"
        )

    def check(self, feature: int) -> int:
        """`feature` as an int, or `FeatureIndexError` naming the range."""
        if not isinstance(feature, (int, np.integer)):
            raise FeatureIndexError(
                f"{feature!r} is no feature number. By what they fire on: index.features_of_token("
                "index.search_tokens(text)[0]), index.features_of_label(label)."
            )
        if not 0 <= feature < self.d_sae:
            raise FeatureIndexError(f"There is no feature {feature}; {self.path} has features 0 to {self.d_sae - 1}.")
        return int(feature)

    def has(self, name: str) -> bool:
        """Whether the index has the optional array `name`, e.g. `"logits/promoted"`."""
        return name in self._arrays

    def array(self, name: str) -> Shaped[np.ndarray, "..."]:
        """One of the index's memory-mapped arrays by its name in docs/formats.md, e.g. `"by_feature/offsets"`."""
        try:
            return self._arrays[name]
        except KeyError:
            raise FeatureIndexError(f"{self.path} was built without {name!r}.") from None

    def unpack(self, packed: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """float32 activations of stored fp16 ones."""
        return unpack_values(packed, self.value_exponent)

    def firings(self, feature: int) -> Firings:
        """`activations` with the example and document of every row and the values in order; the last few are kept."""
        return self._firings.get(self, self.check(feature))

    def activations(self, feature: int) -> Activations:
        """Rows on which `feature` is active, ascending, and its float32 activations there."""
        feature = self.check(feature)
        start, stop = (int(at) for at in self.array("by_feature/offsets")[feature : feature + 2])
        values = self.unpack(self.array("by_feature/values")[start:stop])
        return Activations(np.asarray(self.array("by_feature/rows")[start:stop]), values)

    def latents_of_row(self, row: int) -> tuple[Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Features active on `row`, ascending, and their activations."""
        if not 0 <= row < self.n_rows:
            raise FeatureIndexError(f"There is no row {row}; {self.path} has rows 0 to {self.n_rows - 1}.")
        start, stop = (int(at) for at in self.array("by_row/offsets")[row : row + 2])
        return self.array("by_row/features")[start:stop], self.unpack(self.array("by_row/values")[start:stop])

    def rows_of_example(self, example: int) -> range:
        """The rows of an example, in order of position."""
        if not 0 <= example < self.n_examples:
            raise FeatureIndexError(f"There is no example {example}; {self.path} has 0 to {self.n_examples - 1}.")
        start, stop = (int(at) for at in self.examples.row_offsets[example : example + 2])
        return range(start, stop)

    def latents_of_example(
        self, example: int
    ) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Rows (int64), features and activations of every code of an example, by row then feature."""
        rows = self.rows_of_example(example)
        offsets = self.array("by_row/offsets")[rows.start : rows.stop + 1]
        codes = slice(int(offsets[0]), int(offsets[-1]))
        of_row = np.repeat(np.arange(rows.start, rows.stop), np.diff(offsets))
        return of_row, self.array("by_row/features")[codes], self.unpack(self.array("by_row/values")[codes])

    def top_examples(self, feature: int, n: int = 20) -> list[FeatureExample]:
        """The `n` documents with the highest activation, each once at its peak, highest first."""
        return queries.top_examples(self, self.firings(feature), n)

    def quantile_examples(self, feature: int, n_bands: int = 5, per_band: int = 5) -> list[FeatureExample]:
        """Up to `per_band` examples from each of `n_bands` equal-count bands of the ACTIVE values, highest band first.

        `FeatureExample.band` tells the band; its edges are true quantiles of the active values. Each example is shown
        at a token whose value lies in its band: a document's peak where enough documents peak there, else its strongest
        token in the band. No document appears twice. A band without enough further documents is shorter.
        """
        return queries.quantile_examples(self, self.firings(feature), n_bands, per_band)

    def random_examples(self, feature: int, n: int = 20, seed: int = 0) -> list[FeatureExample]:
        """`n` documents drawn uniformly, without replacement, from those where the feature fires, at their peaks."""
        return queries.random_examples(self, self.firings(feature), n, seed)

    def histogram(
        self, feature: int, n_bins: int = 50
    ) -> tuple[Float[np.ndarray, " n_edges"], Integer[np.ndarray, " n_bins"]]:
        """Edges [n_bins+1] of equal-width bins from 0 to the largest value, and counts of active values."""
        return queries.histogram(self.firings(feature), n_bins)

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """Levels of `quantiles`."""
        return tuple(self.meta["quantile_levels"])

    def quantiles(self, feature: int) -> Float[np.ndarray, " n_levels"]:
        """Quantiles of the active values at `quantile_levels`, linearly interpolated; NaN for a dead feature."""
        return self.array("quantiles")[self.check(feature)]

    def neighbours(self, feature: int, n: int = 10) -> Neighbours:
        """The features whose decoder rows have the highest cosine with this one's (at most those stored)."""
        feature = self.check(feature)
        return Neighbours(self.array("neighbours/features")[feature, :n], self.array("neighbours/cosines")[feature, :n])

    def coactivating(self, feature: int, n: int = 10) -> Coactivation:
        """The features that fire on the same rows, by Jaccard index.

        A feature that fires on more than `queries.MAX_COACTIVATION_ROWS` rows is judged by that many of its rows,
        evenly spaced; the counts are scaled up, `n_sampled` says how many were looked at.
        """
        return queries.coactivating(self, self.activations(feature), self.check(feature), n)

    def logits(self, feature: int) -> LogitLens | None:
        """Tokens whose logits the feature's decoder row raises and lowers most; None without a logit lens."""
        feature = self.check(feature)
        if not self.has("logits/promoted"):
            return None
        names = ("promoted", "promoted_values", "suppressed", "suppressed_values")
        return LogitLens(*(self.array(f"logits/{name}")[feature] for name in names))

    @property
    def label_names(self) -> list[str]:
        """Labels of the examples; empty when they have none."""
        return self.examples.label_names

    def label_lift(self, feature: int) -> list[LabelLift] | None:
        """Every label on which the feature fires, largest share of its activation first; None without labels."""
        return matches.label_lift(self, self.check(feature))

    def features_of_label(self, label: str | int, n: int = 50) -> FeatureMatches:
        """Features that fire on documents of one label and little else. `label`: a name or its index."""
        return matches.features_of_label(self, label, n)

    def features_of_token(self, token: int, n: int = 50) -> FeatureMatches:
        """Features that fire on one token id and little else.

        A token with more than `matches.MAX_TOKEN_ROWS` rows is judged by that many of them, evenly spaced.
        """
        return matches.features_of_token(self, token, n)

    def search_tokens(self, text: str) -> list[int]:
        """Token ids that occur in the store and whose string contains `text` (case ignored), most frequent first."""
        return matches.search_tokens(self, text)

    def top_tokens(self, feature: int, n: int = 10) -> list[TokenShare]:
        """The token ids that carry most of the feature's total activation. Texts only."""
        return matches.top_tokens(self, self.activations(feature), n)

    @cached_property
    def token_strings_folded(self) -> list[str]:
        """Readable, case-folded string of every token id (made on first use)."""
        return matches.fold_vocabulary(self)


def _check_files(path: Path, files: dict[str, dict[str, Any]], verify: bool) -> None:
    missing, truncated, altered = [], [], []
    for name, expected in files.items():
        file = path / name
        try:
            size = file.stat().st_size
        except OSError:
            missing.append(name)
            continue
        if size != expected["bytes"]:
            truncated.append(f"{name} (expected {expected['bytes']} bytes, found {size})")
        elif verify and hash_file(file) != expected["hash"]:
            altered.append(name)
    groups = (("Missing", missing), ("Wrong size", truncated), ("Altered", altered))
    if any(names for _, names in groups):
        n_bad = sum(len(names) for _, names in groups)
        listed = " ".join(f"{title}: {', '.join(names)}." for title, names in groups if names)
        raise FeatureIndexError(
            f"{n_bad} of {len(files)} files of {path} are unusable. {listed} Build the index again."
        )
