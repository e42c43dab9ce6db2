"""`Dictionary`: a sparse autoencoder as files of other projects mean it, in raw units, and the way to ours and back.

Shape letters: d = d_in, o = d_out (d for an autoencoder), F = d_sae.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig
from saekit.autoencoders.transcoder import Transcoder, TranscoderConfig
from saekit.errors import CheckpointError, ConfigError
from saekit.interop.activation import Activation, activation_of, sparsity_for

TokenNorm = Literal["none", "layer_norm", "rms"]
_FOLDED_AT_ONCE = 8192  # latents whose weights are float64 at one time


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """pre = (norm(x) - b_dec) W_enc + b_enc, latents = activation(pre), x_hat = undo_norm(latents W_dec + b_dec).

    `b_dec` is subtracted from the input if `subtracts_b_dec`. A transcoder subtracts nothing and may add x W_skip.
    """

    W_enc: Tensor
    """`[d F]`."""
    b_enc: Tensor
    """`[F]`; a gated one's gate bias."""
    W_dec: Tensor
    """`[F o]`."""
    b_dec: Tensor
    """`[o]`."""
    activation: Activation
    subtracts_b_dec: bool
    token_norm: TokenNorm = "none"
    is_transcoder: bool = False
    W_skip: Tensor | None = None
    """`[d o]`, of a transcoder."""
    hook_point: str | None = None
    """Where the activations are from, in our words, if the file says so in words that we know."""
    source: dict[str, Any] = field(default_factory=dict)
    """What else the file says of itself (format, model, data, training), for the provenance."""
    notes: tuple[str, ...] = ()
    """What was folded, carried or left out, a sentence each."""
    took_input_scale: bool = False
    """Whether the `input_scale` that was given to the reader is in the weights already."""

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def noting(self, *notes: str) -> "Dictionary":
        """The same with sentences added to `notes`."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def with_input_scale(self, factor: float, *, output: float | None = None, was_given: bool) -> "Dictionary":
        """`scaled_input` by a factor that the format states or, if `was_given`, a person did; noted."""
        note = f"Folded the input scale {factor:.6g} into the weights."
        folded = self.scaled_input(factor, output=output).noting(note)
        return dataclasses.replace(folded, took_input_scale=was_given)

    def scaled_input(self, factor: float, *, output: float | None = None) -> "Dictionary":
        """The dictionary of raw activations, given that this one is of activations times `factor`; latents stay.

        `output` is the factor of what it rebuilds, by default the same.
        """
        output = factor if output is None else output
        if self.subtracts_b_dec and output != factor:
            raise CheckpointError(f"Input and output have factors {factor} and {output}, and b_dec belongs to both.")
        return dataclasses.replace(
            self, W_enc=self.W_enc * factor, W_dec=self.W_dec / output, b_dec=self.b_dec / output
        )

    def scaled_latents(self, factor: Tensor) -> "Dictionary":
        """The same reconstructions from latents times `factor [F]`, all positive."""
        return dataclasses.replace(
            self,
            W_enc=self.W_enc * factor,
            b_enc=self.b_enc * factor,
            W_dec=self.W_dec / factor[:, None],
            activation=self.activation.scaled(factor),
        )

    def subtracting_b_dec(self, subtracts: bool) -> "Dictionary":
        """The same dictionary written so that the encoder's input has `b_dec` subtracted from it, or not."""
        if subtracts == self.subtracts_b_dec:
            return self
        shift = _product(self.b_dec, self.W_enc) * (1 if subtracts else -1)
        return dataclasses.replace(
            self,
            b_enc=(self.b_enc.double() + shift).to(self.b_enc.dtype),
            activation=self.activation.shifted(shift),
            subtracts_b_dec=subtracts,
        )


