"""What a reconstruction does to the model behind it: next-token loss and KL, or the final representation of images.

Nothing here knows a backbone: it is handed the forward pass as a function and each intervention as a context manager.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saekit.errors import InputError
from saekit.evaluation.intervals import Interval, bootstrap_ratio
from saekit.metrics import ce_recovered
from saekit.store.examples import Example

Forward = Callable[[Sequence[Example]], Tensor]
Intervention = Callable[[Sequence[Example]], AbstractContextManager[None]]
"""Makes the context in which a forward pass over exactly these examples, in this order, is changed."""

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True, eq=False)
class NextToken:
    """The loss on every prediction, without an intervention (`"clean"`) and with each of several.

    A prediction is a next token, or the class of an image.
    """

    documents: Int[np.ndarray, " n_tokens"]
    """Which document each predicted token belongs to; any integers."""
    cross_entropy: dict[str, Float[np.ndarray, " n_tokens"]]
    """Nats, by name of the intervention; the same tokens in the same order for each."""
    kl: dict[str, Float[np.ndarray, " n_tokens"]]
    """KL(clean || changed) of the next-token distributions, in nats; `"clean"` is zero."""

    @property
    def n_tokens(self) -> int:
        return len(self.documents)

    def mean_cross_entropy(self, name: str) -> float:
        """Mean over predicted tokens, in nats."""
        return float(self.cross_entropy[name].mean(dtype=np.float64))

    def mean_kl(self, name: str) -> float:
        """Mean over predicted tokens, in nats."""
        return float(self.kl[name].mean(dtype=np.float64))

    def kl_quantiles(self, name: str) -> tuple[float, float, float]:
        """Median, 90 % and 99 % quantile of the KL over predicted tokens: a good mean can hide broken tokens."""
        q50, q90, q99 = np.quantile(self.kl[name], [0.5, 0.9, 0.99])
        return float(q50), float(q90), float(q99)

    def increase_quantiles(self, name: str) -> tuple[float, float, float]:
        """Median, 90 % and 99 % quantile over predicted tokens of how much the loss rose; negative where it fell."""
        q50, q90, q99 = np.quantile(self.cross_entropy[name] - self.cross_entropy[CLEAN], [0.5, 0.9, 0.99])
        return float(q50), float(q90), float(q99)

    def kl_interval(self, name: str, *, n_bootstrap: int = 1000, seed: int = 0) -> Interval | None:
        """95 % bootstrap interval of `mean_kl` over documents."""
        _, which, counts = np.unique(self.documents, return_inverse=True, return_counts=True)
        total = np.bincount(which, weights=self.kl[name].astype(np.float64))
        return bootstrap_ratio(total, counts.astype(np.float64), n_replicates=n_bootstrap, seed=seed)

    def recovered(self, name: str, ablated: str) -> float:
        """`ce_recovered` of `name` against the ablation `ablated`."""
        return ce_recovered(
            ce_clean=self.mean_cross_entropy(CLEAN),
            ce_sae=self.mean_cross_entropy(name),
            ce_ablated=self.mean_cross_entropy(ablated),
        )

    def recovered_interval(self, name: str, ablated: str, *, n_bootstrap: int = 1000, seed: int = 0) -> Interval | None:
        """95 % bootstrap interval of `recovered` over documents."""
        _, which = np.unique(self.documents, return_inverse=True)
        clean, changed, worst = (
            np.bincount(which, weights=self.cross_entropy[key].astype(np.float64)) for key in (CLEAN, name, ablated)
        )
        return bootstrap_ratio(worst - changed, worst - clean, n_replicates=n_bootstrap, seed=seed)

    def kl_recovered(self, name: str, ablated: str) -> float:
        """(KL of the ablation - KL) / KL of the ablation: 1 when nothing changed, 0 when as bad as the ablation."""
        worst = self.mean_kl(ablated)
        return (worst - self.mean_kl(name)) / worst if worst else math.nan


@torch.no_grad()
def next_token_losses(
    logits: Forward,
    batches: Iterable[tuple[Sequence[Example], Sequence[int]]],
    interventions: Mapping[str, Intervention],
) -> NextToken:
    """Run each batch clean and under each intervention, and compare the predictions made at kept positions.

    Parameters
    ----------
    logits
        A full forward pass: [batch token vocabulary] with the examples' tokens from position 0; what lies past an
        example's end is not read.
    batches
        Examples with the documents (integers) they belong to. A prediction counts when it is made at a kept position
        and its target lies in the same example.

    Raises `InputError` when no token is predicted.
    """
    names = [CLEAN, *interventions]
    documents: list[np.ndarray] = []
    losses: dict[str, list[np.ndarray]] = {name: [] for name in names}
    divergences: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for examples, document_of in batches:
        positions = [_predicting(example) for example in examples]
        documents += [np.full(len(p), document, np.int64) for p, document in zip(positions, document_of, strict=True)]
        clean = [rows[where] for rows, where in zip(logits(examples), positions, strict=True)]
        for name in names:
            if name == CLEAN:
                changed = clean
            else:
                with interventions[name](examples):
                    changed = [rows[where] for rows, where in zip(logits(examples), positions, strict=True)]
            # One example at a time: a batch of log-probabilities over a large vocabulary in float32 fills gigabytes.
            for example, where, before, after in zip(examples, positions, clean, changed, strict=True):
                loss, divergence = _loss_and_kl(before, after, _ids(example)[where + 1])
                losses[name].append(loss)
                divergences[name].append(divergence)
    if not sum(map(len, documents)):
        raise InputError("No token is predicted from a kept position; the examples are empty or one token long.")
    return NextToken(
        documents=np.concatenate(documents),
        cross_entropy={name: np.concatenate(losses[name]) for name in names},
        kl={name: np.concatenate(divergences[name]) for name in names},
    )


@torch.no_grad()
def class_losses(logits: Mapping[str, Float[Tensor, "example class"]]) -> NextToken:
    """The losses of a classifier on its own clean predictions: `logits` of each intervention and of `"clean"`.

    The target of an image is the class that the unchanged model gives it, so that no labels are needed and clean is as
    good as can be. Each image is a document.
    """
    targets = logits[CLEAN].argmax(-1).cpu().numpy()
    found = {name: _loss_and_kl(logits[CLEAN], changed, targets) for name, changed in logits.items()}
    return NextToken(
        documents=np.arange(len(targets)),
        cross_entropy={name: loss for name, (loss, _) in found.items()},
        kl={name: divergence for name, (_, divergence) in found.items()},
    )


@torch.no_grad()
def representations(
    represent: Forward,
    batches: Iterable[Sequence[Example]],
    interventions: Mapping[str, Intervention],
) -> dict[str, Float[Tensor, "example width"]]:
    """One vector per example from `represent`, e.g. the final layer's mean token: clean and under each intervention."""
    found: dict[str, list[Tensor]] = {name: [] for name in (CLEAN, *interventions)}
    for examples in batches:
        found[CLEAN].append(represent(examples).float().cpu())
        for name, intervention in interventions.items():
            with intervention(examples):
                found[name].append(represent(examples).float().cpu())
    if not found[CLEAN]:
        raise InputError("There are no images to compare representations on.")
    return {name: torch.cat(parts) for name, parts in found.items()}


