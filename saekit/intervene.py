"""Change a model from inside a latent: splice in a reconstruction, ablate latents, steer them, in any forward pass.

Each is a context manager: inside the block every forward pass of the backbone's model is changed, `generate` included;
after it, also after an exception, no hook is left.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saekit.autoencoders import Autoencoder, SparseAutoencoder, Transcoder
from saekit.backbones import Backbone, ImageTokens
from saekit.errors import ConfigError
from saekit.hooks import patch
from saekit.kernels import SparseLatents

Rows = Float[Tensor, "row width"]
Positions = Sequence[Int[np.ndarray, "_"]]
"""For each sequence of the batch, the positions to change, prefix included in the count (as in `Example.kept`)."""


@dataclass(frozen=True)
class Scale:
    """Multiply a latent's activation: 0 ablates it, 2 doubles it, and where it is silent it stays silent."""

    factor: float

    def __call__(self, activation: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        return activation * self.factor


@dataclass(frozen=True)
class Set:
    """Give a latent this activation on every changed token, whether or not it was active there."""

    value: float

    def __call__(self, activation: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        return torch.full_like(activation, self.value)


@dataclass(frozen=True)
class Add:
    """Raise a latent's activation by this much: adds its decoder direction to the stream, `value` long if unit-norm."""

    value: float

    def __call__(self, activation: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        return activation + self.value


Edit = Scale | Set | Add

_EDIT = re.compile(r"(\d+)([=+x])([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)
_SIGNS: dict[str, type[Edit]] = {"=": Set, "+": Add, "x": Scale}


def parse_edits(words: Sequence[str]) -> dict[int, Edit]:
    """Edits by latent from words: `17=8` sets latent 17 to 8, `17+4` adds 4, `17x0` multiplies by 0 (ablates it).

    Raises `ConfigError` that lists all words that are none, and latents that are named twice.
    """
    found = {word: _EDIT.fullmatch(word.strip()) for word in words}
    wrong = [word for word, match in found.items() if match is None]
    latents = [int(match[1]) for match in found.values() if match]
    twice = sorted({latent for latent in latents if latents.count(latent) > 1})
    large = [word for word, match in found.items() if match and abs(float(match[3])) > torch.finfo(torch.float32).max]
    if wrong or large or twice or not words:
        problems = [f"{word!r} is no edit" for word in wrong] + [f"{word!r} is too large" for word in large]
        problems += [f"latent {latent} is named twice" for latent in twice]
        raise ConfigError(
            f"edits: {'; '.join(problems) or 'none given'}. An edit is LATENT=VALUE (set), LATENT+VALUE (add) or "
            "LATENTxFACTOR (multiply; x0 ablates), for example 17=8."
        )
    return {int(match[1]): _SIGNS[match[2].lower()](float(match[3])) for match in found.values() if match}


@contextmanager
def splice(
    backbone: Backbone,
    hook_point: str,
    reconstruct: Callable[[Rows], Rows],
    *,
    positions: Positions | None = None,
) -> Iterator[None]:
    """Replace activations by `reconstruct(rows)`, e.g. an autoencoder, at the positions that extraction keeps.

    `reconstruct` takes and returns float32 [row width]. Without `positions` these are the tokens that extraction keeps
    by default (attention sinks and prefix tokens stay as they are; special tokens inside a text count as kept); with
    them, exactly those, for passes over one batch of those sequences.

    Raises `HookPointError`, and `ConfigError` when rows come back in another shape or positions do not fit the batch.
    """
    chooser = _given(positions) if positions is not None else _by_default(backbone)
    with chooser(backbone.model) as choose:

        def edit(x: Tensor) -> Tensor:
            changed = choose(x)
            rows = x[changed]
            if not len(rows):
                return x
            new = reconstruct(rows.float())
            if new.shape != rows.shape:
                raise ConfigError(
                    f"The reconstruction at {hook_point!r} has shape {list(new.shape)}; expected {list(rows.shape)}."
                )
            spliced = x.clone()
            spliced[changed] = new.to(spliced)
            return spliced

        with patch(backbone.model, {backbone.resolve(hook_point): edit}):
            yield


@contextmanager
def ablate(
    backbone: Backbone,
    hook_point: str,
    sae: Autoencoder,
    latents: Sequence[int],
    *,
    positions: Positions | None = None,
    keep_error: bool = True,
) -> Iterator[None]:
    """Set `latents` to zero in every forward pass; see `steer`."""
    edits = dict.fromkeys(latents, Set(0.0))
    with steer(backbone, hook_point, sae, edits, positions=positions, keep_error=keep_error):
        yield


@contextmanager
def steer(
    backbone: Backbone,
    hook_point: str,
    sae: Autoencoder,
    edits: Mapping[int, Edit],
    *,
    positions: Positions | None = None,
    keep_error: bool = True,
) -> Iterator[None]:
    """Edit latents in every forward pass: `steer(lm, "layers.15", sae, {17: Set(8.0), 3: Scale(0)})`.

    With `keep_error`, what the autoencoder does not explain is kept: x' = x - decode(latents) + decode(edited), so that
    no edits mean no change. Without it x' = decode(edited), the reconstruction's own error included. `positions` are as
    in `splice`; in `generate` they count from the first token of the prompt, and positions past it are tokens that are
    written later.

    Raises `HookPointError`, and `ConfigError` for latents that do not exist (all of them) or for a width mismatch.
    """
    width = backbone.width(hook_point)
    d_in, d_latent = _shape(sae)
    if d_in != width:
        raise ConfigError(f"The autoencoder takes width {d_in}; {hook_point!r} has width {width}.")
    for latent, edit in edits.items():
        if not callable(edit):
            raise ConfigError(
                f"The edit of latent {latent} is {edit!r}; it is Set({edit!r}), Scale({edit!r}) or Add({edit!r})."
            )
    unknown = sorted(latent for latent in edits if not 0 <= latent < d_latent)
    if unknown:
        raise ConfigError(f"No such latents: {unknown}; the autoencoder has 0 to {d_latent - 1}.")

    # Decoding is affine and only a few latents change: their rows of the decoder are all that has to be added.
    is_sparse = isinstance(sae, SparseAutoencoder) and sae.sparsifier.active_above == 0

    def reconstruct(x: Rows) -> Rows:
        return _steered_sparse(sae, x, edits, keep_error) if is_sparse else _steered_dense(sae, x, edits, keep_error)

    with splice(backbone, hook_point, reconstruct, positions=positions):
        yield


@torch.no_grad()
def _steered_dense(sae: Autoencoder, x: Rows, edits: Mapping[int, Edit], keep_error: bool) -> Rows:
    latents = sae.encode(x)
    edited = latents.clone()
    for latent, edit in edits.items():
        edited[:, latent] = edit(latents[:, latent])
    decoded = sae.decode_for(x, edited)
    return x + (decoded - sae.decode_for(x, latents)) if keep_error else decoded


@torch.no_grad()
def _steered_sparse(sae: Any, x: Rows, edits: Mapping[int, Edit], keep_error: bool) -> Rows:
    active: SparseLatents = sae.encode_sparse(x)
    chosen = torch.tensor(sorted(edits), dtype=torch.int64, device=x.device)
    at = torch.full((sae.config.d_sae,), -1, dtype=torch.int64, device=x.device)
    at[chosen] = torch.arange(len(chosen), device=x.device)
    where = at[active.latents.long()]
    hit = where >= 0
    before = active.values.new_zeros(len(x), len(chosen))
    before[active.rows()[hit], where[hit]] = active.values[hit]
    if len(chosen):
        after = torch.stack([edits[latent](before[:, i]) for i, latent in enumerate(chosen.tolist())], 1)
        change = (after - before) @ sae.W_dec[chosen] * sae.output_scale(x)
    else:
        change = torch.zeros_like(x)
    return change + (x if keep_error else sae.decode_sparse(active, x))


Choose = Callable[[Tensor], Bool[Tensor, "batch token"]]
Chooser = Callable[[nn.Module], AbstractContextManager[Choose]]


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Any]]:
    """What the forward pass that is running was given: how many tokens came before (in a cache), and its mask."""
    seen: dict[str, Any] = {"n_before": 0, "attention_mask": None, "is_cached": False}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        seen["n_before"] = cache.get_seq_length() if cache is not None else 0
        seen["attention_mask"] = kwargs.get("attention_mask")
        seen["is_cached"] = bool(kwargs.get("use_cache"))

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _given(positions: Positions) -> Chooser:
    @contextmanager
    def chooser(model: nn.Module) -> Iterator[Choose]:
        longest = max((int(p.max()) + 1 for p in positions if len(p)), default=0)
        with _watched(model) as seen:

            def choose(x: Tensor) -> Bool[Tensor, "batch token"]:
                # A pass that fills a cache is part of a longer text: later positions come in later passes.
                is_short = not seen["is_cached"] and x.ndim == 3 and seen["n_before"] + x.shape[1] < longest
                if x.ndim != 3 or x.shape[0] != len(positions) or is_short:
                    raise ConfigError(
                        f"positions are for {len(positions)} sequences of at least {longest} tokens; the activation "
                        f"has shape {list(x.shape)}. Run the forward pass on exactly those sequences."
                    )
                chosen = torch.zeros(x.shape[:2], dtype=torch.bool)
                for row, where in zip(chosen, positions, strict=True):
                    here = where.astype(np.int64) - seen["n_before"]
                    row[torch.from_numpy(here[(here >= 0) & (here < len(row))])] = True
                return chosen.to(x.device)

            yield choose

    return chooser


def _by_default(backbone: Backbone) -> Chooser:
    """All tokens but the ones that extraction drops at the front, wherever in a sequence a cached pass stands."""
    options = backbone.default_options()
    if isinstance(options, ImageTokens):
        kept = [any(name.startswith(kind) for kind in options.keep) for name in backbone.layout.prefix]
        keeps_patches = "patch" in options.keep
    else:
        kept = [False] * options.drop_first
        keeps_patches = True

    @contextmanager
    def chooser(model: nn.Module) -> Iterator[Choose]:
        with _watched(model) as seen:

            def choose(x: Tensor) -> Bool[Tensor, "batch token"]:
                if x.ndim != 3:
                    raise ConfigError(f"Interventions need activations [batch token width], not {list(x.shape)}.")
                n_batch, n_tokens = x.shape[:2]
                mask, n_before = seen["attention_mask"], seen["n_before"]
                if mask is None or mask.ndim != 2 or mask.shape[1] < n_before + n_tokens:
                    position = torch.arange(n_before, n_before + n_tokens, device=x.device).expand(n_batch, n_tokens)
                    real = torch.ones_like(position, dtype=torch.bool)
                else:
                    # Counts real tokens only, so that it holds for padding on either side and for cached passes.
                    real = mask[:, n_before : n_before + n_tokens].to(x.device).bool()
                    position = (mask.to(x.device).bool().cumsum(1) - 1)[:, n_before : n_before + n_tokens]
                table = torch.tensor([*kept, keeps_patches], device=x.device)
                return real & table[position.clamp(0, len(kept))]

            yield choose

    return chooser


def _shape(sae: Autoencoder) -> tuple[int, int]:
    """d_in and the number of latents; the latter asked of `encode`, because configs name it differently."""
    d_in = int(sae.config.d_in)
    if isinstance(sae, Transcoder):
        raise ConfigError("A transcoder's latents write to another hook point than the one that they are read from.")
    with torch.no_grad():
        return d_in, sae.encode(next(sae.parameters()).new_zeros(1, d_in)).shape[-1]
