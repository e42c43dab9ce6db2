"""`saekit steer`: what a model writes, or how it sees an image, when latents are edited in every forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saekit.autoencoders import SparseAutoencoder, load_autoencoder
from saekit.backbones import Backbone, CausalLM, ImageTokens, TextWindows, load_backbone
from saekit.errors import BackboneError, CheckpointError, ConfigError, InputError
from saekit.evaluation.effects import class_names, prediction_effect, representation_effect
from saekit.files import from_tagged, to_tagged, write_json
from saekit.inputs import SkipLog, read_images
from saekit.intervene import Edit, parse_edits, steer
from saekit.jobs.index import find_checkpoint
from saekit.store import Example


@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """Edit latents in every forward pass: compare what a language model writes, or how a vision model sees images.

    What the autoencoder does not explain is kept, so that an edit of nothing changes nothing."""

    checkpoint: Path
    """Folder of a training run, or of a checkpoint."""
    edits: tuple[str, ...]
    """Latents and what to do with them: 17=8 sets latent 17 to 8 on every token, 17+8 adds 8, 17x2 doubles it, 17x0
    ablates it."""
    prompt: str | None = None
    """Text to continue (language models)."""
    inputs: Path | None = None
    """Image file or folder of images (vision models)."""
    n_tokens: int = 40
    """Tokens to write."""
    n_images: int = 8
    """Images of the folder to look at."""
    positions: tuple[int, ...] | None = None
    """Positions to change, counted from 0 with the prefix; by default all but the first of a text, the patches of an
    image."""
    keep_error: bool = True
    """Keep what the autoencoder does not explain; without, the edited reconstruction replaces the activations."""
    hook_point: str | None = None
    """Where; by default where the checkpoint was trained."""
    backbone: str = "recorded"
    """Model; by default the one that the checkpoint was trained on."""
    out: Path | None = None
    """JSON file for the result; by default it is printed only."""
    device: str | None = None
    """cpu or cuda; by default cuda where there is one."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} is not 1 or larger"
            for name in ("n_tokens", "n_images")
            if getattr(self, name) < 1
        ]
        if (self.prompt is None) == (self.inputs is None):
            problems.append("give either --prompt (language models) or --inputs (vision models)")
        if problems:
            raise ConfigError(f"SteerConfig: {'; '.join(problems)}.")
        parse_edits(self.edits)


def run(config: SteerConfig) -> Path:
    """Steer as `config` says and print the comparison; returns the file written, or the checkpoint."""
    edits = parse_edits(config.edits)
    checkpoint = find_checkpoint(config.checkpoint)
    sae = load_autoencoder(checkpoint)
    if not isinstance(sae, SparseAutoencoder):
        raise CheckpointError(f"{checkpoint} holds a {type(sae).__name__}; steering needs a SparseAutoencoder.")
    # Before the model is loaded, which is what takes long.
    check_latents(edits, sae.config.d_sae)
    if config.out is not None and config.out.is_dir():
        raise ConfigError(f"--out {config.out} is a folder; it is the JSON file to write.")
    provenance = sae.provenance or {}
    recorded = provenance.get("backbone") or {}
    spec = recorded.get("spec") if config.backbone == "recorded" else config.backbone
    point = config.hook_point or provenance.get("hook_point")
    if spec is None or point is None:
        foreign = (provenance.get("source") or {}).get("model_name") or "MODEL"
        wanted = (("--backbone " + foreign, spec), ("--hook-point POINT", point))
        missing = [word for word, value in wanted if value is None]
        raise ConfigError(f"{checkpoint} does not say which model or hook point it is for. Type: {' '.join(missing)}")
    backbone = load_backbone(spec, device=config.device)
    sae.to(backbone.device).requires_grad_(False)
    options = _options(backbone, provenance)
    if config.prompt is not None:
        result = steer_text(
            backbone, point, sae, edits, config.prompt, config.n_tokens, config.positions, config.keep_error, options
        )
        shown = _shown_text(result)
    else:
        assert config.inputs is not None, "the config refuses that"
        examples = _examples(backbone, config.inputs, config.n_images, options)
        result = steer_images(backbone, point, sae, edits, examples, config.positions, config.keep_error)
        shown = _shown_images(result)
    print(shown)
    if config.out is None:
        return checkpoint
    write_json(config.out, {"kind": "Steering", "schema": 1, **result, "config": to_tagged(config)})
    print(config.out)
    return config.out