def recovered_representation(
    clean: Float[Tensor, "example width"],
    changed: Float[Tensor, "example width"],
    ablated: Float[Tensor, "example width"],
) -> float:
    """1 - sum |changed - clean|^2 / sum |ablated - clean|^2: 1 when nothing changed, 0 when as bad as the ablation."""
    worst = (ablated.double() - clean.double()).square().sum()
    return float(1 - (changed.double() - clean.double()).square().sum() / worst) if worst else math.nan


def class_agreement(clean: Float[Tensor, "example class"], changed: Float[Tensor, "example class"]) -> float:
    """Share of examples whose top class stays."""
    return float((clean.argmax(-1) == changed.argmax(-1)).double().mean())


def knn_accuracy(
    x: Float[Tensor, "example width"], labels: Int[np.ndarray, " example"], k: int = 10
) -> tuple[float, Bool[np.ndarray, " example"]]:
    """Leave-one-out accuracy of the `k` nearest neighbours by cosine, and which examples were right.

    A tie between labels goes to the one whose neighbours are nearer in sum of cosines. Labels below 0 are errors;
    an example alone in its class is always wrong, so accuracy 1 may be out of reach.
    """
    if len(x) < 2:
        raise InputError(f"k nearest neighbours need at least two labelled examples, found {len(x)}.")
    direction = torch.nn.functional.normalize(x.double(), dim=-1)
    cosines = direction @ direction.T
    cosines.fill_diagonal_(-math.inf)
    nearest = cosines.topk(min(k, len(x) - 1), dim=-1)
    votes = torch.zeros(len(x), int(labels.max()) + 1, dtype=torch.float64)
    neighbours = torch.from_numpy(labels.astype(np.int64))[nearest.indices]
    # A vote weighs 1; the sum of cosines of at most k neighbours, shrunk below 1, only breaks ties.
    votes.scatter_add_(1, neighbours, 1 + nearest.values / (4 * nearest.values.shape[1]))
    right = votes.argmax(-1).numpy() == labels
    return float(right.mean()), right


def _predicting(example: Example) -> np.ndarray:
    return example.kept[example.kept + 1 < example.n_tokens].astype(np.int64)


def _ids(example: Example) -> np.ndarray:
    if example.token_ids is None:
        raise InputError(f"Example of {example.document!r} has no token ids; next-token losses need text.")
    return example.token_ids.astype(np.int64)


def _loss_and_kl(
    clean: Float[Tensor, "token vocabulary"], changed: Float[Tensor, "token vocabulary"], targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    log_p, log_q = clean.float().log_softmax(-1), changed.float().log_softmax(-1)
    target = torch.from_numpy(targets).to(log_q.device).unsqueeze(-1)
    loss = -log_q.gather(-1, target).squeeze(-1)
    # A vocabulary entry that is masked to -inf has p = 0 and adds nothing, where p * (log p - log q) would be NaN.
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
    # Rounding leaves it a few 1e-7 below zero for equal distributions.
    return loss.cpu().numpy(), terms.sum(-1).clamp(min=0).cpu().numpy()
