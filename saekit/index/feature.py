"""Feature: one latent as a person at a notebook sees it."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.index.annotations import Annotation
from saekit.index.results import FeatureExample

if TYPE_CHECKING:
    from saekit.index.reader import FeatureIndex

_N_CONTEXT = 12
_THUMBNAIL_PIXELS = 96


class ExampleList(list[FeatureExample]):
    """Examples that print as one line each: the activation, then the text around the marked peak token."""

    def __init__(self, index: "FeatureIndex", examples: Iterable[FeatureExample]) -> None:
        super().__init__(examples)
        self._index = index

    def __repr__(self) -> str:
        if not self:
            return "(no examples)"
        return "\n".join(
            f"{example.value:10.4g}  {before}[[{peak}]]{after}"
            for example, (before, peak, after) in ((each, snippet(self._index, each)) for each in self)
        )

    def _repr_html_(self) -> str:
        return f"<table>{''.join(self._row(example) for example in self)}</table>"

    def _row(self, example: FeatureExample) -> str:
        before, peak, after = (escape(part) for part in snippet(self._index, example))
        picture = ""
        if self._index.kind == "image":
            from base64 import b64encode

            data = b64encode(self._index.examples.thumbnail(example.example)).decode()
            alt = escape(f"{self._index.examples[example.example].document}, peak {peak}", quote=True)
            picture = f'<img src="data:image/webp;base64,{data}" width="{_THUMBNAIL_PIXELS}" alt="{alt}"> '
        return (
            f'<tr><td>{example.value:.4g}</td><td style="text-align:left">{picture}{before}<mark>{peak}</mark>{after}'
            "</td></tr>"
        )


class Feature:
    """One latent: its statistics, its examples, what people call it."""

    def __init__(self, index: "FeatureIndex", feature: int) -> None:
        self.index = index
        self.id = feature

    @property
    def stats(self) -> dict[str, Any]:
        """This feature's row of the statistics table, as Python numbers."""
        return {name: column[self.id].item() for name, column in self.index.stats.items()}

    @property
    def annotation(self) -> Annotation:
        """What people said about it."""
        return self.index.annotations.get(self.id)

    def top_examples(self, n: int = 5) -> ExampleList:
        """The `n` documents with the highest activation, each at its peak."""
        return ExampleList(self.index, self.index.top_examples(self.id, n))

    def quantile_examples(self, n_bands: int = 5, per_band: int = 1) -> ExampleList:
        """Examples from equal-count bands of the active values, highest band first."""
        return ExampleList(self.index, self.index.quantile_examples(self.id, n_bands, per_band))

    def random_examples(self, n: int = 5, seed: int = 0) -> ExampleList:
        """Documents drawn uniformly from those where it fires."""
        return ExampleList(self.index, self.index.random_examples(self.id, n, seed))

    def __repr__(self) -> str:
        return "\n".join([self._title(), *(f"  {name}: {text}" for name, text in self._lines())])

    def _repr_html_(self) -> str:
        lines = "".join(f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in self._lines())
        return f"<div><b>{escape(self._title())}</b><ul>{lines}</ul>{self.top_examples(5)._repr_html_()}</div>"

    def _title(self) -> str:
        stats = self.stats
        if stats["is_dead"]:
            return f"Feature {self.id}: dead (never fires on the {self.index.n_rows:,} rows of this index)"
        return (
            f"Feature {self.id}: fires on {stats['density']:.3%} of rows ({stats['n_active']:,} in "
            f"{stats['n_documents']:,} documents), max {stats['max']:.4g}, median {stats['q50']:.4g}"
        )

    def _lines(self) -> list[tuple[str, str]]:
        lines = []
        annotation = self.annotation
        if annotation.label:
            lines.append(("label", annotation.label))
        if annotation.tags:
            lines.append(("tags", ", ".join(annotation.tags)))
        if self.index.has("tokens/of_row") and not self.stats["is_dead"]:
            top = self.index.top_tokens(self.id, 5)
            lines.append(("fires on", ", ".join(f"{self._token(each.token)} {each.share:.0%}" for each in top)))
        lens = self.index.logits(self.id)
        if lens is not None:
            lines.append(("promotes", " ".join(self._token(int(token)) for token in lens.promoted[:8])))
            lines.append(("suppresses", " ".join(self._token(int(token)) for token in lens.suppressed[:8])))
        lifts = (self.index.label_lift(self.id) or [])[:3]
        if lifts:
            lines.append(("labels", ", ".join(f"{each.label} {each.share:.0%} ({each.lift:.1f}x)" for each in lifts)))
        if self.index.has("neighbours/features"):
            near = self.index.neighbours(self.id, 5)
            pairs = zip(near.features.tolist(), near.cosines.tolist(), strict=True)
            lines.append(("nearest", ", ".join(f"{feature} ({cosine:.2f})" for feature, cosine in pairs)))
        return lines

    def _token(self, token: int) -> str:
        return repr(self.index.examples.token_text(token))


def snippet(index: "FeatureIndex", example: FeatureExample, n_context: int = _N_CONTEXT) -> tuple[str, str, str]:
    """Text before, at and after an example's token (line breaks as ⏎); for images the document, patch and label."""
    if index.kind == "image":
        found = index.examples[example.example]
        geometry = index.examples.geometry(example.example)
        at = example.position - index.examples.layout.n_prefix
        row, column = divmod(at, geometry.grid[1])
        label = f" ({found.label})" if found.label else ""
        place = f"patch row {row}, column {column}" if at >= 0 else index.examples.layout.prefix[example.position]
        return f"{found.document}{label}: ", place, ""
    tokens = np.asarray(index.examples.token_ids(example.example))
    at = example.position
    start, stop = max(at - n_context, 0), min(at + n_context + 1, len(tokens))
    before = _text(index, tokens[start:at].tolist())
    after = _text(index, tokens[at + 1 : stop].tolist())
    peak = index.examples.token_text(int(tokens[at])).replace("\n", "⏎")
    return ("…" if start else "") + before, peak, after + ("…" if stop < len(tokens) else "")


def _text(index: "FeatureIndex", tokens: list[int]) -> str:
    vocabulary = index.examples.vocabulary
    if vocabulary is None:
        return " ".join(str(token) for token in tokens)
    # Joined before decoding: one character may be spread over several byte-level tokens.
    text = b"".join(vocabulary[token] for token in tokens).decode("utf-8", "replace")
    return text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\r", "⏎")