def to_autoencoder(
    dictionary: Dictionary, *, input_mean: Tensor | None = None, input_scale: float | None = None
) -> SparseAutoencoder | Transcoder:
    """The autoencoder that gives the same latents and reconstructions, with `dictionary.source` as its provenance.

    `input_mean [d]` and `input_scale` are of a normalisation x_n = (x - input_mean) * input_scale that the file does
    not know of; they become the buffers of those names.
    """
    if not dictionary.is_transcoder:
        dictionary = dictionary.subtracting_b_dec(True)
    spec, state = sparsity_for(dictionary.activation, dictionary.d_sae)
    provenance: dict[str, Any] = {"source": {**dictionary.source, "notes": list(dictionary.notes)}}
    if dictionary.hook_point is not None:
        provenance["hook_point"] = dictionary.hook_point
    if dictionary.is_transcoder:
        if dictionary.subtracts_b_dec or dictionary.token_norm != "none":
            raise CheckpointError("A transcoder that normalises tokens, or subtracts b_dec, is none that we can hold.")
        if input_mean is not None or input_scale is not None:
            raise ConfigError("input_mean and input_scale are for autoencoders; a transcoder has two hook points.")
        return _filled(_transcoder(dictionary, spec), dictionary, state, provenance)
    norms = dictionary.W_dec.norm(dim=1)
    config = SparseAutoencoderConfig(
        d_in=dictionary.d_in,
        d_sae=dictionary.d_sae,
        sparsity=spec,
        decoder_norm="unit" if torch.allclose(norms, torch.ones_like(norms), atol=1e-4) else "free",
        token_norm=dictionary.token_norm,
    )
    sae = _filled(SparseAutoencoder(config), dictionary, state, provenance)
    if input_mean is not None or input_scale is not None:
        if dictionary.token_norm != "none":
            raise ConfigError(f"This autoencoder has token_norm={dictionary.token_norm!r}: leave input_mean and scale.")
        if input_mean is not None:
            if input_mean.shape != (dictionary.d_in,):
                raise ConfigError(f"input_mean has shape {list(input_mean.shape)}, expected [{dictionary.d_in}].")
            sae.input_mean.copy_(input_mean)
        sae.input_scale.fill_(1.0 if input_scale is None else input_scale)
    return sae


def from_autoencoder(model: SparseAutoencoder | Transcoder) -> Dictionary:
    """The dictionary in raw units with the same latents; a sparse autoencoder's input mean and scale are folded in.

    Raises `ConfigError` for a sparsity that is ours alone.
    """
    activation = activation_of(model.config.sparsity, model.sparsifier, model.config.d_sae)
    provenance = model.provenance or {}
    common: dict[str, Any] = {
        "activation": activation,
        "hook_point": provenance.get("hook_point"),
        "source": {name: item for name, item in provenance.items() if name != "hook_point"},
    }
    W_enc, b_enc = model.W_enc_T.detach().cpu().T, model.b_enc.detach().cpu()
    W_dec, b_dec = model.W_dec.detach().cpu(), model.b_dec.detach().cpu()
    if isinstance(model, Transcoder):
        skip = None if model.W_skip is None else model.W_skip.detach().cpu()
        return Dictionary(
            W_enc=W_enc,
            b_enc=b_enc,
            W_dec=W_dec,
            b_dec=b_dec,
            subtracts_b_dec=False,
            is_transcoder=True,
            W_skip=skip,
            **common,
        )
    scale, mean = float(model.input_scale), model.input_mean.detach().cpu()
    dictionary = Dictionary(
        W_enc=W_enc * scale,
        b_enc=b_enc,
        W_dec=W_dec / scale,
        b_dec=(b_dec.double() / scale + mean.double()).to(b_dec.dtype),
        subtracts_b_dec=True,
        token_norm=model.config.token_norm,
        **common,
    )
    if scale != 1.0 or bool(mean.any()):
        dictionary = dictionary.noting(
            f"Folded the input mean into b_dec and the input scale {scale:.6g} into W_enc, W_dec and b_dec."
        )
    return dictionary


def _transcoder(dictionary: Dictionary, spec: Any) -> Transcoder:
    return Transcoder(
        TranscoderConfig(
            d_in=dictionary.d_in,
            d_out=dictionary.d_out,
            d_sae=dictionary.d_sae,
            sparsity=spec,
            has_skip=dictionary.W_skip is not None,
        )
    )


def _filled(model: Any, dictionary: Dictionary, state: dict[str, Tensor], provenance: dict[str, Any]) -> Any:
    tensors = {
        "W_enc_T": dictionary.W_enc.T,
        "b_enc": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
        **{f"sparsifier.{name}": tensor for name, tensor in state.items()},
    }
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip
    ours = dict(model.state_dict())
    with torch.no_grad():
        for name, tensor in tensors.items():
            ours[name].copy_(tensor)
    model.provenance = provenance
    return model


def _product(vector: Tensor, matrix: Tensor) -> Tensor:
    """`vector @ matrix` in float64, a part of the columns at a time."""
    return torch.cat([vector.double() @ part.double() for part in matrix.split(_FOLDED_AT_ONCE, dim=1)])
