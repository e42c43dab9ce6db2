"""The explorer's browser components: JavaScript modules served as files, so that a message carries only its data."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from saekit.files import hash_bytes

FOLDER = Path(__file__).parent
ROUTE = "assets-saekit"
STYLES: dict[str, tuple[str, ...]] = {
    "overview": (),
    "table": (),
    "head": (),
    "examples": ("images",),
    "side": (),
    "live": ("images",),
    "gallery": (),
    "compare": (),
    "steered": (),
    "effect": ("images",),
    "run": (),
}
"""Components, and the style sheets each needs besides `common` and its own."""


@cache
def version() -> str:
    """Hash of all scripts: part of their address, so that a browser may keep them for ever."""
    return hash_bytes(*(path.read_bytes() for path in sorted(FOLDER.glob("*.js"))))[:16]


def show(
    name: str,
    data: dict[str, Any],
    *,
    key: str | None = None,
    triggers: Sequence[str] = (),
    states: Sequence[str] = (),
    on: dict[str, Callable[[], None]] | None = None,
) -> Any:
    """Mount the component `name`. Its result has one attribute per trigger (set for one run) and state (kept).

    `on` gives the callbacks of triggers that must act before the page is drawn again.
    """
    import streamlit as st

    callbacks: dict[str, Any] = {
        f"on_{event}_change": (on or {}).get(event, _nothing) for event in (*triggers, *states)
    }
    component = st.components.v2.component(
        f"saekit.{name}", html='<div class="sk"></div>', css=_css(name), js=_loader(name)
    )
    return component(key=key or name, data=data, **callbacks)


@cache
def _css(name: str) -> str:
    return "\n".join((FOLDER / f"{sheet}.css").read_text("utf-8") for sheet in ("common", *STYLES[name], name))


@cache
def _loader(name: str) -> str:
    """A module that imports the real one. Streamlit makes a blob of it, whose imports need a whole address."""
    return (
        f'const module = await import(new URL("{ROUTE}/{version()}/{name}.js", document.baseURI).href);\n'
        "export default module.default;\n"
    )


def _nothing() -> None:
    """A callback must exist for every state and trigger, also when nothing has to happen before the run."""