def steer_text(
    backbone: Backbone,
    hook_point: str,
    sae: SparseAutoencoder,
    edits: Mapping[int, Edit],
    prompt: str,
    n_tokens: int = 40,
    positions: Sequence[int] | None = None,
    keep_error: bool = True,
    options: TextWindows | None = None,
) -> dict[str, Any]:
    """The greedy continuation of `prompt` without and with `edits`, and what they do to its next token, as JSON.

    Raises `ConfigError` when the model does not write text, and as `saekit.intervene.steer` does.
    """
    if not isinstance(backbone, CausalLM):
        raise ConfigError(f"{backbone.spec} ({backbone.family}) does not write text; give it --inputs IMAGES.")
    if not prompt.strip():
        raise InputError("The prompt is empty.")
    where = None if positions is None else [np.asarray(positions, dtype=np.int64)]
    before = backbone.generate(prompt, n_tokens)
    with steer(backbone, hook_point, sae, edits, positions=where, keep_error=keep_error):
        after = backbone.generate(prompt, n_tokens)
    ids = backbone.encode_text(prompt)
    n_dropped = (options or backbone.default_options()).drop_first
    example = Example(
        document="prompt",
        token_ids=np.array(ids, dtype=np.int32),
        kept=np.arange(min(n_dropped, len(ids) - 1), len(ids), dtype=np.int32),
    )
    inside = None if positions is None else [position for position in positions if position < len(ids)]
    effect = prediction_effect(backbone, hook_point, sae, edits, example, positions=inside, keep_error=keep_error)
    vocabulary = backbone.token_bytes()
    return {
        "prompt": prompt,
        "edits": shown_edits(edits),
        "hook_point": hook_point,
        "without": before,
        "with": after,
        "next_token_kl": float(effect.kl[-1]),
        "movers": [
            {
                "token": vocabulary[token].decode("utf-8", "replace"),
                "id": int(token),
                "before": float(p),
                "after": float(q),
            }
            for token, p, q in zip(
                effect.movers.ids[-1], effect.movers.before[-1], effect.movers.after[-1], strict=True
            )
        ],
    }


def steer_images(
    backbone: Backbone,
    hook_point: str,
    sae: SparseAutoencoder,
    edits: Mapping[int, Edit],
    examples: Sequence[Example],
    positions: Sequence[int] | None = None,
    keep_error: bool = True,
) -> dict[str, Any]:
    """How the final representation of each image, and its class where the model has a head, changes, as JSON."""
    if backbone.kind != "image":
        raise ConfigError(f"{backbone.spec} ({backbone.family}) reads texts; give it --prompt TEXT.")
    names, found = class_names(backbone), []
    for example in examples:
        seen = {"positions": positions, "keep_error": keep_error}
        change = representation_effect(backbone, hook_point, sae, edits, example, **seen)  # type: ignore[arg-type]
        image: dict[str, Any] = {
            "image": example.document,
            "representation_change": change.relative,
            "representation_cosine": change.cosine,
        }
        try:
            effect = prediction_effect(backbone, hook_point, sae, edits, example, **seen)  # type: ignore[arg-type]
        except BackboneError:
            effect = None
        if effect is not None:
            image |= {
                "class_kl": float(effect.kl[0]),
                "class_before": names.get(int(effect.top_before[0]), str(effect.top_before[0])),
                "class_after": names.get(int(effect.top_after[0]), str(effect.top_after[0])),
            }
        found.append(image)
    return {"edits": shown_edits(edits), "hook_point": hook_point, "images": found}


def check_latents(edits: Mapping[int, Edit], d_sae: int) -> None:
    """Raise `ConfigError` that names every latent that does not exist."""
    unknown = sorted(latent for latent in edits if not 0 <= latent < d_sae)
    if unknown:
        raise ConfigError(f"No such latents: {unknown}; the autoencoder has 0 to {d_sae - 1}.")


def shown_edits(edits: Mapping[int, Edit]) -> list[str]:
    """Edits as people type them."""
    signs = {"Set": "=", "Add": "+", "Scale": "x"}
    return [
        f"{latent}{signs[type(edit).__name__]}{getattr(edit, 'factor', getattr(edit, 'value', 0.0)):g}"
        for latent, edit in edits.items()
    ]


def _options(backbone: Backbone, provenance: Mapping[str, Any]) -> Any:
    recorded = provenance.get("options")
    options = from_tagged(recorded, TextWindows | ImageTokens) if recorded else backbone.default_options()
    is_text = isinstance(options, TextWindows)
    if is_text != (backbone.kind == "text"):
        raise ConfigError(
            f"{backbone.spec} reads {backbone.kind}s; the checkpoint was trained on another kind of model."
        )
    return options


def _examples(backbone: Backbone, inputs: Path, n_images: int, options: Any) -> list[Example]:
    if backbone.kind != "image":
        raise ConfigError(f"{backbone.spec} ({backbone.family}) reads texts; give it --prompt TEXT.")
    skipped = SkipLog()
    examples: list[Example] = []
    for example in backbone.examples(read_images(inputs, skipped=skipped), options, skipped):
        examples.append(example)
        if len(examples) == n_images:
            break
    if not examples:
        raise InputError(f"{inputs} has no readable image.")
    return examples


def _shown_text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{', '.join(result['edits'])} at {result['hook_point']}",
        "",
        f"prompt   {result['prompt']}",
        f"without  {result['without']}",
        f"with     {result['with']}",
        "",
        f"Next token after the prompt: KL {result['next_token_kl']:.4f} nats. Largest changes of probability:",
    ]
    lines += [f"  {each['before']:7.2%} -> {each['after']:7.2%}  {each['token']!r}" for each in result["movers"][:6]]
    return "\n".join(lines)


def _shown_images(result: Mapping[str, Any]) -> str:
    lines = [f"{', '.join(result['edits'])} at {result['hook_point']}; change of the final representation:"]
    for each in result["images"]:
        line = f"  {each['representation_change']:8.2%}  cosine {each['representation_cosine']:.4f}  {each['image']}"
        if "class_kl" in each:
            line += f"  class {each['class_before']} -> {each['class_after']} (KL {each['class_kl']:.4f})"
        lines.append(line)
    return "\n".join(lines)
