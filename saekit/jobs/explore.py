"""`saekit explore`: browse a feature index in the browser."""

import errno
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from saekit.errors import ConfigError, SaekitError, require
from saekit.index import FeatureIndex

STARTUP_SECONDS = 60.0
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """Browse a feature index in the browser. Stop with Ctrl-C."""

    index: Positional[Path]
    """Directory of the index, as written by `saekit index`. The explorer opens no other."""
    checkpoint: Path | None = None
    """Autoencoder for live inputs, when it is not where the index says."""
    backbone: str | None = None
    """Backbone for live inputs, when it is not the one the index names."""
    compare: tuple[Path, ...] = ()
    """Runs, evaluations (folders with a metrics.json) or indexes to show beside this index on the Compare page."""
    host: str = "localhost"
    """Address to listen on. Anything but localhost lets other machines read the index and run the model."""
    port: int = 8501
    """Port to listen on; 0 takes a free one."""
    open_browser: bool = True
    """Open the page in the default browser once it is up."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"ExploreConfig.port={self.port}; ports are 0 to 65535.")


def run(config: ExploreConfig) -> Path:
    """Serve the explorer until Ctrl-C, then return the index's path."""
    index = FeatureIndex.open(config.index)
    if config.checkpoint is not None and not config.checkpoint.is_dir():
        raise ConfigError(f"{config.checkpoint} is not a directory; a checkpoint is a directory with a meta.json.")
    _check_compared(config.compare)
    # A plain kill has to stop the child too, at any moment, so it ends the wait as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with explorer(config) as (url, process):
            print(f"{index!r}\nExplorer: {url}  (stop with Ctrl-C)", flush=True)
            if config.host not in LOCAL_HOSTS:
                print(f"Whoever reaches {config.host}:{config.port} can read this index and run the model.", flush=True)
            if config.open_browser:
                webbrowser.open(url)
            code = process.wait()
    except KeyboardInterrupt:
        print("\nStopped.")
        return config.index
    raise SaekitError(f"The explorer ended by itself (exit status {code}); what it printed is above.")


@contextmanager
def explorer(config: ExploreConfig) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The explorer as a child process that answers: its URL and the process, which is stopped on leaving."""
    require("streamlit", "explorer")
    spec = importlib.util.find_spec("saekit_explorer")
    if spec is None or spec.origin is None:
        raise SaekitError(
            "The explorer's pages are missing from this installation. Type: pip install 'saekit[explorer]'"
        )
    port = config.port or _free_port(config.host)
    _check_free(config.host, port)
    command = [sys.executable, "-m", "streamlit", "run", str(Path(spec.origin).parent / "server.py")]
    process = subprocess.Popen(
        [*command, *_flags(config.host, port)],
        env=_environment(config),
        stdin=subprocess.DEVNULL,
        # Streamlit's banner; warnings and errors go to stderr, which is ours.
        stdout=subprocess.DEVNULL,
    )
    shown_host = "localhost" if config.host in (*LOCAL_HOSTS, "0.0.0.0", "::") else config.host
    url = f"http://{shown_host}:{port}"
    try:
        _wait_until_up(f"http://{_connectable(config.host)}:{port}", process)
        yield url, process
    finally:
        _stop(process)


def _check_compared(paths: tuple[Path, ...]) -> None:
    """Refuse now, all at once, what the Compare page could not show."""
    from saekit_explorer.compare_data import read_entry

    problems = []
    for path in paths:
        try:
            read_entry(path)
        except SaekitError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"--compare: {' '.join(problems)}")


def _flags(host: str, port: int) -> list[str]:
    options = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.enableXsrfProtection": "true",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "viewer",
        # With the default of 2 runs, two quick clicks can make the browser drop a message that the server then refers
        # to, which ends the session ("Cached ForwardMsg MISS"). It also makes going back to a feature free.
        "global.maxCachedMessageAge": "60",
    }
    return [f"--{name}={value}" for name, value in options.items()]


def _environment(config: ExploreConfig) -> dict[str, str]:
    from saekit_explorer.settings import Settings

    settings = Settings(
        index=str(config.index.resolve()),
        checkpoint=None if config.checkpoint is None else str(config.checkpoint.resolve()),
        backbone=config.backbone,
        compare=tuple(str(path.resolve()) for path in config.compare),
    )
    return {**os.environ, **settings.to_environment()}


def _connectable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind(("" if host in ("0.0.0.0", "::") else "127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_free(host: str, port: int) -> None:
    """Raise `ConfigError` when the server could not listen there; Streamlit itself would end with a traceback."""
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host={host!r} is no address of this machine ({error}). Type: --host localhost") from None
    errors = []
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                errors.append(error)
    if any(error.errno == errno.EADDRINUSE for error in errors):
        raise ConfigError(
            f"Port {port} is taken, perhaps by another explorer. Type: saekit explore INDEX --port {port + 1}"
        )
    # "localhost" has an IPv6 address also where the machine has none to bind; one that works is enough.
    if len(errors) == len(addresses):
        raise ConfigError(f"{host}:{port} cannot be listened on ({errors[0].strerror}). Type: --host localhost")


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SaekitError(f"Streamlit did not start (exit status {process.returncode}); what it printed is above.")
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SaekitError(f"Streamlit did not answer at {url} within {STARTUP_SECONDS:.0f} s.")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
