"""`ShuffledRows`: shuffled batches of a tensor that fits in memory, for `fit`."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.errors import ConfigError
from saekit.files import Json


class ShuffledRows:
    """The rows of `x` in a new seeded order in each epoch; a run on them can be resumed.

    With `weights` an epoch is as many rows, drawn with replacement in proportion to them: what is trained is then the
    expected loss under the distribution that the weights describe, as (w * nll(x)).sum() / w.sum() measures it.
    """

    def __init__(
        self,
        x: Float[Tensor, "n d_in"],
        batch_size: int,
        n_epochs: int | float = 1,
        seed: int = 0,
        weights: Float[Tensor, " n"] | None = None,
    ) -> None:
        """`n_epochs` may be a fraction: the last epoch then ends early. Raises `ConfigError`."""
        if batch_size < 1 or n_epochs <= 0 or len(x) < 1:
            raise ConfigError(
                f"ShuffledRows of {len(x)} rows with batch_size={batch_size}, n_epochs={n_epochs}: all are above 0."
            )
        if weights is not None and not (bool((weights >= 0).all()) and 0 < float(weights.sum()) < float("inf")):
            raise ConfigError("ShuffledRows.weights are finite, none below 0, and not all 0.")
        self.x, self.batch_size, self.seed = x, batch_size, seed
        self.weights = None if weights is None else weights.detach().double().cpu()
        self.n_tokens = max(1, round(n_epochs * len(x)))
        """Rows of all epochs together."""
        self._n_taken = 0

    def __iter__(self) -> Iterator[Tensor]:
        n_batches = -(-len(self.x) // self.batch_size)
        while True:
            epoch, first = divmod(self._n_taken, n_batches)
            generator = torch.Generator().manual_seed(hash((self.seed, epoch)) % 2**63)
            order = self._order(generator).to(self.x.device)
            for batch in order.split(self.batch_size)[first:]:
                self._n_taken += 1
                yield self.x[batch]

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.weights is None:
            return torch.randperm(len(self.x), generator=generator)
        return torch.multinomial(self.weights, len(self.x), replacement=True, generator=generator)

    def state_dict(self) -> Json:
        """Where the stream is: the next batch is the first one not yet handed out."""
        return {"n_taken": self._n_taken}

    def load_state_dict(self, state: Json) -> None:
        """Go on from `state_dict()`."""
        self._n_taken = state["n_taken"]
