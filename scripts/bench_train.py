"""Training steps of saekit, of its peers and of bare dense products, in turns: time, ratios and peak memory.

    scripts/setup_peers.sh                                  # once: the peers, in .peers
    python scripts/bench_train.py                           # CPU, 768 -> 24576, batch 1024, about 3 minutes
    python scripts/bench_train.py --device cuda --batch-size 8192
    python scripts/bench_train.py --peers none              # saekit and the floors alone

Each contestant is a process of its own (bench_train_worker.py) that holds its model and waits; every round lets each
of them take one step while the others sleep, and the least time of each counts. All start from the same weights, biased
so that ReLU codes have the asked-for L0, and see the same batches; `positive` in the table is the measured number of
positive pre-activations per row at the end. A step is everything the library does between two batches: loss, gradients,
clipping and projection where its recipe has them, Adam, renormalisation. Peers run with default settings and with the
best ones they offer here: `compiled` is SAELens's compile_sae, `autocast` bf16 as each library switches it on.
"""

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from saekit.kernels import cpu_has_bf16

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    d_in: int = 768
    """Width of the activations."""
    d_sae: int = 24576
    """Number of latents."""
    batch_size: int = 1024
    """Rows per step."""
    l0: float = 60
    """Active latents per row of the ReLU autoencoders."""
    k: int = 32
    """Active latents per row of the TopK autoencoders."""
    device: str = "cpu"
    """Where to measure: cpu or cuda."""
    rounds: int = 4
    """Times everybody takes a step, after two that do not count."""
    n_threads: int = 2
    """Threads torch uses on the CPU."""
    cpu_time: bool = False
    """Measure processor time, for a machine that others keep busy; only fair with `--n-threads 1`."""
    peers: str = ".peers/bin/python"
    """The Python of the peers' environment; "none" leaves the peers out."""
    only: tuple[str, ...] = ()
    """Names, or beginnings of them, to run instead of all; the floors always run."""
    out: Path | None = None
    """Also write the JSON here."""
    bf16: bool = False
    """Measure bf16 selection even on a CPU without bf16 instructions."""
    extra: tuple[str, ...] = field(default=())
    """Further sparsities of saekit to measure, by class name with default settings, e.g. JumpRelu."""


def contestants(config: BenchConfig) -> dict[str, dict[str, Any]]:
    """Who takes part: settings of its worker by name."""
    on_gpu = config.device != "cpu"
    topk = {"sparsity": "TopK", "options": {"k": config.k}}
    floors = ["floor 1 fp32", "floor 5 fp32"] + (["floor 1 bf16", "floor 5 bf16"] if on_gpu else [])
    found: dict[str, dict[str, Any]] = {name: {"maker": "floor"} for name in floors}
    found["saekit relu, free decoder"] = {"maker": "saekit", "sparsity": "Relu", "decoder_norm": "free"}
    found["saekit relu, unit decoder"] = {"maker": "saekit", "sparsity": "Relu", "decoder_norm": "unit"}
    found["saekit topk"] = {"maker": "saekit", **topk}
    # On a GPU fp32 means TF32; bf16 products are a choice there, and on CPUs that have them.
    low = "bf16" if on_gpu else "bf16_select" if config.bf16 or cpu_has_bf16() else None
    if low:
        for name in ("saekit relu, free decoder", "saekit topk"):
            found[f"{name}, {low}"] = {**found[name], "precision": low}
    for name in config.extra:
        found[f"saekit {name}"] = {"maker": "saekit", "sparsity": name}
    if config.peers != "none":
        found |= peers(config, topk, on_gpu)
    if config.only:
        found = {name: s for name, s in found.items() if name.startswith((*config.only, "floor"))}
    return found


