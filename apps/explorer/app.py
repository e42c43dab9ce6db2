"""The explorer: one page per view. Started by `saekit explore INDEX` (through server.py, which adds two routes)."""

from functools import partial
from pathlib import Path
from types import ModuleType

import streamlit as st

from saekit.errors import SaekitError
from saekit_explorer import data
from saekit_explorer.navigation import page
from saekit_explorer.views import compare, feature, features, input, overview, run

# Pages in the order of the menu. A view is a module with `TITLE`, `URL` and `render(index)`; the first is the default.
VIEWS: tuple[ModuleType, ...] = (overview, features, feature, input, compare, run)

FOLDER = Path(__file__).parent


def render(view: ModuleType) -> None:
    """Draw one view, or say why not: a user's mistake is a message, never a traceback."""
    try:
        view.render(data.open_index())
    except SaekitError as error:
        # Text, not Markdown: a message may quote a file name or a token.
        st.error("This page cannot be shown.")
        st.text(str(error))


def main() -> None:
    st.set_page_config(page_title="saekit explorer", page_icon=str(FOLDER / "icon.svg"), layout="wide")
    st.logo(str(FOLDER / "icon.svg"), size="medium")
    st.html(FOLDER / "page.css")
    pages = [page(view.URL, partial(render, view), title=view.TITLE, is_default=i == 0) for i, view in enumerate(VIEWS)]
    st.navigation(pages, position="top").run()


if __name__ == "__main__":
    main()
