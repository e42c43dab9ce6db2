"""SAELens, sparsify and dictionary_learning themselves open what saekit writes, and saekit opens what they save.

    scripts/setup_peers.sh .peers                 once: their environment (CPU build of torch is enough)
    python scripts/interop_roundtrip.py --peers .peers --out interop.json

Prints, for every case, the largest difference of latents and of reconstructions between the library and saekit, over
the largest value, in float32. A latent whose pre-activation is within rounding of its threshold may be active on one
side alone: such flips are counted, and their rows left out of the differences. Ends with an error when a difference is
above 1e-5, or more than one latent in 100,000 flips. Half a minute on one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saekit as sk
from saekit.autoencoders import BatchTopK, Gated, JumpRelu, MatryoshkaBatchTopK
from saekit.autoencoders.transcoder import Transcoder, TranscoderConfig
from saekit.files import write_json
from saekit.interop import WRITABLE, load_sae, save_as

TOLERANCE = 1e-5
PEERS_SIDE = Path(__file__).with_name("interop_peers.py")
SPECS = (sk.Relu(), sk.TopK(k=8), JumpRelu(), Gated(), BatchTopK(k=8), MatryoshkaBatchTopK(k=8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="the peers' environment")
    parser.add_argument("--out", type=Path, help="write the table as JSON here")
    parser.add_argument("--d-in", type=int, default=128, help="width of the activations; 4 times as many latents")
    options = parser.parse_args()
    rows = roundtrip(options.peers / "bin" / "python", options.d_in)
    print(table(rows))
    if options.out:
        write_json(options.out, {"tolerance": TOLERANCE, "cases": rows})
    if worst := wrong(rows):
        sys.exit(f"{len(worst)} cases differ by more than {TOLERANCE}: {', '.join(row['case'] for row in worst)}")


def wrong(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases that differ by more than rounding."""
    return [row for row in rows if not max(row["latents"], row["x_hat"], row["flips"] / row["n_latents"]) <= TOLERANCE]


def roundtrip(python: Path, d_in: int = 128, n_rows: int = 256) -> list[dict[str, Any]]:
    """A row for each case: direction, library, case, relative differences of latents and reconstructions, flips."""
    with tempfile.TemporaryDirectory() as temporary:
        ours, theirs = Path(temporary) / "ours", Path(temporary) / "theirs"
        x = activations(d_in, n_rows)
        for folder in (ours, theirs):
            folder.mkdir()
            np.save(folder / "x.npy", x.numpy())
        outputs = dict(written(ours, x))
        for what, folder in (("read", ours), ("write", theirs)):
            command = [str(python), str(PEERS_SIDE), what, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        return [
            *(compared("they read ours", ours, name, *output) for name, output in outputs.items()),
            *(
                compared("we read theirs", theirs, name, *outputs_of(load_sae(theirs / name), x))
                for name in json.loads((theirs / "done.json").read_text())
            ),
        ]


def activations(d_in: int, n_rows: int) -> torch.Tensor:
    """Rows with a mean that is as large as their deviation and a scale that is not 1."""
    generator = torch.Generator().manual_seed(1)
    return 3 * (torch.randn(n_rows, d_in, generator=generator) + torch.randn(d_in, generator=generator))


def written(folder: Path, x: torch.Tensor) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Write every autoencoder of ours in every format that can hold it; what ours gives, by name of the case."""
    cases = []
    for kind, sae in autoencoders(x).items():
        for format in WRITABLE:
            if format == "dictionary_learning-new" and kind != "Relu":
                continue  # the two differ in their ReLU alone
            name = f"{format}-{kind}"
            try:
                save_as(sae, folder / name, format=format)
            except sk.ConfigError:
                continue
            library = format.removesuffix("-legacy").removesuffix("-new")
            cases.append({"name": name, "library": library, "path": name})
            yield name, outputs_of(sae, x)
    (folder / "cases.json").write_text(json.dumps(cases))


def autoencoders(x: torch.Tensor) -> dict[str, sk.SparseAutoencoder | Transcoder]:
    """One of each kind, every parameter away from where it starts, with an input mean and scale to fold."""
    d_in = x.shape[1]
    made: dict[str, sk.SparseAutoencoder | Transcoder] = {}
    for spec in SPECS:
        config = sk.SparseAutoencoderConfig(d_in=d_in, d_sae=4 * d_in, sparsity=spec, decoder_norm="free")
        made[type(spec).__name__] = scrambled(sk.SparseAutoencoder(config), x)
    for norm in ("layer_norm", "rms"):
        config = sk.SparseAutoencoderConfig(d_in=d_in, d_sae=4 * d_in, sparsity=sk.Relu(), token_norm=norm)
        made[f"Relu-{norm}"] = scrambled(sk.SparseAutoencoder(config), x)
    for spec in (sk.Relu(), JumpRelu(), sk.TopK(k=8)):
        for has_skip in (False, True):
            of = TranscoderConfig(d_in=d_in, d_out=d_in, d_sae=4 * d_in, sparsity=spec, has_skip=has_skip)
            made[f"Transcoder-{type(spec).__name__}{'-skip' if has_skip else ''}"] = scrambled(Transcoder(of), x)
    return made


def scrambled(model: Any, x: torch.Tensor) -> Any:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else None
            if name.endswith("threshold"):
                tensor.copy_(0.5 + noise.abs())
            elif tensor.dim() == 2:
                tensor.copy_(noise / (2 if isinstance(model, Transcoder) else 1) / tensor.shape[1] ** 0.5)
            elif name in ("b_enc", "b_dec", "sparsifier.r_mag", "sparsifier.b_mag"):
                tensor.copy_(0.2 * noise)
            elif name.endswith("n_batches"):
                tensor.fill_(10)
    if isinstance(model, sk.SparseAutoencoder):
        if model.config.token_norm == "none":
            model.set_input_moments_(x.mean(0), float((x - x.mean(0)).square().sum(1).mean()))
        else:
            model.input_mean.copy_(0.1 * torch.randn(x.shape[1], generator=generator))
            model.input_scale.fill_(0.8)
    return model


@torch.no_grad()
def outputs_of(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return model.encode(x), model(x)


def compared(direction: str, folder: Path, name: str, latents: torch.Tensor, x_hat: torch.Tensor) -> dict[str, Any]:
    with np.load(folder / f"{name}.npz") as theirs:
        other_latents, other_x_hat = torch.from_numpy(theirs["latents"]), torch.from_numpy(theirs["x_hat"])
    flipped = (latents > 0) != (other_latents > 0)
    same = ~flipped.any(1)
    library = "dictionary_learning" if name.startswith("dictionary") else name.split("-")[0]
    return {
        "direction": direction,
        "library": library,
        "case": name.removeprefix(f"{library}-"),
        "latents": relative(latents[same], other_latents[same]),
        "x_hat": relative(x_hat[same], other_x_hat[same]),
        "flips": int(flipped.sum()),
        "n_latents": latents.numel(),
        "l0": float((latents > 0).sum(1).float().mean()),
    }


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, f"{list(a.shape)} and {list(b.shape)}"
    return float((a - b).abs().max() / b.abs().max())


def table(rows: list[dict[str, Any]]) -> str:
    head = "| direction | library | case | latents | reconstruction | flips | L0 |\n|---|---|---|---|---|---|---|"
    lines = [
        f"| {row['direction']} | {row['library']} | {row['case']} | {row['latents']:.1e} | {row['x_hat']:.1e} "
        f"| {row['flips']} | {row['l0']:.1f} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    main()
