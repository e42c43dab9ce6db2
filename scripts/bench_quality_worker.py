"""SAELens' side of bench_quality.py, run with the Python of the peers' environment (scripts/setup_peers.sh).

Reads one JSON object from stdin: `rows` and `held_out` (.npy files of normalised float32 activations), `W_dec` (.npy,
unit rows to start from) and `runs`. Prints one JSON line per run: L0 and FVU of the saved inference model on the
held-out rows.
"""

import json
import sys
import tempfile
import warnings
from typing import Any

import numpy as np
import sae_lens
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

ARCHITECTURES = {
    "L1": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig),
    "TopK": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig),
    "BatchTopK": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig),
    "JumpReLU": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig),
}


def options(run: dict[str, Any], n_steps: int) -> dict[str, Any]:
    """What SAELens calls the run's settings; everything else is at its default."""
    value, warm_up = run["value"], int(run["sparsity_warmup"] * n_steps)
    if run["method"] == "L1":
        return {"l1_coefficient": value, "l1_warm_up_steps": warm_up}
    if run["method"] == "JumpReLU":
        return {
            "l0_coefficient": value,
            "l0_warm_up_steps": warm_up,
            "jumprelu_init_threshold": run["threshold"],
            "jumprelu_bandwidth": run["bandwidth"],
        }
    return {"k": int(value)}


def train(run: dict[str, Any], rows: torch.Tensor, held_out: torch.Tensor, W_dec: torch.Tensor) -> dict[str, float]:
    """Train with SAELens' own trainer on the same batches, save the inference model, measure that."""
    batch_size = run["batch_size"]
    n_steps = len(rows) // batch_size
    model_class, config_class = ARCHITECTURES[run["method"]]
    config = config_class(d_in=rows.shape[1], d_sae=len(W_dec), dtype="float32", **options(run, n_steps))
    sae = model_class(config)
    with torch.no_grad():
        sae.W_dec.copy_(W_dec * config.decoder_init_norm)
        sae.W_enc.copy_(sae.W_dec.T)
    trainer_config = SAETrainerConfig(
        total_training_samples=n_steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=run["lr"],
        lr_end=run["lr"] / 10,
        lr_decay_steps=int(run["lr_decay"] * n_steps),
    )
    SAETrainer(cfg=trainer_config, sae=sae, data_provider=iter(rows[: n_steps * batch_size].split(batch_size))).fit()
    if run["method"] == "BatchTopK":
        saved = sae
    else:
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            saved = sae_lens.SAE.load_from_disk(folder)
    with torch.no_grad():
        latents = torch.cat([saved.encode(rows) for rows in held_out.split(1024)])
        error = (saved.decode(latents) - held_out).square().sum()
    return {
        "l0": float((latents > 0).sum(1).float().mean()),
        "fvu": float(error / (held_out - held_out.mean(0)).square().sum()),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    job = json.load(sys.stdin)
    tensors = [torch.from_numpy(np.load(job[name])) for name in ("rows", "held_out", "W_dec")]
    for run in job["runs"]:
        print(json.dumps(train(run, *tensors)), flush=True)
