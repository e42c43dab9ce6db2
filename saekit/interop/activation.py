"""What makes latents sparse at inference, in the words that other projects' files have for it, and ours."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saekit.autoencoders.sparsity import (
    BatchTopK,
    Gated,
    JumpRelu,
    MatryoshkaBatchTopK,
    PAnneal,
    Relu,
    Sparsifier,
    Sparsity,
    TopK,
)
from saekit.errors import ConfigError

_SETTLED = 1_000_000  # batches that a threshold that was read counts as the mean of: more training moves it slowly


@dataclass(frozen=True, kw_only=True)
class Activation:
    """Latents from pre-activations.

    `relu`: max(pre, 0). `topk`: of the k largest of a row, those above 0. `jumprelu`: pre where it is above `threshold`
    and 0. `batchtopk` and `matryoshka`: the same with one threshold for all, found in training. `gated`: where
    pre > 0, max(exp(r_mag) (pre - b_enc) + b_mag, 0).
    """

    kind: Literal["relu", "topk", "jumprelu", "batchtopk", "matryoshka", "gated"]
    k: int | None = None
    threshold: Tensor | None = None
    """`[F]`, or `[]` of batchtopk and matryoshka."""
    group_sizes: tuple[int, ...] | None = None
    """Of matryoshka: how many latents each prefix adds."""
    r_mag: Tensor | None = None
    """`[F]`."""
    b_mag: Tensor | None = None
    """`[F]`."""

    def scaled(self, factor: Tensor) -> "Activation":
        """The activation of pre-activations times `factor [F]`, all positive."""
        if self.kind == "topk" and not torch.allclose(factor, factor[:1].expand_as(factor), rtol=1e-6):
            raise ConfigError("The k largest pre-activations are others once each is scaled by its own factor.")
        threshold = None if self.threshold is None else self.threshold * factor
        if self.kind in ("batchtopk", "matryoshka") and threshold is not None:
            if bool((factor != factor[0]).any()):
                return Activation(kind="jumprelu", threshold=threshold)
            threshold = threshold[0]
        return dataclasses.replace(self, threshold=threshold, b_mag=None if self.b_mag is None else self.b_mag * factor)

    def as_jumprelu(self, d_sae: int) -> "Activation":
        """One threshold for all latents, written out for each."""
        assert self.threshold is not None
        return Activation(kind="jumprelu", threshold=self.threshold.expand(d_sae).clone())

    def shifted(self, shift: Tensor) -> "Activation":
        """The same when `shift [F]` is added to `b_enc`: a gated one has a second bias to add it to."""
        if self.b_mag is None or self.r_mag is None:
            return self
        b_mag = self.b_mag.double() + shift * self.r_mag.double().exp()
        return dataclasses.replace(self, b_mag=b_mag.to(self.b_mag.dtype))


def sparsity_for(activation: Activation, d_sae: int) -> tuple[Sparsity, dict[str, Tensor]]:
    """Our spec for `activation`, and the tensors of the module that it builds.

    Training settings that inference does not have are the specs' defaults.
    """
    kind = activation.kind
    if kind == "relu":
        return Relu(), {}
    if kind == "gated":
        assert activation.r_mag is not None
        assert activation.b_mag is not None
        return Gated(), {"r_mag": activation.r_mag, "b_mag": activation.b_mag}
    if kind == "jumprelu":
        assert activation.threshold is not None
        # Latents are never negative, so a threshold below 0 is one of 0.
        return JumpRelu(), {"threshold": activation.threshold.clamp_min(0)}
    assert activation.k is not None
    if kind == "topk":
        return TopK(k=activation.k), {}
    assert activation.threshold is not None
    state = {"threshold": activation.threshold.clamp_min(0), "n_batches": torch.tensor(_SETTLED)}
    sizes = activation.group_sizes or ()
    if len(sizes) < 2:
        return BatchTopK(k=activation.k), state
    shares = tuple(length / d_sae for length in itertools.accumulate(sizes[:-1]))
    return MatryoshkaBatchTopK(k=activation.k, prefix_shares=shares), state


def activation_of(spec: Sparsity, sparsifier: Sparsifier, d_sae: int) -> Activation:
    """The inverse of `sparsity_for`; `ConfigError` for one that no other project has, or has no threshold yet."""
    if isinstance(spec, (Relu, PAnneal)):
        return Activation(kind="relu")
    if isinstance(spec, TopK):
        return Activation(kind="topk", k=spec.k)
    state = {name: tensor.detach().cpu() for name, tensor in sparsifier.state_dict().items()}
    if isinstance(spec, JumpRelu):
        return Activation(kind="jumprelu", threshold=state["threshold"])
    if isinstance(spec, Gated):
        return Activation(kind="gated", r_mag=state["r_mag"], b_mag=state["b_mag"])
    if isinstance(spec, (BatchTopK, MatryoshkaBatchTopK)):
        if int(state["n_batches"]) == 0:
            raise ConfigError(f"This {type(spec).__name__} was never trained, so it has no threshold. Train it first.")
        if isinstance(spec, BatchTopK):
            return Activation(kind="batchtopk", k=spec.k, threshold=state["threshold"])
        lengths = [0, *(round(share * d_sae) for share in spec.prefix_shares), d_sae]
        sizes = tuple(longer - shorter for shorter, longer in itertools.pairwise(lengths))
        return Activation(kind="matryoshka", k=spec.k, threshold=state["threshold"], group_sizes=sizes)
    raise ConfigError(f"Only saekit knows {type(spec).__name__}: no other format can hold its latents.")
