"""Training steps on a GPU by Triton's kernels: when they are taken, how much room they get, and how many may be dead.

All of that is decided on the host from counts that are some steps old (`lagged`), so that no step waits for the device.
"""

from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.errors import ConfigError
from saekit.kernels.entries import DenseEntries, Entries
from saekit.kernels.lagged import LAG, Lagged
from saekit.kernels.types import Step, Weights

MAX_DENSITY = 0.02
"""Share of active entries above which dense products are expected to be the faster ones on a GPU; see `make gpu`."""
_ROOM = 2
"""Room for entries, as a multiple of those at `MAX_DENSITY`."""
_SAFE = 4
"""With fewer than 1 / `_SAFE` of the room taken some steps ago, this step is not asked how much it takes."""


def is_available() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


class GpuSteps:
    """Chooses between dense and sparse entries on a GPU."""

    def __init__(self, max_density: float = MAX_DENSITY) -> None:
        self.max_density = max_density
        self._found, self._soon_dead = Lagged(), Lagged()
        self._n_tokens = 0

    def watch_dead(self, tokens_since_fired: Int[Tensor, " d_sae"], dead_after: int, n_rows: int) -> None:
        """Note before a step of `n_rows` rows how many latents may be dead by the time this is read."""
        margin = (LAG + 1) * n_rows
        if self._soon_dead.read() is None:
            margin *= 2
        self._soon_dead.note((tokens_since_fired >= dead_after - margin).sum(), self._n_tokens + margin)
        self._n_tokens += n_rows

    def n_dead_at_most(self, d_sae: int) -> int:
        """A bound on the number of dead latents now: 0 or a power of two or `d_sae`."""
        note = self._soon_dead.read()
        if note is None or note.context < self._n_tokens:
            return d_sae
        return min(d_sae, 1 << (note.value - 1).bit_length()) if note.value else 0

    def density(self, n_rows: int, d_sae: int) -> float | None:
        """Share of active entries some steps ago, if it is known; `ConfigError` if there was no room for them."""
        note = self._found.read()
        if note is None:
            return None
        if 0 < note.context < note.value:
            raise ConfigError(
                f"{note.value} latents were active at once in a batch, {note.value / note.context:.0f} times what the "
                "sparse step had room for after the batches before; the loss of that batch was NaN. "
                "Type: kernel='dense'"
            )
        return note.value / (n_rows * d_sae)

    def entries_above(
        self, x: Float[Tensor, "batch d_in"], weights: Weights, floors: Float[Tensor, " d_sae"], forced: bool
    ) -> Entries:
        """The pre-activations above their latent's floor, sparse where few were some steps ago, else all."""
        n_rows, d_sae = len(x), len(weights.b_enc)
        density = self.density(n_rows, d_sae)
        if not forced and (density is None or density > self.max_density):
            dense = DenseEntries(x, weights)
            self._found.note((dense.pre_acts.detach() > floors).sum())
            return dense
        from saekit.kernels.triton_entries import TritonEntries

        capacity = max(1024, int(_ROOM * self.max_density * n_rows * d_sae))
        matrix = pre_activations(x, weights)
        if forced or density is None or density * n_rows * d_sae * _SAFE > capacity:
            # Close to the limit it is worth waiting for the count.
            n_found = int((matrix > floors).sum())
            if n_found > capacity and not forced:
                self._found.note(torch.tensor(n_found))
                return DenseEntries(x, weights)
            capacity = max(capacity, n_found)
        sparse = TritonEntries.above(x, weights, matrix, floors, capacity, self.n_dead_at_most(d_sae))
        self._found.note(sparse.n_found, capacity)
        return sparse

    def largest_of_rows(self, x: Float[Tensor, "batch d_in"], weights: Weights, k: int) -> Entries:
        """The k largest pre-activations of each row."""
        from saekit.kernels.triton_entries import TritonEntries

        n_dead = self.n_dead_at_most(len(weights.b_enc))
        return TritonEntries.largest_of_rows(x, weights, pre_activations(x, weights), k, n_dead)

    def largest_of_batch(self, x: Float[Tensor, "batch d_in"], weights: Weights, n: int) -> Entries:
        """The n largest pre-activations of the batch."""
        from saekit.kernels.triton_entries import TritonEntries

        n_dead = self.n_dead_at_most(len(weights.b_enc))
        return TritonEntries.largest_of_batch(x, weights, pre_activations(x, weights), n, n_dead)


def relu_step(entries: Entries, weigh_by_decoder: bool) -> Step:
    """`reference.relu_step` from the entries above 0."""
    latents = entries.pre_acts.relu()
    decoded = entries.decode(latents, with_norms=weigh_by_decoder)
    weighted = latents * entries.per_entry(decoded.norms) if weigh_by_decoder else latents
    return entries.step(decoded, entries.mean_sum(weighted), latents)


def step_with_auxk(entries: Entries, n: int, k_aux: int, is_dead: Tensor) -> Step:
    """`reference.topk_step` or `reference.batch_topk_step` from the n entries that are kept."""
    latents = entries.largest(n)
    decoded = entries.decode(latents)
    return entries.step(decoded, entries.auxk(decoded.x_hat, k_aux, is_dead), latents)


@torch.no_grad()
def pre_activations(x: Float[Tensor, "batch d_in"], weights: Weights) -> Float[Tensor, "batch d_sae"]:
    """The one dense product of a sparse step, in the precision that autocast and the matmul setting ask for."""
    return torch.addmm(weights.b_enc, x - weights.b_dec, weights.W_enc_T.T)
