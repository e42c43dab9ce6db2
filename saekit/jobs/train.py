"""`saekit train`: a sparse autoencoder, or a sweep of them, on the rows of a store."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float

from saekit.autoencoders import SparseAutoencoder, SparseAutoencoderConfig, TopK
from saekit.autoencoders.initial import start_bias_at_median_, start_from_data_
from saekit.autoencoders.sparsity import Sparsity
from saekit.backbones.base import resolve_device
from saekit.errors import ConfigError
from saekit.evaluation.rows import random_documents, row_chunks
from saekit.files import Json, write_json
from saekit.store import ActivationStore
from saekit.store.split import held_out
from saekit.training import FitConfig, FitResult, fit
from saekit.training.health import Health, measure_health
from saekit.training.memory import refuse_wide_dictionary
from saekit.training.recipes import RecipeName, StartBias, get_recipe
from saekit.training.sweep import label_of, pareto_front, parse_axes, sweep_configs, write_pareto

HELD_OUT_ROWS = 16_384
"""Rows that the printed numbers are taken over: whole held-out documents, this many rows or a few more."""
MEDIAN_ROWS = 32_768
"""Rows that a geometric median is taken over."""
MIN_STEPS = 500
"""A recipe whose batches make fewer steps than this says so."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a sparse autoencoder on a store.

    Give --d-sae or --expansion, and name the sparsity last, its own options after it:
    saekit train --store acts --out run --expansion 16 top-k --k 32

    A sweep trains several on one pass over the activations and draws their trade-off (pareto.png):
    saekit train --store acts --out run --expansion 16 --sweep k=16,32,64 --sweep seed=0,1 top-k

    A recipe is a published way of training, under its name; what is given beside it counts before it:
    saekit train --store acts --out run --expansion 16 --recipe gao_topk --batch-size 4096

    A killed run goes on from its last save when the same command is given again, to the same weights.
    """

    store: Path
    """The activation store (saekit extract)."""
    out: Path
    """Directory of the run: checkpoint/, metrics.jsonl, report.png, report.html; of a sweep also sweep.json and
    pareto.png. New, or the run to go on with."""
    sparsity: Annotated[Sparsity, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes] = field(
        default_factory=TopK
    )
    """What makes latents sparse; its options come after its name."""
    recipe: RecipeName | None = None
    """Take sparsity, optimizer, schedules and batch size from this published recipe (docs/recipes.md)."""
    d_sae: int | None = None
    """Number of latents."""
    expansion: int | None = None
    """Number of latents as a multiple of the activations' width, instead of d_sae."""
    sweep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Train one autoencoder for each value, NAME=VALUE,VALUE,...; given several times, for each combination. NAME is
    d_sae, expansion, seed, or a number among the options of the sparsity (k, l1, ...)."""
    hook_point: str | None = None
    """Which hook point of the store (default: the only one)."""
    n_tokens: int | None = None
    """Rows to train on, counting repeats: beyond the store's rows it begins again in a new order (default: all rows
    once)."""
    batch_size: int = 4096
    """Rows per step."""
    held_out_share: float = 0.05
    """Share of documents, by a fixed hash of their id, never trained on and measured at the end; saekit eval uses the
    same ones."""
    decoder_norm: Literal["auto", "unit", "free"] = "auto"
    """Norm of the decoder's rows: held at 1, free, or what suits the sparsity."""
    decoder_init_norm: float = 1.0
    """Norm that the rows of a free decoder start from."""
    target_l0: float | None = None
    """Steer the weight of the sparsity penalty until this many latents per row are active."""
    start_from_data: float = 0.0
    """Share of a row of the store in each initial latent, the rest being random; saev uses 0.8."""
    start_bias: StartBias = "mean"
    """b_dec starts at the mean of the activations or at their geometric median."""
    dead_after_tokens: int | None = None
    """A latent silent for this many tokens counts as dead (default: a tenth of the run, at most 10 million)."""
    seed: int = 0
    """Draws the initial weights and the order of the rows."""
    device: str | None = None
    """cpu or cuda (default: cuda where there is one)."""
    fit: Annotated[FitConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=FitConfig)
    """The optimizer, its schedules, and how often to log and to save."""
    has_recipe: Annotated[bool, tyro.conf.Suppress] = False
    """Whether the settings of `recipe` are in the other fields already; `recipe_config` sees to it."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value} is not 1 or larger"
            for name in ("d_sae", "expansion", "n_tokens", "batch_size", "dead_after_tokens")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        axes = parse_axes(self.sweep)
        if (self.d_sae is None) == (self.expansion is None) and not {"d_sae", "expansion"} & set(axes):
            problems.append(
                f"exactly one of d_sae={self.d_sae} and expansion={self.expansion} is needed, e.g. --expansion 16"
            )
        if not 0 <= self.held_out_share < 1:
            problems.append(f"held_out_share={self.held_out_share} is not in [0, 1)")
        if not 0 <= self.start_from_data <= 1:
            problems.append(f"start_from_data={self.start_from_data} is not in [0, 1]")
        if problems:
            raise ConfigError(f"TrainConfig: {'; '.join(problems)}.")


def run(config: TrainConfig) -> Path:
    """Train what `config` describes, print where the run is and its three numbers; returns the run's directory."""
    device = resolve_device(config.device)
    store = ActivationStore.open(config.store)
    if config.recipe is not None and not config.has_recipe:
        raise ConfigError(
            f"TrainConfig(recipe={config.recipe!r}) alone changes nothing else. "
            f"Type: recipe_config({config.recipe!r}, store=..., out=..., ...)"
        )
    point = store.resolve(config.hook_point)
    d_in = store.d_model(point)
    # A sweep over the width gives it; any stands in for it here.
    d_sae = config.d_sae or d_in * (config.expansion or 1)
    is_out = held_out_rows(store, config.held_out_share)
    n_tokens = config.n_tokens or int((~is_out).sum())
    dead_after_tokens = config.dead_after_tokens or max(1, min(10_000_000, n_tokens // 10))
    if config.recipe is not None and n_tokens < MIN_STEPS * config.batch_size:
        logger.info(
            "%s: %d tokens in batches of %d rows make %d steps; a smaller --batch-size makes more.",
            *(config.recipe, n_tokens, config.batch_size, -(-n_tokens // config.batch_size)),
        )
    sae_config = SparseAutoencoderConfig(
        d_in=d_in,
        d_sae=d_sae,
        sparsity=config.sparsity,
        decoder_norm=config.decoder_norm,
        decoder_init_norm=config.decoder_init_norm,
        target_l0=config.target_l0,
        dead_after_tokens=dead_after_tokens,
        seed=config.seed,
    )
    points = sweep_configs(sae_config, parse_axes(config.sweep))
    refuse_wide_dictionary(d_in, sum(point.d_sae for _, point in points), device)
    saes = [SparseAutoencoder(point).to(device) for _, point in points]
    result = train(
        saes,
        store,
        config.out,
        hook_point=point,
        n_tokens=n_tokens,
        batch_size=config.batch_size,
        held_out_share=config.held_out_share,
        seed=config.seed,
        config=config.fit,
        start_from_data=config.start_from_data,
        start_bias=config.start_bias,
    )
    if result.was_finished:
        print(f"{config.out} was finished already; nothing was trained.")
    print(config.out)
    healths = [measure(sae, store, point, is_out) for sae in saes]
    models = {path.name: health.to_json() for path, health in zip(result.checkpoints, healths, strict=True)}
    write_json(config.out / "health.json", {"kind": "Health", "schema": 1, "models": models})
    if len(saes) == 1:
        print(summary(saes[0], store, healths[0], is_out, result))
        print(healths[0])
    else:
        settings = [settings for settings, _ in points]
        print(summarize_sweep(config.out, settings, healths, store, point, is_out, result))
    return config.out


def recipe_config(recipe: RecipeName, **fields: Any) -> TrainConfig:
    """A config with the settings of a recipe, those in `fields` counting before it (`store` and `out` among them)."""
    config = defaults_of(TrainConfig(recipe=recipe, **fields))
    if config is None:
        raise ConfigError(f"A recipe needs the store that it is for, and {fields['store']} is none.")
    return replace(config, **fields)


def defaults_of(config: TrainConfig) -> TrainConfig | None:
    """`config` with the settings of its recipe; None without a recipe, or without a store to make it for."""
    if config.recipe is None or not (config.store / "meta.json").exists():
        return None
    store = ActivationStore.open(config.store)
    point = store.resolve(config.hook_point)
    d_in = store.d_model(point)
    n_tokens = config.n_tokens or int((~held_out_rows(store, config.held_out_share)).sum())
    d_sae = config.d_sae or d_in * (config.expansion or 1)
    settings = get_recipe(config.recipe).settings(d_in, d_sae, n_tokens, store.moments(point)[1])
    return replace(
        config,
        sparsity=settings.autoencoder.sparsity,
        decoder_norm=settings.autoencoder.decoder_norm,
        decoder_init_norm=settings.autoencoder.decoder_init_norm,
        dead_after_tokens=settings.autoencoder.dead_after_tokens,
        batch_size=settings.batch_size,
        start_from_data=settings.start_from_data,
        start_bias=settings.start_bias,
        fit=settings.fit,
        has_recipe=True,
    )


def train(
    sae: SparseAutoencoder | Sequence[SparseAutoencoder],
    store: ActivationStore,
    out: str | Path,
    *,
    hook_point: str | None = None,
    n_tokens: int | None = None,
    batch_size: int = 4096,
    held_out_share: float = 0.0,
    seed: int = 0,
    config: FitConfig | None = None,
    start_from_data: float = 0.0,
    start_bias: StartBias = "mean",
) -> FitResult:
    """Set the input moments of `sae` to the store's, and fit it, where it is, to the store's shuffled rows.

    Several autoencoders are trained side by side, on the same batches. With `start_from_data` their latents begin
    turned to rows (`start_from_data_`); `start_bias` is where b_dec begins.

    The moments are those of all rows, held-out ones included; nothing else is learnt from these. By default every
    other row is used once. The checkpoint in `out` remembers backbone, hook point, store and `held_out_share`.

    Raises `ConfigError` (a width that is not the store's, every document held out, out of memory), `CheckpointError`
    (`out` holds another run), `StoreError` (rows that are not finite).
    """
    point = store.resolve(hook_point)
    saes = [sae] if isinstance(sae, SparseAutoencoder) else list(sae)
    for each in saes:
        if each.config.d_in != store.d_model(point):
            raise ConfigError(
                f"{store.path} is {store.d_model(point)} wide at {point} and the autoencoder takes "
                f"d_in={each.config.d_in}."
            )
    is_out = held_out_rows(store, held_out_share)
    mean, mean_squared_norm = store.moments(point)
    for each in saes:
        each.set_input_moments_(torch.as_tensor(mean, dtype=torch.float32).to(each.input_mean), mean_squared_norm)
        if start_bias == "median":
            start_bias_at_median_(each, random_rows(store, point, ~is_out, MEDIAN_ROWS, seed))
        if start_from_data > 0:
            start_from_data_(each, random_rows(store, point, ~is_out, each.config.d_sae, seed), start_from_data, seed)
    provenance = {
        **store.provenance(point),
        # Recorded as it came out: a store of few documents may hold none out, and `evaluate` then uses them all.
        "held_out_share": held_out_share if is_out.any() else 0.0,
        "seed": seed,
    }
    with store.batches(
        batch_size,
        seed=seed,
        hook_point=point,
        n_tokens=n_tokens or int((~is_out).sum()),
        device=saes[0].W_dec.device,
        rows=np.flatnonzero(~is_out) if is_out.any() else None,
    ) as batches:
        return fit(saes, batches, config, out=out, provenance=provenance)


def random_rows(
    store: ActivationStore, hook_point: str, among: Bool[np.ndarray, " n_rows"], n: int, seed: int
) -> Float[torch.Tensor, "rows d_in"]:
    """`n` rows, or all if there are fewer, drawn without repeats, in the store's order."""
    pool = np.flatnonzero(among)
    chosen = np.random.default_rng(seed).choice(pool, min(len(pool), n), replace=False)
    return torch.cat([store.rows(i, i + 1, hook_point) for i in np.sort(chosen).tolist()]).float()


def held_out_rows(store: ActivationStore, share: float) -> Bool[np.ndarray, " n_rows"]:
    """Which rows are of documents that training leaves out. Raises `ConfigError` when that is all of them."""
    table = store.examples
    if share == 0:
        return np.zeros(store.n_rows, dtype=bool)
    is_out: Bool[np.ndarray, " n_rows"] = held_out(table.documents, share)[table.document_of][table.row_example]
    if is_out.all():
        raise ConfigError(
            f"All {len(table.documents)} documents of {store.path} are held out at held_out_share={share}; "
            "give a smaller share, or 0."
        )
    return is_out


def summary(
    sae: SparseAutoencoder,
    store: ActivationStore,
    health: Health,
    is_out: Bool[np.ndarray, " n_rows"],
    result: FitResult,
) -> str:
    """One line: L0 and FVU (of held-out documents where there are some), share of dead latents, and over what."""
    if is_out.any():
        numbers = f"L0 {health.l0:.1f}, FVU {health.fvu:.4f} on {health.n_tokens:,} tokens of held-out documents"
    else:
        final, n_rows = result.final[0], result.n_tokens - result.final[0]["first_token"]
        epochs = result.n_tokens / store.n_rows
        numbers = (
            f"L0 {final['l0']:.1f}, FVU {final['fvu']:.4f} on the last {n_rows:,} training tokens, before each was "
            f"learnt from (pass {epochs:.1f} over the store; no document is held out)"
        )
    silent = f"silent for the last {sae.config.dead_after_tokens:,} training tokens"
    return f"{numbers}; dead {float(sae.is_dead.float().mean()):.1%} of {sae.config.d_sae:,} latents ({silent})"


def summarize_sweep(
    out: Path,
    settings: Sequence[Json],
    healths: Sequence[Health],
    store: ActivationStore,
    hook_point: str,
    is_out: Bool[np.ndarray, " n_rows"],
    result: FitResult,
) -> str:
    """A table of the sweep's points, one line each; writes `sweep.json` and `pareto.png` into `out`."""
    points: list[Json] = []
    for i, (health, point) in enumerate(zip(healths, settings, strict=True)):
        final = result.final[i]
        l0, fvu, n_rows = final["l0"], final["fvu"], result.n_tokens - final["first_token"]
        if is_out.any():
            l0, fvu, n_rows = health.l0, health.fvu, health.n_tokens
        dead = health.dead
        checkpoint = result.checkpoints[i].name
        points.append({"settings": point, "checkpoint": checkpoint, "l0": l0, "fvu": fvu, "dead": dead})
    over = f"{n_rows:,} {'held-out' if is_out.any() else 'training'} tokens"
    write_json(out / "sweep.json", {"kind": "Sweep", "schema": 1, "measured_on": over, "points": points})
    write_pareto(out / "pareto.png", points, f"{store.path.name}, {hook_point}: {over}")
    names = [label_of(point) for point in settings]
    width = max(len(name) for name in names)
    best = {point["checkpoint"] for point in pareto_front(points)}
    lines = [f"{'':<{width}}  {'L0':>7}  {'FVU':>7}  {'dead':>6}  checkpoint   (on {over}; * no other beats it)"]
    for name, point in zip(names, points, strict=True):
        mark = "*" if point["checkpoint"] in best else " "
        lines.append(
            f"{name:<{width}}  {point['l0']:>7.1f}  {point['fvu']:>7.4f}  {point['dead']:>6.1%}  "
            f"{point['checkpoint']} {mark}"
        )
    return "\n".join([*lines, str(out / "pareto.png")])


def measure(
    sae: SparseAutoencoder, store: ActivationStore, hook_point: str, is_out: Bool[np.ndarray, " n_rows"]
) -> Health:
    """Over random held-out documents, or any where none is held out: `HELD_OUT_ROWS` rows if there are so many."""
    examples = np.unique(store.row_example[is_out] if is_out.any() else store.row_example)
    chosen = random_documents(store, examples, HELD_OUT_ROWS, seed=0)
    chunks = row_chunks(store, chosen, hook_point, chunk_rows=1024, device=sae.W_dec.device)
    return measure_health(sae, (rows for rows, _ in chunks))
