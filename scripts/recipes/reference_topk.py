"""The reference: 768 -> 24576 TopK (k = 32, AuxK) on a residual stream, after Gao et al. 2024 (arXiv:2406.04093).

Command   saekit extract --model openai-community/gpt2 --source TEXTS --hook-points layers.8
              --n-tokens 100000000 --out acts    (TEXTS: a folder, JSONL, Parquet or hf: dataset of English prose)
          python scripts/recipes/reference_topk.py --store acts --out runs/reference-topk
Hardware  one CUDA GPU with 8 GB or more (0.6 GB for parameters, gradients and Adam; about 2 GB for a batch of 4096);
          150 GB of disk for the store in bf16; on a CPU, 4 GB of memory.
Minutes   not measured on a GPU yet. On one core of a 2-core cloud machine a step of 1024 rows takes 0.8 s of processor
          time (1,250 tokens/s), so a CPU is for trying things out.
Expected  L0 32 by construction. Others report an explained variance of 0.96 (FVU 0.04) for 32,768 latents with k = 32
          on the residual stream of this model's first layers; it falls with depth. Not reproduced here yet.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from saekit.jobs.train import recipe_config, run


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """768 -> 24576 TopK on a store of width 768."""

    store: Path
    """An activation store of width 768."""
    out: Path
    """Directory of the run."""
    smoke: bool = False
    """A few steps of a narrow dictionary, to see that everything runs."""


def main(arguments: Arguments) -> Path:
    """Train, or with `smoke` only seem to; returns the run's directory."""
    # The published batch of 131,072 rows is for a run of 8 billion tokens.
    config = recipe_config(
        "gao_topk", store=arguments.store, out=arguments.out, d_sae=24576, n_tokens=300_000_000, batch_size=4096
    )
    config = replace(config, fit=replace(config.fit, lr_warmup_fraction=0.01, lr_decay_fraction=0.2))
    if arguments.smoke:
        config = replace(config, d_sae=128, n_tokens=256, batch_size=64, held_out_share=0.0)
    return run(config)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
