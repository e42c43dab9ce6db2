"""Compare: several dictionaries side by side, by what was measured about each."""

from typing import Any

import streamlit as st

from saekit.index import FeatureIndex
from saekit_explorer import components, data

TITLE = "Compare"
URL = "compare"
VIEW: dict[str, Any] = {"x": "l0", "y": "", "baselines": True}
"""The plot's axes unless the address says otherwise; `y` is then the first measure there is."""


def render(index: FeatureIndex) -> None:
    """Draw the page."""
    found = data.compared(index)
    for problem in found["problems"]:
        st.error("Something that should be compared cannot be read.")
        st.text(problem)
    stamp = f"{data.index_stamp(index)}:{len(found['entries'])}"
    result = components.show(
        "compare", {**found, "view": _view_of_address(), "stamp": stamp}, key="comparison", states=("view",)
    )
    if result.view:
        _remember(result.view)


def _view_of_address() -> dict[str, Any]:
    params = st.query_params
    return {
        "x": params.get("x", VIEW["x"]),
        "y": params.get("y", VIEW["y"]),
        "baselines": params.get("baselines", "1") == "1",
    }


def _remember(view: dict[str, Any]) -> None:
    for name, default in VIEW.items():
        value = view.get(name, default)
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if value == default or text == "":
            if name in st.query_params:
                del st.query_params[name]
        elif st.query_params.get(name) != text:
            st.query_params[name] = text
