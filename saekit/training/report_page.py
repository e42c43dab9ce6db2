"""The report of a run as one HTML file that needs nothing else: final numbers, the picture, every setting."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saekit.files import Json, atomic_write

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin-top: 2rem; }
img { width: 100%; background: white; border-radius: 6px; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 500; }
td, th { padding: .25rem 1.5rem .25rem 0; border-top: 1px solid var(--line); vertical-align: top; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
"""


def write_page(
    path: str | Path, picture: str | Path, title: str, final: Sequence[Mapping[str, Any]], description: Json
) -> None:
    """Write the page of a run: `final` numbers per model, the PNG `picture`, and `description`, the run's settings."""
    image = base64.b64encode(Path(picture).read_bytes()).decode()
    names = list(dict.fromkeys(name for record in final for name in record))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("model", *names))
    rows = "".join(
        f"<tr><td>{model}</td>" + "".join(f"<td>{_shown(record.get(name))}</td>" for name in names) + "</tr>"
        for model, record in enumerate(final)
    )
    settings = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{_shown(value)}</td></tr>" for name, value in _leaves(description)
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{html.escape(title)}</h1><h2>The last tenth of the run, each batch before it was learnt from</h2>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f'<h2>Over the run</h2><img alt="Loss, FVU, L0 and dead share over tokens; densities of the latents" '
        f'src="data:image/png;base64,{image}"><h2>Settings</h2><table><tbody>{settings}</tbody></table></html>'
    )
    with atomic_write(path, "w") as file:
        file.write(page)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in nested JSON."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}[{i}]")
    else:
        yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return html.escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
