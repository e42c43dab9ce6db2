"""The command line: `saekit <job> [options]`. Each job's `--help` is its documentation."""

import contextlib
import functools
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from saekit import __version__
from saekit.errors import SaekitError, closest

# Name -> (module, config class, one line). A job's module is imported only when it is asked for, so that
# `saekit --help` and `saekit explore` answer at once and never import torch.
JOBS: dict[str, tuple[str, str, str]] = {
    "hooks": ("saekit.jobs.hooks", "HooksConfig", "List the hook points of a model."),
    "extract": ("saekit.jobs.extract", "ExtractConfig", "Run a model over texts or images and store its activations."),
    "train": ("saekit.jobs.train", "TrainConfig", "Train a sparse autoencoder on a store."),
    "eval": (
        "saekit.jobs.evaluate",
        "EvaluateConfig",
        "Measure a checkpoint: reconstruction, faithfulness, usefulness.",
    ),
    "steer": ("saekit.jobs.steer", "SteerConfig", "Edit latents inside the model and compare what it says."),
    "convert": ("saekit.jobs.convert", "ConvertConfig", "Read and write other projects' sparse autoencoders."),
    "index": ("saekit.jobs.index", "IndexConfig", "Index what every latent of a checkpoint fires on."),
    "explore": ("saekit.jobs.explore", "ExploreConfig", "Browse an index in the browser."),
    "demo": ("saekit.jobs.demo", "DemoConfig", "All of the above on an embedded model and real data."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit status. A user's mistake prints one line, never a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"saekit {__version__}")
        return 0
    name = words[0]
    if name not in JOBS:
        print(f"saekit: no job {name!r}. Closest: {closest(name, JOBS)}. All of them: saekit --help", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "fsspec", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        config, run = load_job(name, words[1:])
        run(config)
        sys.stdout.flush()
    except SaekitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `saekit hooks MODEL | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # What the machine refuses (a read-only folder, a full disk) may come from any place, and says what it is.
        if error.errno is None:
            raise
        where = "" if error.filename is None else f" {error.filename}:"
        print(f"{type(error).__name__}:{where} {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. What was finished is on disk; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def load_job(name: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """The parsed config and the `run` function of a job. Exits (tyro) on `--help` and on words it cannot parse.

    Raises the `ConfigError` of a config that refuses its values; tyro would draw it in a box of several lines.
    """
    import tyro

    module_name, config_name, _ = JOBS[name]
    module = importlib.import_module(module_name)
    parse = functools.partial(tyro.cli, getattr(module, config_name), args=list(arguments), prog=f"saekit {name}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            config = parse(console_outputs=False)
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None:
            if isinstance(cause, SaekitError):
                raise cause from None
            cause = cause.__context__
        config = parse()  # to say on the console what it could not parse, or to print the help
    # Words such as a recipe's name stand for other defaults; what was given explicitly still counts.
    defaults = module.defaults_of(config) if hasattr(module, "defaults_of") else None
    return config if defaults is None else parse(default=defaults), module.run


def _overview() -> str:
    width = max(len(name) for name in JOBS)
    lines = [f"  {name:<{width}}  {summary}" for name, (_, _, summary) in JOBS.items()]
    return "\n".join(
        [
            f"saekit {__version__}: extract activations, train a sparse dictionary, browse its features.",
            "",
            "Usage: saekit <job> [options]        saekit <job> --help",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
