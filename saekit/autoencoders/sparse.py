"""`SparseAutoencoder`: one class for training, evaluating and browsing, whatever makes its latents sparse.

Inside, activations are centred and scaled: x_n = (x - input_mean) * input_scale, with E||x_n||^2 = d_in once the input
moments are set (after `token_norm`, where there is one). Losses live in that space; `encode` and `decode` take and
return raw activations.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from saekit import kernels
from saekit.autoencoders.base import Autoencoder, LossTerms
from saekit.autoencoders.sparsity import Sparsity, StepState, TopK
from saekit.autoencoders.sparsity.base import short
from saekit.errors import ConfigError, InputError
from saekit.kernels import SparseLatents, StepChooser, Weights

_ENCODE_ROWS = 2048
_L0_GAIN = 0.01
"""Most that the logarithm of the penalty's weight moves in a step towards a target L0."""
_TOKEN_EPSILON = 1e-5  # added to the deviation, not to the variance: what published autoencoders were trained with


@dataclass(frozen=True, kw_only=True)
class SparseAutoencoderConfig:
    """What a sparse autoencoder is. How it is trained belongs to `fit`."""

    d_in: int
    """Width of the activations."""
    d_sae: int
    """Number of latents."""
    sparsity: Sparsity = field(default_factory=TopK)
    """What makes the latents sparse."""
    decoder_norm: Literal["auto", "unit", "free"] = "auto"
    """Norm of the rows of W_dec: `unit` keeps them at 1, `free` does not (an L1 penalty is then weighted by them);
    `auto` is the sparsity's own: free for KLDivergence, unit for the others."""
    decoder_init_norm: float = 1.0
    """Norm that the rows of a free decoder, and the encoder's with them, start from."""
    target_l0: float | None = None
    """Steer the weight of the sparsity's penalty until this many latents per row are active; None leaves it alone."""
    dead_after_tokens: int = 1_000_000
    """A latent that fired for none of this many tokens in a row is dead."""
    token_norm: Literal["none", "layer_norm", "rms"] = "none"
    """Normalise each activation by itself first: `layer_norm` subtracts the mean of its features and divides by their
    standard deviation, `rms` scales its norm to sqrt(d_in). Latents then do not see a token's norm, and reconstructing
    one needs it: `decode_for`."""
    seed: int = 0
    """Seed of the initial weights."""
    kernel: kernels.Path = "auto"
    """How training steps are computed, to the same result: on all entries (`dense`), on the active ones (`sparse`), or
    whichever is faster (`auto`)."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} is not 1 or larger"
            for name in ("d_in", "d_sae", "dead_after_tokens")
            if getattr(self, name) < 1
        ]
        if self.decoder_norm not in ("auto", "unit", "free"):
            problems.append(f"decoder_norm={self.decoder_norm!r} is not 'auto', 'unit' or 'free'")
        if self.token_norm not in ("none", "layer_norm", "rms"):
            problems.append(f"token_norm={self.token_norm!r} is not 'none', 'layer_norm' or 'rms'")
        if self.token_norm == "layer_norm" and self.d_in == 1:
            problems.append("token_norm='layer_norm' needs a d_in of 2 or more: one feature has no deviation")
        if self.kernel not in ("auto", "dense", "sparse"):
            problems.append(f"kernel={self.kernel!r} is not 'auto', 'dense' or 'sparse'")
        if self.kernel == "sparse" and not self.sparsity.has_sparse_step:
            problems.append(f"kernel='sparse' cannot be: every latent of {type(self.sparsity).__name__} is active")
        if not 0 < self.decoder_init_norm < float("inf"):
            problems.append(f"decoder_init_norm={self.decoder_init_norm} is not above 0")
        elif self.decoder_init_norm != 1 and not decoder_is_free(self):
            problems.append(f"decoder_init_norm={self.decoder_init_norm} needs decoder_norm='free'")
        if self.target_l0 is not None and not 0 < self.target_l0 <= self.d_sae:
            problems.append(f"target_l0={self.target_l0} is not above 0 and at most d_sae={self.d_sae}")
        if self.target_l0 is not None and not self.sparsity.has_penalty:
            problems.append(f"target_l0={self.target_l0} has no penalty to steer in {type(self.sparsity).__name__}")
        if problems:
            raise ConfigError(f"SparseAutoencoderConfig: {'; '.join(problems)}.")
        self.sparsity.build(self.d_sae)


def decoder_is_free(config: SparseAutoencoderConfig) -> bool:
    """Whether rows of W_dec may have any norm."""
    norm = config.decoder_norm
    return (config.sparsity.decoder_norm if norm == "auto" else norm) == "free"


class SparseAutoencoder(Autoencoder):
    """Affine encoder, a sparsity, affine decoder: x_n ~ sparsify((x_n - b_dec) W_enc + b_enc) W_dec + b_dec."""

    Config: ClassVar[type] = SparseAutoencoderConfig
    config: SparseAutoencoderConfig

    input_mean: Tensor
    """`[d_in]`: subtracted from raw activations."""
    input_scale: Tensor
    """`[]`: multiplies what is left."""
    tokens_since_fired: Tensor
    """int64 `[d_sae]`: training tokens since each latent was last active."""
    n_tokens_seen: Tensor
    """int64 `[]`: training tokens so far."""
    sparsity_scale: Tensor
    """`[]`: multiplies the sparsity penalty (not AuxK); set by a training schedule, 1 when it is over."""
    penalty_factor: Tensor
    """`[]`: multiplies it as well, steered to the target L0; only where there is one."""

    def __init__(self, config: SparseAutoencoderConfig) -> None:
        super().__init__(config)
        d_in, d_sae = config.d_in, config.d_sae
        self.sparsifier = config.sparsity.build(d_sae)
        self.chooser = StepChooser(config.kernel)
        generator = torch.Generator().manual_seed(config.seed)
        W_dec = torch.randn(d_sae, d_in, generator=generator)
        W_dec *= config.decoder_init_norm / W_dec.norm(dim=1, keepdim=True)
        # Held transposed: steps read and write whole latents, and optimizers copy parameters that are not contiguous.
        self.W_enc_T = nn.Parameter(W_dec.clone())
        self.b_enc = nn.Parameter(torch.full((d_sae,), self.sparsifier.initial_bias))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("input_mean", torch.zeros(d_in))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("n_tokens_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sparsity_scale", torch.ones(()))
        if config.target_l0 is not None:
            self.register_buffer("penalty_factor", torch.ones(()))

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder's weights, a view of the parameter `W_enc_T [d_sae d_in]`."""
        return self.W_enc_T.T

    @property
    def weights(self) -> Weights:
        return Weights(self.W_enc_T, self.b_enc, self.W_dec, self.b_dec)

    @property
    def is_dead(self) -> Bool[Tensor, " d_sae"]:
        """Which latents fired for none of the last `dead_after_tokens` training tokens."""
        return self.tokens_since_fired >= self.config.dead_after_tokens

    @property
    def decoder_is_free(self) -> bool:
        return decoder_is_free(self.config)

    def set_input_moments_(self, mean: Float[Tensor, " d_in"], mean_squared_norm: float) -> None:
        """Centre inputs on `mean` and scale them so that E||x - mean||^2 = `mean_squared_norm` becomes d_in."""
        if mean.shape != self.input_mean.shape:
            raise InputError(f"The mean has shape {list(mean.shape)}, expected [{self.config.d_in}].")
        if self.config.token_norm != "none":
            raise InputError(
                f"token_norm={self.config.token_norm!r} normalises every token; moments of raw ones do not fit."
            )
        if not (0 < mean_squared_norm < float("inf")) or not bool(mean.isfinite().all()):
            raise InputError(
                f"Input moments must be finite with a positive mean squared norm, got {mean_squared_norm}. "
                "Are all activations equal, or some of them NaN?"
            )
        self.input_mean.copy_(mean)
        self.input_scale.fill_((self.config.d_in / mean_squared_norm) ** 0.5)

    def latent_parameters(self) -> list[nn.Parameter]:
        """The parameters with one row or number for each latent."""
        own = [p for p in self.sparsifier.parameters() if len(p) == self.config.d_sae]
        return [self.W_enc_T, self.b_enc, self.W_dec, *own]

    def set_progress_(self, share: float) -> None:
        """Tell the sparsity's schedules (an annealed k or p) how much of the run is over, 0..1, before a step."""
        self.sparsifier.set_progress_(share)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Latents of raw activations; they do not depend on the other rows of the batch."""
        return self.sparsifier(self._pre_activations(x), self.b_enc)

    def decode(self, latents: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        """Raw activations from latents; `InputError` with a `token_norm`, where `decode_for` knows whose they are."""
        self._refuse_without_token()
        return self._denormalize(torch.addmm(self.b_dec, latents, self.W_dec))

    def decode_for(
        self, x: Float[Tensor, "batch d_in"], latents: Float[Tensor, "batch d_sae"]
    ) -> Float[Tensor, "batch d_in"]:
        """Raw activations from latents of `x`, its own or edited ones; `x` gives what `token_norm` took away."""
        return self._denormalize(torch.addmm(self.b_dec, latents, self.W_dec), x)

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "batch d_in"]) -> SparseLatents:
        """The active latents of raw activations: exactly the entries of `encode` that are above `active_above`.

        Ordered by row, then by latent. `active_above` is 0 but for KLDivergence, whose latents are never zero.
        """
        parts = [
            self.sparsifier.active(self.normalize(rows) - self.b_dec, self.weights) for rows in x.split(_ENCODE_ROWS)
        ]
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([part.row_offsets.diff() for part in parts] or [self.n_tokens_seen.new_zeros(0)])
        row_offsets = counts.new_zeros(len(counts) + 1)
        row_offsets[1:] = counts.cumsum(0)
        return SparseLatents(
            row_offsets, torch.cat([part.latents for part in parts]), torch.cat([part.values for part in parts])
        )

    def output_scale(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch 1"]:
        """What a latent times its row of W_dec is multiplied by in the reconstruction of each row of `x`."""
        scale = 1 / self.input_scale
        if self.config.token_norm == "none":
            return scale.expand(len(x), 1)
        return scale * self._token_moments(x.to(self.input_mean.dtype))[1]

    def decode_sparse(
        self, active: SparseLatents, x: Float[Tensor, "batch d_in"] | None = None
    ) -> Float[Tensor, "batch d_in"]:
        """Raw activations from `active` latents alone, all others taken as exactly zero.

        So it undoes `encode_sparse` for every sparsity whose inactive latents are zero, which KLDivergence's are not.
        With a `token_norm`, `x` is the activations that they are the latents of.
        """
        if x is None:
            self._refuse_without_token()
        x_n = embedding_bag(
            active.latents.long(),
            self.W_dec,
            active.row_offsets[:-1],
            mode="sum",
            per_sample_weights=active.values.to(self.W_dec.dtype),
        )
        return self._denormalize(x_n + self.b_dec, x)

    def training_loss(self, x: Float[Tensor, "batch d_in"]) -> LossTerms:
        """The loss of a batch of raw activations; counts its tokens and which latents fired.

        `terms`: `reconstruction` (squared error of normalised activations, summed over features, mean over the batch),
        the sparsity's penalties as added (such as `l1`, `kl`, `auxk`), `l0` (active latents per row), `fvu` (of this
        batch, about the input mean) and `dead` (share of latents that are dead).
        """
        x_n = self.normalize(x)
        self.chooser.watch_dead(self.tokens_since_fired, self.config.dead_after_tokens, len(x))
        scale = self.sparsity_scale
        if self.config.target_l0 is not None:
            scale = scale * self.penalty_factor
        state = StepState(self.is_dead, scale, self.decoder_is_free, self.chooser)
        step, penalties = self.sparsifier.training_step(x_n, self.weights, state)
        total = step.reconstruction + torch.stack(list(penalties.values())).sum()
        with torch.no_grad():
            n_rows = x.shape[0]
            self.n_tokens_seen += n_rows
            self.tokens_since_fired += n_rows
            self.tokens_since_fired.masked_fill_(step.n_fired > 0, 0)
            terms = {
                "reconstruction": step.reconstruction.detach(),
                **{name: penalty.detach() for name, penalty in penalties.items()},
                "l0": step.n_fired.sum() / n_rows,
                "fvu": step.reconstruction.detach() * n_rows / x_n.square().sum(),
                "dead": self.is_dead.float().mean(),
            }
            if self.config.target_l0 is not None:
                terms["penalty_factor"] = self.penalty_factor.clone()
                self._steer_(terms["l0"], self.config.target_l0)
            x_hat = self._denormalize(step.x_hat, x)
        return LossTerms(total, terms, x_hat, step.latents)

    @torch.no_grad()
    def project_gradients_(self) -> None:
        """Remove from W_dec's gradient what would only change the norms of its rows, when those are held at 1."""
        gradient = self.W_dec.grad
        if self.decoder_is_free or gradient is None:
            return
        gradient.addcmul_(self.W_dec, kernels.row_dots(gradient, self.W_dec)[:, None], value=-1)

    @torch.no_grad()
    def project_(self) -> None:
        """Bring the rows of W_dec back to norm 1, unless they are free."""
        self.finish_step_()
        if not self.decoder_is_free:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))

    @torch.no_grad()
    def finish_step_(self) -> None:
        """What `project_` does besides `unit_rows`, for an optimizer that keeps those itself."""
        # Its work is done: the memory serves the next step's gradients once `zero_grad` lets go of it.
        self.chooser.buffers.keep(self.W_enc_T.grad)
        self.chooser.buffers.keep(self.W_dec.grad)
        self.sparsifier.project_()

    @property
    def unit_rows(self) -> tuple[Tensor, ...]:
        """The parameters whose rows are held at norm 1."""
        return () if self.decoder_is_free else (self.W_dec,)

    def _steer_(self, l0: Tensor, target: float) -> None:
        """Raise the penalty while too many latents are active, lower it while too few are.

        By at most `_L0_GAIN` a step, and less while the penalty warms up, when L0 tells little about its weight.
        """
        miss = (l0.to(self.penalty_factor.dtype).clamp_min(1e-6) / target).log().clamp(-1, 1)
        self.penalty_factor.mul_((_L0_GAIN * self.sparsity_scale * miss).exp())

    def extra_repr(self) -> str:
        return f"d_in={self.config.d_in}, d_sae={self.config.d_sae}"

    def __repr__(self) -> str:
        """One line: sizes, sparsity, tokens seen, share dead."""
        config = self.config
        decoder = "free" if self.decoder_is_free else "unit"
        return (
            f"SparseAutoencoder({config.d_in} -> {config.d_sae}, {short(config.sparsity)}, {decoder} decoder, "
            f"{int(self.n_tokens_seen):,} tokens seen, {float(self.is_dead.float().mean()):.1%} dead)"
        )

    def normalize(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Raw activations as the losses see them: centred and scaled, after `token_norm` where there is one."""
        if x.ndim != 2:
            raise InputError(
                f"These activations have shape {list(x.shape)}; wanted is [batch {self.config.d_in}]. "
                "Type: x.flatten(0, -2)"
            )
        if x.shape[-1] != self.config.d_in:
            raise InputError(f"These activations are {x.shape[-1]} wide; this autoencoder takes {self.config.d_in}.")
        x = x.to(self.input_mean.dtype)
        if self.config.token_norm != "none":
            mean, scale = self._token_moments(x)
            x = (x - mean) / (scale + _TOKEN_EPSILON if self.config.token_norm == "layer_norm" else scale)
        return (x - self.input_mean) * self.input_scale

    def _denormalize(self, x_n: Tensor, x: Tensor | None = None) -> Tensor:
        x_hat = x_n / self.input_scale + self.input_mean
        if self.config.token_norm == "none" or x is None:
            return x_hat
        mean, scale = self._token_moments(x.to(self.input_mean.dtype))
        return x_hat * scale + mean

    def _token_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch 1]` each: what `token_norm` subtracts from a row and what it divides it by."""
        if self.config.token_norm == "rms":
            norm = x.norm(dim=-1, keepdim=True) / self.config.d_in**0.5
            return torch.zeros_like(norm), norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)

    def _refuse_without_token(self) -> None:
        if self.config.token_norm != "none":
            raise InputError(
                f"Latents of an autoencoder with token_norm={self.config.token_norm!r} do not say how large their "
                "token was. Type: sae.decode_for(x, latents)"
            )

    def _pre_activations(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b_enc, self.normalize(x) - self.b_dec, self.W_enc)
