"""Extracts in child processes that are killed in the middle of a file operation; started by test_extract_kill.py.

    python tests/kill_worker.py FOLDER KIND

FOLDER/whole is made without a kill. Then, for moments spread over its file operations, FOLDER/cut-N is begun, killed
with SIGKILL just before operation N (twice: the second child is killed as many operations later), and finished. Prints
the moments as JSON. One process that forks spares an import of torch per kill.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake_backbones import POINTS, FakeImages, FakeText
from PIL import Image

from saekit.inputs import Document, ImageInput
from saekit.jobs.extract import extract

N_MOMENTS = 10
WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def inputs(kind: str) -> list[Any]:
    if kind == "text":
        return [Document(id=f"doc{i}", text=f"text number {i} " * (1 + i % 4), label=str(i % 3)) for i in range(14)]
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (4, 4, 3)).astype(np.uint8)) for _ in range(24)]
    broken = ImageInput(id="broken", load=b"no image")
    return [*(ImageInput(id=f"i{i}", load=picture) for i, picture in enumerate(pictures)), broken]


def work(kind: str, out: Path, kill_at: int | None) -> int:
    """Extract into `out`; returns the number of file operations, or dies before operation `kill_at`."""
    n_operations = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal n_operations
        if event in WATCHED and str(out) in str(arguments[0]):
            n_operations += 1
            if n_operations == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    backbone = FakeText() if kind == "text" else FakeImages()
    extract(backbone, inputs(kind), hook_points=POINTS, out=out, batch_size=3, shard_rows=60, progress=False)
    return n_operations


def in_child(kind: str, out: Path, kill_at: int | None, report: Path) -> int:
    """Run `work` in a fork; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            report.write_text(str(work(kind, out, kill_at)))
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # type: ignore[assignment]  # a kill loses nothing that was written
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    report = folder / "report"
    assert in_child(kind, folder / "whole", None, report) == 0
    moments = sorted({int(n) for n in np.linspace(1, int(report.read_text()), N_MOMENTS)})
    for moment in moments:
        out = folder / f"cut-{moment}"
        assert in_child(kind, out, moment, report) == -signal.SIGKILL
        assert in_child(kind, out, moment, report) in (0, -signal.SIGKILL)
        assert in_child(kind, out, None, report) == 0
    print(json.dumps(moments))


if __name__ == "__main__":
    main()
