"""One contestant of bench_train.py in a process of its own, which takes a training step whenever it is told to.

Started by bench_train.py, with saekit's Python or with that of the peers' environment (scripts/setup_peers.sh). Reads
one JSON line of settings from stdin, builds the model, then answers every line `step` with its seconds and `end` with
what it measured of memory and sparsity. All contestants start from the same weights and see the same batches.
"""

import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

LR = 1e-9
"""So small that the sparsity that was set up stays; the arithmetic is that of any other."""


class Inputs(NamedTuple):
    """What every contestant starts from; the rows of both matrices are latents."""

    batches: list[Tensor]
    W_enc_T: Tensor
    b_enc: Tensor
    W_dec: Tensor


class Contestant(NamedTuple):
    step: Callable[[Tensor], object]
    encoder: Callable[[], tuple[Tensor, Tensor, Tensor]]
    """W_enc_T, b_enc and b_dec as they are now."""
    n_parameters: int


def make_inputs(settings: dict[str, Any]) -> Inputs:
    """Batches that are sparse sums of random directions, E||x||^2 = d_in; biases that make L0 what was asked for."""
    d_in, d_sae, n_rows = settings["d_in"], settings["d_sae"], settings["batch_size"]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2048, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)

    def batch() -> Tensor:
        is_on = torch.rand(n_rows, 2048, generator=generator) < 0.01
        x: Tensor = (is_on * torch.rand(n_rows, 2048, generator=generator)) @ directions
        x -= x.mean(0)
        return x * (d_in / x.square().sum(1).mean()).sqrt()

    batches = [batch() for _ in range(4)]
    W_dec = torch.randn(d_sae, d_in, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    sample = (batches[0][:64] @ W_dec.T).flatten()
    threshold = sample.topk(int(settings["l0"] / d_sae * len(sample))).values[-1]
    b_enc = torch.full((d_sae,), -float(threshold))
    return Inputs([x.to(settings["device"]) for x in batches], W_dec.clone(), b_enc, W_dec)


def floor(settings: dict[str, Any], inputs: Inputs) -> Contestant:
    """Dense products alone: `n_products` of a step's five or six, in fp32 or bf16."""
    dtype = torch.bfloat16 if settings["name"].endswith("bf16") else torch.float32
    n_products = int(settings["name"].split()[1])
    W_enc = inputs.W_enc_T.to(settings["device"], dtype)
    W_dec = inputs.W_dec.to(settings["device"], dtype)
    latents = torch.empty(settings["batch_size"], settings["d_sae"], device=settings["device"], dtype=dtype)

    def step(x: Tensor) -> None:
        x = x.to(dtype)
        torch.mm(x, W_enc.T, out=latents)
        if n_products > 1:
            x_hat = latents @ W_dec
            of_latents = x_hat @ W_dec.T
            for left, right in ((latents, x_hat), (of_latents, x))[: n_products - 3]:
                left.T @ right

    return Contestant(step, lambda: (inputs.W_enc_T, inputs.b_enc, torch.zeros(settings["d_in"])), 0)


def saekit(settings: dict[str, Any], inputs: Inputs) -> Contestant:
    """As `fit` does it: loss, backward, take_step with clipping."""
    import saekit as sk
    from saekit.training.optim import make_optimizer, matmul_precision, resolve_precision, take_step

    config = sk.SparseAutoencoderConfig(
        d_in=settings["d_in"],
        d_sae=settings["d_sae"],
        sparsity=getattr(sk, settings["sparsity"])(**settings.get("options", {})),
        decoder_norm=settings.get("decoder_norm", "auto"),
        kernel=settings.get("kernel", "auto"),
    )
    sae = sk.SparseAutoencoder(config).to(settings["device"])
    with torch.no_grad():
        sae.W_enc_T.copy_(inputs.W_enc_T)
        sae.W_dec.copy_(inputs.W_dec)
        sae.b_enc.copy_(inputs.b_enc)
    optimizer = make_optimizer(sae, LR, (0.9, 0.999))
    device = torch.device(settings["device"])
    precision = resolve_precision(settings.get("precision", "auto"), device)

    def step(x: Tensor) -> None:
        with matmul_precision(precision):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = sae.training_loss(x)
            loss.total.backward()
            take_step(sae, optimizer, LR, 1.0)

    return Contestant(step, lambda: (sae.W_enc_T, sae.b_enc, sae.b_dec), count(sae))


def saelens(settings: dict[str, Any], inputs: Inputs) -> Contestant:
    """SAELens's own trainer step, which clips as well; `best` compiles it and, on CUDA, autocasts to bf16."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    d_in, d_sae, n_rows = settings["d_in"], settings["d_sae"], settings["batch_size"]
    common = {"d_in": d_in, "d_sae": d_sae, "device": settings["device"]}
    kind, options = settings["sparsity"], settings.get("options", {})
    config_class = getattr(sae_lens, f"{kind}TrainingSAEConfig")
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(config_class(**common, **options))
    with torch.no_grad():
        sae.W_enc.copy_(inputs.W_enc_T.T)
        sae.W_dec.copy_(inputs.W_dec)
        sae.b_enc.copy_(inputs.b_enc)
    trainer_config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=n_rows,
        lr=LR,
        lr_end=LR,
        device=settings["device"],
        autocast=settings.get("autocast", False),
    )
    if settings.get("compile", False):
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    trainer = SAETrainer(trainer_config, sae, iter(()))
    return Contestant(trainer.step, lambda: (sae.W_enc.T, sae.b_enc, sae.b_dec), count(sae))


def sparsify(settings: dict[str, Any], inputs: Inputs) -> Contestant:
    """The calls of sparsify's trainer around its SparseCoder, with Adam; in bf16 autocast if asked for."""
    from sparsify.sparse_coder import SparseCoder, SparseCoderConfig

    device = settings["device"]
    coder = SparseCoder(settings["d_in"], SparseCoderConfig(num_latents=settings["d_sae"], k=settings["k"]), device)
    with torch.no_grad():
        coder.encoder.weight.copy_(inputs.W_enc_T)
        coder.encoder.bias.copy_(inputs.b_enc)
        coder.W_dec.copy_(inputs.W_dec)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR, fused=settings.get("fused", False))
    torch.set_float32_matmul_precision("high" if device != "cpu" else "highest")

    def step(x: Tensor) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.get("autocast", False)):
            loss = coder(x).fvu
        loss.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return Contestant(step, lambda: (coder.encoder.weight, coder.encoder.bias, coder.b_dec), count(coder))


