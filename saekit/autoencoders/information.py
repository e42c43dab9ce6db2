"""Entropy, cross-entropy and Kullback-Leibler divergence of discrete distributions, in nats, with their edge cases.

They are the annex of a lecture: KL(p || q) = H(p, q) - H(p), is never negative, is not symmetric, takes 0 log 0 as 0
and is infinite where q says that something which happens cannot.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.errors import InputError


def entropy(p: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """H(p) = -sum p log p. Raises `InputError` when `p` is no distribution."""
    return cross_entropy(p, p)


def cross_entropy(p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """H(p, q) = -sum p log q: nats per outcome of p in a code made for q."""
    _check(p, "p")
    _check(q, "q")
    return -torch.xlogy(p, q).sum(-1)


def kl_divergence(p: Float[Tensor, "*batch outcome"], q: Float[Tensor, "*batch outcome"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) = sum p log(p / q): the nats that the wrong code wastes."""
    return cross_entropy(p, q) - entropy(p)


def _check(p: Tensor, name: str) -> None:
    tolerance = 1e-9 if p.dtype == torch.float64 else 1e-4
    if bool((p < 0).any()) or not bool(((p.sum(-1) - 1).abs() < tolerance).all()):
        worst = float(p.sum(-1).flatten()[(p.sum(-1) - 1).abs().flatten().argmax()])
        raise InputError(
            f"{name} is no distribution: its smallest entry is {float(p.min()):.4g}, a row sums to {worst:.6g}. "
            f"Entries are 0 or more and rows sum to 1: {name} / {name}.sum(-1, keepdim=True)."
        )
