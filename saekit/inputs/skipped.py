"""The count of what could not be read, and why: one bad file among many stops nothing and is not forgotten."""

from collections.abc import Mapping
from typing import Any

N_FIRST = 20


class SkipLog:
    """Inputs that were left out: their number, the number for each reason, and the first 20 by name."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}
        self.first: list[tuple[str, str]] = []

    @property
    def count(self) -> int:
        return sum(self.reasons.values())

    def add(self, id: str, reason: str) -> None:
        """Count input `id`. `reason` is a short phrase that many inputs share, such as "not valid UTF-8"."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if len(self.first) < N_FIRST:
            self.first.append((id, reason))

    def merge(self, other: "SkipLog") -> None:
        """Add what `other` holds, as if it had been added here after what is here."""
        for reason, n in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + n
        self.first = [*self.first, *other.first][:N_FIRST]

    def take(self) -> "SkipLog":
        """Move everything into a new log and leave this one empty."""
        taken = SkipLog()
        taken.reasons, taken.first = self.reasons, self.first
        self.reasons, self.first = {}, []
        return taken

    def to_json(self) -> dict[str, Any]:
        """`{"count", "reasons": {reason: n}, "first": [[id, reason] ...]}`."""
        return {
            "count": self.count,
            "reasons": dict(sorted(self.reasons.items())),
            "first": [[id, reason] for id, reason in self.first],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SkipLog":
        """The inverse of `to_json`."""
        log = cls()
        log.reasons = {str(reason): int(n) for reason, n in data["reasons"].items()}
        log.first = [(str(id), str(reason)) for id, reason in data["first"]]
        return log

    def __repr__(self) -> str:
        return f"SkipLog(count={self.count}, reasons={self.reasons})"
