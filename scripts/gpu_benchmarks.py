"""Every benchmark on a CUDA device, what it prints kept under benchmarks/results with the device's name and the date.

    python scripts/gpu_benchmarks.py        # or: make gpu, which runs the GPU tests first

bench_train.py needs the peers (scripts/setup_peers.sh); without them it measures saekit and the dense floors. Its JSON
is in the same file. A figure belongs in the documentation only with the file that this wrote.
"""

import datetime
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SPARSITIES = ("BatchTopK", "MatryoshkaBatchTopK", "JumpRelu", "Gated")
BENCHMARKS = [
    ["bench_step.py", "--device", "cuda"],
    ["bench_step.py", "--device", "cuda", "--dead", "0.1"],
    *(
        ["bench_train.py", "--device", "cuda", "--batch-size", size, "--rounds", "20", "--extra", *SPARSITIES]
        for size in ("4096", "8192")
    ),
    ["bench_stacked.py", "--device", "cuda", "--batch-size", "4096"],
    ["bench_extract.py", "--model", "smollm2", "--device", "cuda", "--dtype", "bfloat16", "--batch-size", "256"],
    ["bench_extract.py", "--model", "dinov2", "--device", "cuda", "--dtype", "bfloat16", "--batch-size", "256"],
    ["bench_index.py", "build", "--device", "cuda", "--n-rows", "1000000"],
]


def main() -> int:
    if not torch.cuda.is_available():
        print("No CUDA device here; nothing was measured.", file=sys.stderr)
        return 1
    device = torch.cuda.get_device_name()
    name = re.sub(r"\W+", "-", device.lower()).strip("-")
    path = ROOT / "benchmarks" / "results" / f"{datetime.date.today():%Y-%m-%d}-{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    with open(path, "w", encoding="utf-8") as file:
        print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}", file=file, flush=True)
        for words in BENCHMARKS:
            print(f"\n$ python scripts/{' '.join(words)}", file=file, flush=True)
            command = [sys.executable, str(ROOT / "scripts" / words[0]), *words[1:]]
            failed += subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode != 0
    print(path.read_text(encoding="utf-8"))
    print(f"{path}; {failed} of {len(BENCHMARKS)} benchmarks failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
