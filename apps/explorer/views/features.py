"""Features: the sortable, filterable, searchable list of all of them. Its whole state is in the address."""

import math

import streamlit as st

from saekit.index import FeatureIndex
from saekit_explorer import components, data, table
from saekit_explorer.browse import DENSITY_STOPS, Browse, sort_columns
from saekit_explorer.navigation import open_feature

TITLE = "Features"
URL = "features"
PAGE_SIZE = 50
STOPS = [name for name, _ in DENSITY_STOPS]


def render(index: FeatureIndex) -> None:
    """Draw the page."""
    st.header("Features", anchor=False)
    browse = _controls(index)
    found = data.listing(index, browse)
    n = len(found.features)
    n_pages = max(1, math.ceil(n / PAGE_SIZE))
    if st.session_state.get("page", 1) > n_pages:
        st.session_state["page"] = n_pages
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{n:,}** of {index.d_sae:,} features", width="content")
        if found.note:
            st.text(found.note, width="content")
        st.space("stretch")
        st.markdown("Page", width="content")
        page = st.number_input(
            "Page", 1, n_pages, key="page", bind="query-params", width=130, label_visibility="collapsed"
        )
        st.download_button(
            "Export CSV",
            data=lambda: data.csv(index, browse),
            file_name="features.csv",
            mime="text/csv",
            on_click="ignore",
            help="The whole list in this order, not only this page.",
        )
    first = (int(page) - 1) * PAGE_SIZE
    shown = found.features[first : first + PAGE_SIZE]
    score = None if found.score is None else found.score[first : first + PAGE_SIZE]
    result = components.show(
        "table",
        {
            "columns": table.table_columns(index, found.score is not None),
            "rows": table.table_rows(index, shown, score),
            "sort": browse.sort,
            "ascending": browse.ascending,
            "first": first,
            "page": int(page),
            "page_size": PAGE_SIZE,
            "total": n,
            "list": browse.to_query(),
            "caption": f"{n:,} features, sorted by {browse.sort}",
        },
        triggers=("open", "sort", "page", "address"),
        on={"sort": lambda: _sort_by(index), "page": _turn_page, "address": lambda: _moved(index)},
    )
    if result.open is not None:
        open_feature(int(result.open), browse.to_query())


def _controls(index: FeatureIndex) -> Browse:
    kinds = ["token"] if index.kind == "text" else []
    if index.label_names:
        kinds.append("class")
    kinds.append("words")
    default = Browse()
    row = st.container(horizontal=True, vertical_alignment="bottom")
    with row:
        hints = {
            "token": "Fires on a token, e.g. bank",
            "class": f"Fires on a class, e.g. {index.label_names[0]}" if index.label_names else "",
            "words": "A word of your labels, tags or notes, or a feature number",
        }
        # The choice is drawn after the box it describes, so its value comes from the session or the address.
        by_now = st.session_state.get("by") or st.query_params.get("by") or kinds[0]
        q = st.text_input(
            "Search",
            key="q",
            type="search",
            placeholder=hints.get(by_now, ""),
            bind="query-params",
            on_change=_first_page,
        )
        by = st.segmented_control(
            "Search in",
            kinds,
            default=kinds[0],
            required=True,
            help="token: the indexed text. class: its documents' labels. words: your own labels, tags and notes.",
            key="by",
            bind="query-params",
            on_change=_first_page,
        )
        low, high = st.select_slider(
            "Density", STOPS, value=("0", "100%"), key="density", bind="query-params", width=260, on_change=_first_page
        )
        sort = st.selectbox(
            "Sort by",
            list(sort_columns(index)),
            key="sort",
            bind="query-params",
            width=230,
            on_change=_first_page,
        )
        with st.container(width="content", gap=None):
            ascending = st.toggle("Lowest first", key="ascending", bind="query-params", on_change=_first_page)
            alive = st.toggle(
                "Alive only", value=default.alive, key="alive", bind="query-params", on_change=_first_page
            )
            annotated = st.toggle("Annotated only", key="annotated", bind="query-params", on_change=_first_page)
    return Browse(
        q=q or "",
        by=by or default.by,
        sort=sort or default.sort,
        ascending=ascending,
        low=low,
        high=high,
        alive=alive,
        annotated=annotated,
    )


def _first_page() -> None:
    st.session_state["page"] = 1


def _turn_page() -> None:
    st.session_state["page"] = max(1, int(st.session_state["table"]["page"]))


def _sort_by(index: FeatureIndex) -> None:
    asked = st.session_state["table"]["sort"]
    if asked["key"] in sort_columns(index):
        st.session_state["sort"] = asked["key"]
        st.session_state["ascending"] = bool(asked["ascending"])
        st.session_state["page"] = 1


def _moved(index: FeatureIndex) -> None:
    """The browser went back or forward to another search, order or page of the list."""
    asked = st.session_state["table"]["address"]
    st.session_state["q"] = asked.get("q", "")
    st.session_state["sort"] = asked["sort"] if asked.get("sort") in sort_columns(index) else "best"
    st.session_state["ascending"] = asked.get("ascending") == "true"
    st.session_state["annotated"] = asked.get("annotated") == "true"
    page = str(asked.get("page", "1"))
    st.session_state["page"] = max(1, int(page)) if page.isdecimal() and len(page) < 7 else 1
