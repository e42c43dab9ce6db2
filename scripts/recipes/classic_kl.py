"""The classic: sigmoid latents pulled to a mean activation rho by a KL penalty, after Ng 2011 (CS294A lecture notes).

Command   python scripts/recipes/classic_kl.py --store acts --out runs/classic-kl   (any store)
Hardware  a CPU is enough at width 384 to 768; latents are dense, so every product is.
Minutes   not measured.
Expected  mean activation of a latent near rho = 0.05. A latent counts as active above 0.5; L0 (in this sense) is then
          of the order of rho * d_sae or below. Not a dictionary to compare with the others: it is here for its history.

The batch is large because rho_hat is estimated from it: batch size * rho should stay above 5.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from saekit.jobs.train import recipe_config, run


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Sigmoid latents with a KL penalty, four times as many as dimensions."""

    store: Path
    """An activation store."""
    out: Path
    """Directory of the run."""
    smoke: bool = False
    """A few steps of a narrow dictionary, to see that everything runs."""


def main(arguments: Arguments) -> Path:
    """Train, or with `smoke` only seem to; returns the run's directory."""
    config = recipe_config("classic_kl", store=arguments.store, out=arguments.out, expansion=4, n_tokens=20_000_000)
    if arguments.smoke:
        config = replace(config, n_tokens=256, batch_size=64, held_out_share=0.0)
    return run(config)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