def peers(config: BenchConfig, topk: dict[str, Any], on_gpu: bool) -> dict[str, dict[str, Any]]:
    """SAELens, sparsify and dictionary_learning, each at default and at best settings."""
    standard = {"maker": "saelens", "sparsity": "Standard", "options": {"l1_coefficient": 5.0}}
    saelens_topk = {"maker": "saelens", **topk}
    sparse_topk = {**saelens_topk, "options": {"k": config.k, "use_sparse_activations": True}}
    best = {"compile": True, "autocast": on_gpu}
    coder = {"maker": "sparsify", "k": config.k}
    dl = {"maker": "dictionary_learning"}
    found = {
        "SAELens L1": standard,
        f"SAELens L1, {'compiled, autocast' if on_gpu else 'compiled'}": {**standard, **best},
        "SAELens TopK": saelens_topk,
        "SAELens TopK, sparse": sparse_topk,
        "sparsify TopK": {**coder, "autocast": on_gpu},
        "sparsify TopK, fused Adam": {**coder, "fused": True, "autocast": on_gpu},
        "dictionary_learning L1": {**dl, "trainer": ("standard", "StandardTrainer")},
        "dictionary_learning TopK": {**dl, "trainer": ("top_k", "TopKTrainer"), "options": {"k": config.k}},
    }
    return {name: {**settings, "python": config.peers} for name, settings in found.items()}


class Worker:
    """A contestant's process; raises `RuntimeError` with the end of what it printed when it dies."""

    def __init__(self, name: str, settings: dict[str, Any], config: BenchConfig) -> None:
        self.name = name
        python = settings.pop("python", sys.executable)
        keys = "d_in", "d_sae", "batch_size", "l0", "device", "n_threads", "cpu_time"
        shared = {key: getattr(config, key) for key in keys}
        self._process = subprocess.Popen(
            [python, str(HERE / "bench_train_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._say(json.dumps({**shared, **settings, "name": name}))
        self._answer()

    def step(self) -> float:
        self._say("step")
        return float(self._answer()["seconds"])

    def end(self) -> dict[str, Any]:
        self._say("end")
        answer = self._answer()
        self._process.communicate()
        return answer

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.communicate()[1].strip().splitlines() or [f"exit {self._process.returncode}"]
            raise RuntimeError(next((line for line in reversed(said) if "Error: " in line), said[-1])[:160])
        answer: dict[str, Any] = json.loads(line)
        return answer


def run(config: BenchConfig) -> dict[str, Any]:
    workers, failed = [], {}
    for name, settings in contestants(config).items():
        print(f"starting {name} ...", file=sys.stderr)
        try:
            workers.append(Worker(name, settings, config))
        except (RuntimeError, OSError, BrokenPipeError) as error:
            failed[name] = str(error)
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for _ in range(config.rounds):
        for worker in workers:
            seconds[worker.name].append(worker.step())
    rows = {}
    for worker in workers:
        end = worker.end()
        needed = 16 * end["n_parameters"] + 4 * config.batch_size * config.d_sae
        rows[worker.name] = {
            "seconds": min(seconds[worker.name]),
            "all_seconds": [round(s, 5) for s in seconds[worker.name]],
            "positive": round(end["positive"], 1),
            "peak_bytes": end["peak"],
            "peak_over_needed": round(end["peak"] / needed - 1, 3) if end["n_parameters"] else None,
        }
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    return {"config": settings, "machine": machine(config), "rows": rows, "failed": failed}


def machine(config: BenchConfig) -> dict[str, str]:
    name = torch.cuda.get_device_name() if config.device != "cpu" else _cpu_name()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, fastest last column first: against the dense product and against saekit."""
    rows = result["rows"]
    unit = rows["floor 1 bf16" if "floor 1 bf16" in rows else "floor 1 fp32"]["seconds"]
    lines = [
        "| step | ms | rows/s | of one dense product | over saekit's | beyond what is needed | positive |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ours = rows.get("saekit topk" if "TopK" in name else "saekit relu, free decoder")
        is_peer = not name.startswith(("saekit", "floor"))
        over = f"{row['seconds'] / ours['seconds']:.2f}" if ours and is_peer else ""
        memory = "" if row["peak_over_needed"] is None else f"{row['peak_over_needed']:+.0%}"
        n_rows = result["config"]["batch_size"] / row["seconds"]
        lines.append(
            f"| {name} | {row['seconds'] * 1e3:.1f} | {n_rows:,.0f} | {row['seconds'] / unit:.2f} | {over} | {memory} "
            f"| {row['positive']} |"
        )
    lines += [f"| {name} | failed: {why} |||||| " for name, why in result["failed"].items()]
    return "\n".join(lines)


def _cpu_name() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())


def main() -> None:
    config = tyro.cli(BenchConfig, description=__doc__)
    result = run(config)
    print(table(result))
    print("Beyond what is needed: peak memory over parameters, gradients, Adam's moments and one batch x d_sae matrix.")
    text = json.dumps(result)
    print(text)
    if config.out is not None:
        config.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
