"""Windows of a model's context cut out of documents, and which of their tokens are kept."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from saekit.backbones.options import TextWindows
from saekit.inputs import Document
from saekit.store.examples import Example


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a model's windows look, with its token ids."""

    options: TextWindows
    front: Int32[np.ndarray, " n_front"]
    """Put before the tokens of every window."""
    back: Int32[np.ndarray, " n_back"]
    """Put after them."""
    special: Int32[np.ndarray, " n_special"]
    """Ids that `drop_special` drops."""

    def cut(self, document: Document, ids: list[int]) -> list[Example]:
        """The windows of a document's tokens, in order, without overlap; those that are too short are left out."""
        n_content = self.options.context_size - len(self.front) - len(self.back)
        return [
            example
            for start in range(0, len(ids), n_content)
            if (example := self._window(document, ids[start : start + n_content], start)) is not None
        ]

    def _window(self, document: Document, content: list[int], start: int) -> Example | None:
        if len(content) < self.options.min_tokens:
            return None
        window = np.concatenate([self.front, np.array(content, dtype=np.int32), self.back])
        kept = np.arange(self.options.drop_first, len(window), dtype=np.int32)
        if self.options.drop_special:
            kept = kept[~np.isin(window[kept], self.special)]
        if not len(kept):
            return None
        return Example(document=document.id, label=document.label, token_ids=window, start=start, kept=kept)


def why_unreadable(text: str) -> str | None:
    """Why a text cannot be tokenized, or None."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return "not valid Unicode"
    return None if text.strip() else "no text"