def dictionary_learning(settings: dict[str, Any], inputs: Inputs) -> Contestant:
    """dictionary_learning's own trainer step."""
    module, name = settings["trainer"]
    trainer_class = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)
    trainer = trainer_class(
        steps=1_000_000,
        activation_dim=settings["d_in"],
        dict_size=settings["d_sae"],
        layer=0,
        lm_name="none",
        lr=LR,
        device=settings["device"],
        **settings.get("options", {}),
    )
    ae = trainer.ae
    with torch.no_grad():
        ae.encoder.weight.copy_(inputs.W_enc_T)
        ae.encoder.bias.copy_(inputs.b_enc)
        ae.decoder.weight.copy_(inputs.W_dec.T)
    n_done = 0

    def step(x: Tensor) -> None:
        nonlocal n_done
        # Step 0 would set b_dec from the batch.
        n_done += 1
        trainer.update(n_done, x)

    shift = ae.bias if hasattr(ae, "bias") else ae.b_dec
    return Contestant(step, lambda: (ae.encoder.weight, ae.encoder.bias, shift), count(ae))


IMPORTS = {
    "saekit": "saekit.training.optim",
    "saelens": "sae_lens.training.sae_trainer",
    "sparsify": "sparsify.sparse_coder",
    "dictionary_learning": "dictionary_learning.trainers.top_k",
}
"""What to import before memory is looked at."""

MAKERS = {
    "floor": floor,
    "saekit": saekit,
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Memory:
    """Bytes that a step takes at its peak beyond what the process held before the model was made."""

    def __init__(self, device: str) -> None:
        self.is_cuda = device != "cpu"
        self.before = self._now()

    def start(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")

    def peak(self) -> int:
        top = torch.cuda.max_memory_allocated() if self.is_cuda else _status("VmHWM")
        return top - self.before

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self.is_cuda else _status("VmRSS")


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field + ":"))


def main() -> None:
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["n_threads"])
    is_cuda = settings["device"] != "cpu"
    clock = time.process_time if settings["cpu_time"] else time.perf_counter
    inputs = make_inputs(settings)
    if settings["maker"] in IMPORTS:
        importlib.import_module(IMPORTS[settings["maker"]])
    memory = Memory(settings["device"])
    contestant = MAKERS[settings["maker"]](settings, inputs)
    # The first step makes the optimizer's state and compiles what is compiled.
    contestant.step(inputs.batches[0])
    contestant.step(inputs.batches[1])
    print(json.dumps({"ready": True}), file=answers)
    peak = 0
    for n_done, line in enumerate(sys.stdin):
        if line.strip() != "step":
            break
        x = inputs.batches[n_done % len(inputs.batches)]
        memory.start()
        if is_cuda:
            torch.cuda.synchronize()
        started = clock()
        contestant.step(x)
        if is_cuda:
            torch.cuda.synchronize()
        seconds = clock() - started
        peak = max(peak, memory.peak())
        print(json.dumps({"seconds": seconds}), file=answers)
    W_enc_T, b_enc, b_dec = (t.detach() for t in contestant.encoder())
    x = inputs.batches[0].to(W_enc_T.device)
    l0 = float(((x - b_dec) @ W_enc_T.T + b_enc > 0).sum() / len(x))
    print(json.dumps({"peak": peak, "n_parameters": contestant.n_parameters, "positive": l0}), file=answers)


if __name__ == "__main__":
    main()
