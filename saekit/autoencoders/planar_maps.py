"""Maps of data to the plane side by side: an autoencoder's code, PCA and t-SNE, the latter two scikit-learn's.

t-SNE (van der Maaten and Hinton 2008) places the given rows and learns no function: there is nothing to call on new
ones. Trustworthiness is that of Venna and Kaski 2001.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.autoencoders.base import Autoencoder
from saekit.errors import ConfigError, InputError, require


@dataclass(frozen=True, kw_only=True)
class PlanarMap:
    """Where the rows of a data set are in the plane, and what it took."""

    name: str
    points: Tensor
    """float32 `[n 2]`."""
    seconds: float
    """Wall time of fitting and placing."""
    place: Callable[[Tensor], Tensor] | None
    """Places rows that were not there before, `[m d_in] -> [m 2]`; None where no such function was learnt."""


def pca_map(x: Float[Tensor, "n d_in"]) -> PlanarMap:
    """The two first principal components. Needs the extra `classic`."""
    decomposition = require("sklearn.decomposition", "classic")
    began = time.perf_counter()
    pca = decomposition.PCA(2, svd_solver="full").fit(_as_numpy(x))

    def place(rows: Tensor) -> Tensor:
        return torch.as_tensor(pca.transform(_as_numpy(rows)), dtype=torch.float32)

    points = place(x)
    return PlanarMap(name="PCA", points=points, seconds=time.perf_counter() - began, place=place)


def tsne_map(x: Float[Tensor, "n d_in"], perplexity: float = 30.0, seed: int = 0) -> PlanarMap:
    """t-SNE of all rows at once. Needs the extra `classic`."""
    manifold = require("sklearn.manifold", "classic")
    if not 1 <= perplexity < len(x):
        raise ConfigError(f"perplexity={perplexity}; it is a number of neighbours, from 1 to below the {len(x)} rows.")
    began = time.perf_counter()
    tsne = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    points = torch.as_tensor(tsne.fit_transform(_as_numpy(x)), dtype=torch.float32)
    return PlanarMap(name="t-SNE", points=points, seconds=time.perf_counter() - began, place=None)


def autoencoder_map(
    model: Autoencoder, x: Float[Tensor, "n d_in"], train: Callable[[], object] | None = None
) -> PlanarMap:
    """The code of an autoencoder with two latents, after `train()`, whose time counts."""
    if model.config.d_latent != 2:
        raise ConfigError(f"A map to the plane has d_latent=2; this autoencoder has {model.config.d_latent}.")
    began = time.perf_counter()
    if train is not None:
        train()
    was_training = model.training
    model.eval()

    def place(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return model.encode(rows).float()

    points = place(x)
    model.train(was_training)
    return PlanarMap(name=type(model).__name__, points=points, seconds=time.perf_counter() - began, place=place)


def knn_accuracy(
    points: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    k: int = 5,
    *,
    new_points: Float[Tensor, "m d"] | None = None,
    new_labels: Int[Tensor, " m"] | None = None,
) -> float:
    """Share of points whose label most of their `k` nearest others have (themselves left out), or of new points.

    A tie goes to the smallest label.
    """
    if (new_points is None) != (new_labels is None):
        raise ConfigError("new_points and new_labels come together; one of them is missing.")
    if not 1 <= k < len(points):
        raise ConfigError(f"k={k}; it is from 1 to below the {len(points)} points.")
    asked = points if new_points is None else new_points
    truth = labels if new_labels is None else new_labels
    distances = torch.cdist(asked.double(), points.double())
    if new_points is None:
        distances.fill_diagonal_(float("inf"))
    nearest = labels[distances.topk(k, largest=False).indices]
    votes = torch.nn.functional.one_hot(nearest.long(), int(labels.max()) + 1).sum(1)
    return float((votes.argmax(1) == truth).double().mean())


def trustworthiness(x: Float[Tensor, "n d_in"], points: Float[Tensor, "n d"], k: int = 10) -> float:
    """How far a point's `k` neighbours in `points` are its neighbours in `x`: 1 is perfect. Needs `classic`."""
    manifold = require("sklearn.manifold", "classic")
    return float(manifold.trustworthiness(_as_numpy(x), points.detach().cpu().numpy(), n_neighbors=k))


def _as_numpy(x: Tensor) -> object:
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise InputError(
            f"Row {row} of x has NaN or infinite entries. Drop such rows: x = x[torch.isfinite(x).all(1)]."
        )
    return x.detach().cpu().numpy()
