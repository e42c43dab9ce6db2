"""What editing latents does to one input: predictions, representation, and the direct path to a logit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saekit.autoencoders import SparseAutoencoder
from saekit.backbones import Backbone, CausalLM
from saekit.errors import BackboneError, ConfigError, InputError
from saekit.hooks import capture
from saekit.intervene import Edit, steer
from saekit.store import Example

N_MOVERS = 10
_CODES = 2**14  # active latents whose decoder rows are gathered at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Movers:
    """Outcomes (tokens or classes) whose probability changed most, per prediction."""

    ids: Int[np.ndarray, "prediction mover"]
    before: Float[np.ndarray, "prediction mover"]
    """Probability without the edit."""
    after: Float[np.ndarray, "prediction mover"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionEffect:
    """How the predictions of one input changed: a prediction per token of a text, or one of an image's class."""

    kl: Float[np.ndarray, " prediction"]
    """KL(clean || edited) in nats."""
    movers: Movers
    """By |change of probability|, most first."""
    top_before: Int[np.ndarray, " prediction"]
    """The most likely outcome."""
    top_after: Int[np.ndarray, " prediction"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepresentationEffect:
    """How the last layer's activations of one image changed."""

    relative: float
    """|after - before| / |before| of the mean over kept tokens."""
    cosine: float
    """Of the mean over kept tokens before and after."""
    by_token: Float[np.ndarray, " kept"]
    """|after - before| / |before| of each kept token."""


@torch.no_grad()
def prediction_effect(
    backbone: Backbone,
    hook_point: str,
    sae: SparseAutoencoder,
    edits: Mapping[int, Edit],
    example: Example,
    *,
    positions: Sequence[int] | None = None,
    keep_error: bool = True,
    n_movers: int = N_MOVERS,
) -> PredictionEffect:
    """Next-token or class probabilities of `example` with and without `edits`, made at `positions`.

    By default those are its kept tokens. Raises `BackboneError` for a model without a head, `ConfigError` for latents
    or positions that do not exist.
    """
    where = _positions(example, backbone, positions)
    before = _predictions(backbone, example)
    with steer(backbone, hook_point, sae, edits, positions=[where], keep_error=keep_error):
        after = _predictions(backbone, example)
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    terms = torch.where(log_p.isneginf(), 0.0, p * (log_p - log_q))
    ids = (q - p).abs().topk(min(n_movers, p.shape[-1]), dim=-1).indices
    return PredictionEffect(
        kl=terms.sum(-1).clamp(min=0).cpu().numpy(),
        movers=Movers(
            ids=ids.cpu().numpy(), before=p.gather(-1, ids).cpu().numpy(), after=q.gather(-1, ids).cpu().numpy()
        ),
        top_before=p.argmax(-1).cpu().numpy(),
        top_after=q.argmax(-1).cpu().numpy(),
    )


@torch.no_grad()
def representation_effect(
    backbone: Backbone,
    hook_point: str,
    sae: SparseAutoencoder,
    edits: Mapping[int, Edit],
    example: Example,
    *,
    positions: Sequence[int] | None = None,
    keep_error: bool = True,
) -> RepresentationEffect:
    """How the last layer's kept tokens of `example` change under `edits`; for models without a head too."""
    where = _positions(example, backbone, positions)
    last = f"layers.{backbone.n_layers - 1}"

    def rows() -> Tensor:
        ((_, found),) = backbone.activations([example], [last], batch_size=1)
        return found[last].float()

    before = rows()
    with steer(backbone, hook_point, sae, edits, positions=[where], keep_error=keep_error):
        after = rows()
    mean, changed = before.mean(0), after.mean(0)
    return RepresentationEffect(
        relative=float((changed - mean).norm() / mean.norm()),
        cosine=float(torch.nn.functional.cosine_similarity(mean, changed, dim=0)),
        by_token=((after - before).norm(dim=1) / before.norm(dim=1).clamp(min=1e-12)).cpu().numpy(),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class LogitAttribution:
    """What each active latent at one position adds to one logit on the direct path, later layers left out.

    At the last layer's output the parts are all there is: contributions + constant + error = logit.
    """

    latents: Int[np.ndarray, " active"]
    """Active latents, largest absolute contribution first."""
    activations: Float[np.ndarray, " active"]
    contributions: Float[np.ndarray, " active"]
    """Logits."""
    constant: float
    """Of what the decoder gives without any latent, and of the biases of final norm and head."""
    error: float
    """Of what the autoencoder does not explain."""
    logit: float
    """The logit itself, all paths."""


@torch.no_grad()
def direct_logit_attribution(
    backbone: CausalLM, hook_point: str, sae: SparseAutoencoder, example: Example, position: int, target: int
) -> LogitAttribution:
    """Attribute the logit of token `target` after `position` to the latents active there.

    The final norm is frozen at what it divides by in this very pass, so contributions add up. `hook_point` must be on
    the residual stream. Raises `ConfigError` for one of another width, and for a position or token that does not exist.
    """
    if backbone.width(hook_point) != backbone.d_model:
        raise ConfigError(
            f"{hook_point!r} has width {backbone.width(hook_point)}, the residual stream {backbone.d_model}."
        )
    if not 0 <= position < example.n_tokens:
        raise ConfigError(f"position={position}; the example has tokens 0 to {example.n_tokens - 1}.")
    W_U, gain = backbone.unembedding()
    if not 0 <= target < W_U.shape[1]:
        raise ConfigError(f"target={target}; the vocabulary has tokens 0 to {W_U.shape[1] - 1}.")
    points = [backbone.resolve(hook_point), backbone.resolve(f"layers.{backbone.n_layers - 1}")]
    with capture(backbone.model, list(dict.fromkeys(points))) as found:
        logit = float(backbone.logits([example])[0, position, target])
    x, final = found[points[0]][0, position].float(), found[points[1]][0, position].float()
    direction = W_U[:, target].float()
    bias = 0.0
    if gain is not None:
        norm = _final_norm(backbone)
        shift, is_centred, scale = _frozen(norm, final, gain.float())
        direction, bias = direction * gain.float() * scale, float(shift @ W_U[:, target].float())
        if is_centred:
            direction = direction - direction.mean()
    head: Any = backbone.model.get_output_embeddings()
    bias += float(head.bias[target]) if getattr(head, "bias", None) is not None else 0.0
    active = sae.encode_sparse(x[None])
    zeros = torch.zeros(1, sae.config.d_sae, dtype=sae.W_dec.dtype, device=x.device)
    nothing = sae.decode_for(x[None], zeros)[0].float()
    latents = active.latents.long()
    contributions = (
        active.values.float() * (sae.W_dec[latents].float() @ direction) * sae.output_scale(x[None])[0].float()
    )
    order = contributions.abs().argsort(descending=True, stable=True)
    return LogitAttribution(
        latents=latents[order].cpu().numpy(),
        activations=active.values[order].float().cpu().numpy(),
        contributions=contributions[order].cpu().numpy(),
        constant=float(nothing @ direction) + bias,
        error=float((x - sae.decode_sparse(active, x[None])[0].float()) @ direction),
        logit=logit,
    )


@torch.no_grad()
def direct_effects(
    backbone: CausalLM, hook_point: str, sae: SparseAutoencoder, example: Example
) -> tuple[Int[np.ndarray, " token"], Float[np.ndarray, " active"]]:
    """The token predicted after every token, and what every active latent adds to its logit on the direct path.

    Latents are those of `sae.encode_sparse` on the kept tokens, in its order; as in `direct_logit_attribution` the
    final norm is frozen. Raises `ConfigError` when `hook_point` is not on the residual stream, `BackboneError` without
    a head.
    """
    if backbone.width(hook_point) != backbone.d_model:
        raise ConfigError(f"{hook_point!r} is not on the residual stream, so there is no direct path to the logits.")
    W_U, gain = backbone.unembedding()
    points = [backbone.resolve(hook_point), backbone.resolve(f"layers.{backbone.n_layers - 1}")]
    with capture(backbone.model, list(dict.fromkeys(points))) as found:
        targets = backbone.logits([example])[0, : example.n_tokens].argmax(-1)
    kept = torch.from_numpy(np.asarray(example.kept, dtype=np.int64)).to(targets.device)
    x, final = (found[point][0].index_select(0, kept).float() for point in points)
    directions = W_U.T[targets[kept]].float()
    if gain is not None and len(x):
        norm = _final_norm(backbone)
        frozen = [_frozen(norm, row, gain.float()) for row in final]
        directions = directions * gain.float() * torch.tensor([[scale] for _, _, scale in frozen]).to(directions)
        if frozen[0][1]:
            directions = directions - directions.mean(1, keepdim=True)
    active = sae.encode_sparse(x)
    parts = [
        value.float() * (sae.W_dec[latent.long()].float() * directions[row]).sum(-1)
        for value, latent, row in zip(
            active.values.split(_CODES), active.latents.split(_CODES), active.rows().split(_CODES), strict=True
        )
    ]
    scale = sae.output_scale(x)[active.rows(), 0].float()
    return targets.cpu().numpy(), (torch.cat(parts) * scale).cpu().numpy()


def class_names(backbone: Backbone) -> dict[int, str]:
    """Names of the classes of a model's head, where its configuration has them."""
    names = getattr(getattr(backbone.model, "config", None), "id2label", None) or {}
    return {int(number): str(name) for number, name in names.items()}


def _positions(example: Example, backbone: Backbone, positions: Sequence[int] | None) -> Int[np.ndarray, " n"]:
    if positions is None:
        return np.asarray(example.kept, dtype=np.int64)
    n_tokens = backbone.n_tokens(example)
    wrong = [position for position in positions if not 0 <= position < n_tokens]
    if wrong:
        raise ConfigError(f"positions {wrong} do not exist; the model sees tokens 0 to {n_tokens - 1} of this input.")
    return np.asarray(positions, dtype=np.int64)


def _predictions(backbone: Backbone, example: Example) -> Float[Tensor, "prediction outcome"]:
    logits = backbone.logits([example]).float()
    if backbone.kind == "image":
        return logits
    if backbone.family != "causal_lm":
        raise BackboneError(f"{backbone.spec} ({backbone.family}) does not predict the next token.")
    if not example.n_tokens:
        raise InputError("The text is empty.")
    return logits[0, : example.n_tokens]


def _final_norm(backbone: CausalLM) -> Any:
    parent = backbone.model.get_submodule(backbone.blocks.path.rpartition(".")[0])
    return [
        module
        for name, module in parent.named_children()
        if "norm" in type(module).__name__.lower() and "embed" not in name
    ][-1]


def _frozen(
    norm: Any, x: Float[Tensor, " width"], gain: Float[Tensor, " width"]
) -> tuple[Float[Tensor, " width"], bool, float]:
    """The norm at `x` as an affine map: its bias, whether it centres, and what it multiplies by."""
    dtype = next(norm.parameters()).dtype
    bias = norm(torch.zeros_like(x, dtype=dtype)[None])[0].float()
    wanted = norm(x.to(dtype)[None])[0].float() - bias
    found = []
    for is_centred, middle in ((False, x), (True, x - x.mean())):
        scaled = gain * middle
        scale = float(wanted @ scaled / (scaled @ scaled))
        found.append((float((wanted - scale * scaled).norm()), is_centred, scale))
    _, is_centred, scale = min(found)
    return bias, is_centred, scale
