"""What to do to a feature: the words of the page, and the numbers behind them. No torch."""

from dataclasses import dataclass

VERBS = {"ablate": "Switch off", "multiply": "Multiply by", "set": "Set to", "add": "Add"}
"""What a person chooses, by the word in the address. `set` and `add` count in the feature's highest activation."""


@dataclass(frozen=True)
class Change:
    """A verb and its amount."""

    verb: str
    """One of `VERBS`."""
    amount: float = 0.0
    """Factor of `multiply`; activation of `set` and `add`."""
