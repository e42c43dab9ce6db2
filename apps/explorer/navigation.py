"""Pages by their address, and going from one to another."""

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

_pages: dict[str, Any] = {}


def page(url: str, draw: Callable[[], None], *, title: str, is_default: bool) -> Any:
    """The Streamlit page at `url`; remembered, so that a view can be left for it by name."""
    made = st.Page(draw, title=title, url_path=url, default=is_default)
    _pages[url] = made
    return made


def go(url: str, params: Mapping[str, str]) -> None:
    """Leave this page for the one at `url`; empty parameters are left out of the address."""
    st.switch_page(_pages[url], query_params={name: value for name, value in params.items() if value})


def open_feature(feature: int, query: str = "") -> None:
    """Leave for a feature's page; `query` is the `Browse` that its previous and next walk along."""
    go("feature", {"feature": str(int(feature)), "list": query})
