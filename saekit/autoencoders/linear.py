"""`LinearAutoencoder`: the one whose optimum is known, principal component analysis, with its theory as functions.

Bourlard and Kamp 1988, Baldi and Hornik 1989: with k latents the least squared error is the sum of the covariance's
eigenvalues behind the k-th, reached exactly when decoder and encoder are U_k C and C^-1 U_k^T for an invertible C;
every other stationary point projects onto other eigenvectors and is a saddle. So the *span* is that of PCA, the latents
are its coordinates up to C, and on directions in which the data does not vary the encoder is arbitrary.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saekit.autoencoders.base import Autoencoder, LossTerms
from saekit.autoencoders.encoder_decoder import check_sizes, check_width
from saekit.autoencoders.likelihoods import SquaredErrorModule
from saekit.autoencoders.modules import seeded


@dataclass(frozen=True, kw_only=True)
class LinearAutoencoderConfig:
    """What a linear autoencoder is. How it is trained belongs to `fit`."""

    d_in: int
    """Width of a row."""
    d_latent: int
    """Width of the code; from d_in on nothing has to be left out."""
    tied: bool = False
    """The decoder is the transposed encoder; at the optimum its rows are then orthonormal."""
    centred: bool = True
    """Subtract a bias before encoding and add it after decoding. Without, the span is that of the second moments about
    zero instead of the covariance."""
    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        check_sizes(self, "d_in", "d_latent")


class PrincipalAxes(NamedTuple):
    """Directions of the data inside the span of a linear autoencoder, in order of variance."""

    axes: Float[Tensor, "k d_in"]
    """Orthonormal rows."""
    variances: Float[Tensor, " k"]
    """Variance (1/n) of the reconstructed data along each."""


@final
class LinearAutoencoder(Autoencoder):
    """x_hat = (x - b) W_enc W_dec + b, trained on ||x - x_hat||^2 (summed over features, mean over the batch)."""

    Config: ClassVar[type] = LinearAutoencoderConfig
    config: LinearAutoencoderConfig

    def __init__(self, config: LinearAutoencoderConfig) -> None:
        super().__init__(config)
        with seeded(config.seed):
            W_enc = torch.randn(config.d_in, config.d_latent) / config.d_in**0.5
        self.W_enc = nn.Parameter(W_enc)
        if not config.tied:
            self.W_dec_free = nn.Parameter(W_enc.T.clone())
        if config.centred:
            self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def W_dec(self) -> Float[Tensor, "d_latent d_in"]:
        """The decoder: a parameter, or the transposed encoder when tied."""
        return self.W_enc.T if self.config.tied else self.W_dec_free

    @property
    def bias(self) -> Float[Tensor, " d_in"]:
        """What is subtracted before and added after; zeros when not centred."""
        return self.b_dec if self.config.centred else self.W_enc.new_zeros(self.config.d_in)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_latent"]:
        """(x - b) W_enc."""
        check_width(x, self.config.d_in)
        return (x - self.bias) @ self.W_enc

    def decode(self, latents: Float[Tensor, "batch d_latent"]) -> Float[Tensor, "batch d_in"]:
        """latents W_dec + b."""
        return latents @ self.W_dec + self.bias

    def nll(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, " batch"]:
        """Squared error of each row, summed over features; pure. Raises `InputError` for NaNs."""
        check_finite(x)
        return (x - self(x)).square().sum(1)

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """`terms`: `reconstruction`, the squared error summed over features, mean over the batch."""
        check_finite(x)
        latents = self.encode(x)
        x_hat = self.decode(latents)
        loss = (x - x_hat).square().sum(1).mean()
        return LossTerms(loss, {"reconstruction": loss.detach()}, x_hat.detach(), latents.detach())

    @torch.no_grad()
    def set_data_mean_(self, mean: Float[Tensor, " d_in"]) -> None:
        """Start from the mean of the data, where the bias ends anyway; nothing when not centred."""
        if self.config.centred:
            self.b_dec.copy_(mean)

    @torch.no_grad()
    def fit_closed_form_(self, x: Float[Tensor, "n d_in"]) -> None:
        """Move to the global optimum for `x` by singular value decomposition: W_dec = U_k^T, W_enc = U_k.

        With more latents than the data has directions the rest are zero, and nothing is lost.
        """
        check_width(x, self.config.d_in)
        check_finite(x)
        x = x.to(self.W_enc)
        mean = x.mean(0) if self.config.centred else x.new_zeros(self.config.d_in)
        axes = torch.linalg.svd(x - mean, full_matrices=False).Vh
        self.set_axes_(axes[: self.config.d_latent], mean)

    @torch.no_grad()
    def set_axes_(self, axes: Float[Tensor, "k d_in"], mean: Float[Tensor, " d_in"] | None = None) -> None:
        """Encode on and decode from these orthonormal rows; latents beyond them are zero.

        On any eigenvectors of the covariance this is a stationary point, on the first ones the optimum.
        """
        self.W_enc.zero_()
        self.W_enc[:, : len(axes)] = axes.T.to(self.W_enc)
        if not self.config.tied:
            self.W_dec_free.copy_(self.W_enc.T)
        if self.config.centred and mean is not None:
            self.b_dec.copy_(mean)

    @torch.no_grad()
    def principal_axes(self, x: Float[Tensor, "n d_in"]) -> PrincipalAxes:
        """What PCA would have found, out of a trained autoencoder: its latents of `x`, diagonalised again.

        Training fixes the span and not the coordinates in it. The decoder's rows are made orthonormal (QR) and turned
        onto the axes of the reconstructions' covariance (SVD); signs are those that make the largest entry positive.
        """
        centred = self.encode(x)
        centred = centred - centred.mean(0)
        basis, triangle = torch.linalg.qr(self.W_dec.T)
        _, values, turns = torch.linalg.svd(centred @ triangle.T, full_matrices=False)
        axes = turns @ basis.T
        largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        return PrincipalAxes(axes * largest.sign(), values.square() / len(x))

    def extra_repr(self) -> str:
        return f"d_in={self.config.d_in}, d_latent={self.config.d_latent}, tied={self.config.tied}"


def covariance_spectrum(
    x: Float[Tensor, "n d_in"], centred: bool = True
) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
    """Eigenvalues, largest first, and eigenvectors (rows) of the covariance of `x` (1/n; about zero if not centred)."""
    deviations = x - x.mean(0) if centred else x
    values, vectors = torch.linalg.eigh(deviations.T @ deviations / len(x))
    return values.flip(0).clamp_min(0), vectors.T.flip(0)


def eigenvalue_tail(x: Float[Tensor, "n d_in"], k: int, centred: bool = True) -> Float[Tensor, ""]:
    """The least squared error of `x` (summed over features, mean over rows) through any k-dimensional linear decoder.

    The sum of the covariance's eigenvalues behind the k-th: a bound for every encoder, also a nonlinear one.
    """
    return covariance_spectrum(x, centred)[0][k:].sum()


def covariance_loss(
    covariance: Float[Tensor, "d_in d_in"], W_enc: Float[Tensor, "d_in k"], W_dec: Float[Tensor, "k d_in"]
) -> Float[Tensor, ""]:
    """The loss of a linear autoencoder on centred data of covariance C: tr((I - P)^T C (I - P)), P = W_enc W_dec.

    Its cost does not grow with the number of rows.
    """
    rest = torch.eye(len(covariance)).to(covariance) - W_enc @ W_dec
    return torch.einsum("ij,ik,kj->", rest, covariance, rest)


def principal_angles(a: Float[Tensor, "k d_in"], b: Float[Tensor, "k d_in"]) -> Float[Tensor, " k"]:
    """Angles in radians between the spans of the rows of `a` and of `b`, largest first; all zero for the same span.

    Taken from sines, which resolve small angles that cosines round to zero (Björck and Golub 1973).
    """
    basis_a, basis_b = (torch.linalg.qr(rows.T).Q for rows in (a, b))
    sines = torch.linalg.svdvals(basis_b - basis_a @ (basis_a.T @ basis_b))
    cosines = torch.linalg.svdvals(basis_a.T @ basis_b).flip(0)
    return torch.atan2(sines.clamp(0, 1), cosines.clamp(0, 1))


@torch.no_grad()
def oja_step_(W: Float[Tensor, "k d_in"], x: Float[Tensor, "batch d_in"], lr: float) -> None:
    """One step of Oja's subspace rule on centred rows, in place: W += lr mean(y^T (x - y W)), y = x W^T.

    For one row, Oja 1982: it turns to the first eigenvector, and its norm to 1. For k rows, Oja 1989: their span turns
    to that of the first k.
    """
    y = x @ W.T
    W += lr * y.T @ (x - y @ W) / len(x)


def check_finite(x: Tensor) -> None:
    """Raise `InputError` naming the first entry of `x` that is NaN or infinite."""
    SquaredErrorModule("identity").check(x)
