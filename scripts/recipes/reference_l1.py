"""The reference width with an L1 penalty: 768 -> 24576 ReLU, after Conerly et al. 2024 (April update).

Command   python scripts/recipes/reference_l1.py --store acts --out runs/reference-l1   (store: see reference_topk.py)
Hardware  as reference_topk.py.
Minutes   not measured on a GPU yet; on a CPU about twice the time of reference_topk.py while the code is dense.
Expected  l1 is the weight at E||x||^2 = 768, where published runs used 2 to 10; L0 falls as l1 rises. Look at the first
          5 million tokens of metrics.jsonl and choose l1 for the L0 you want. Not reproduced here yet.

The decoder is free and the penalty weighted by its rows' norms; lr and warm-up are that update's (5e-5, penalty from 0
over the first 5 % of training, lr to 0 over the last 20 %).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from saekit.jobs.train import recipe_config, run


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """768 -> 24576 ReLU with an L1 penalty on a store of width 768."""

    store: Path
    """An activation store of width 768."""
    out: Path
    """Directory of the run."""
    smoke: bool = False
    """A few steps of a narrow dictionary, to see that everything runs."""


def main(arguments: Arguments) -> Path:
    """Train, or with `smoke` only seem to; returns the run's directory."""
    config = recipe_config(
        "anthropic_april", store=arguments.store, out=arguments.out, d_sae=24576, n_tokens=300_000_000
    )
    if arguments.smoke:
        config = replace(config, d_sae=128, n_tokens=256, batch_size=64, held_out_share=0.0)
    return run(config)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
