"""Feature: one latent as a person reads it. Examples, numbers, neighbours, and what people call it."""

import streamlit as st

from saekit.errors import FeatureIndexError
from saekit.index import FeatureIndex
from saekit_explorer import components, data, widgets
from saekit_explorer.views import steering

TITLE = "Feature"
URL = "feature"
VIEW: dict[str, str | int | bool] = {
    "examples": "top",
    "context": "16",
    "threshold": 0,
    "breaks": False,
    "smooth": False,
}
"""What the examples panel shows unless its address says otherwise."""


def render(index: FeatureIndex) -> None:
    """Draw the page."""
    feature = _chosen(index)
    browse = data.current_browse()
    head = widgets.head(index, feature, browse, data.listing(index, browse))
    components.show(
        "head", head, triggers=("open", "address"), on={"open": lambda: _open("head"), "address": lambda: _moved(index)}
    )
    main, aside = st.columns([0.66, 0.34], gap="large")
    with aside:
        _annotate(index, feature)
        panels = {**data.side(index, feature), "list": browse.to_query()}
        components.show("side", panels, triggers=("open",), on={"open": lambda: _open("side")})
        _go_to(index)
    with main:
        if index.kind == "text":
            steering.on_prompt(index, feature)
        _examples(index, feature)


def _chosen(index: FeatureIndex) -> int:
    """The feature in the address. Raises `FeatureIndexError` for one that does not exist."""
    if st.session_state.get("feature") is not None:
        return index.check(int(st.session_state["feature"]))
    asked = st.query_params.get("feature")
    if asked is None:
        feature = st.session_state["feature"] = data.first_feature(index)
    elif not asked.isdecimal() or len(asked) > 12:
        raise FeatureIndexError(f"feature={asked!r} is not a number; this index has features 0 to {index.d_sae - 1}.")
    else:
        feature = index.check(int(asked))
    return feature


def _go_to(index: FeatureIndex) -> None:
    """The number in the address, as a box: for those who know where they want to go."""
    st.number_input("Go to feature", 0, index.d_sae - 1, value=None, key="feature", bind="query-params")


def _open(component: str) -> None:
    st.session_state["feature"] = int(st.session_state[component]["open"])


def _moved(index: FeatureIndex) -> None:
    """The browser went back or forward to another feature."""
    asked = str(st.session_state["head"]["address"].get("feature", ""))
    if asked.isdecimal() and int(asked) < index.d_sae:
        st.session_state["feature"] = int(asked)


def _annotate(index: FeatureIndex, feature: int) -> None:
    annotation = index.annotations.get(feature)
    known = sorted({tag for each in index.annotations.all().values() for tag in each.tags} | set(annotation.tags))

    def save() -> None:
        try:
            index.annotations.set(
                feature,
                label=st.session_state[f"label-{feature}"],
                tags=st.session_state[f"tags-{feature}"],
                note=st.session_state[f"note-{feature}"],
            )
        except FeatureIndexError as error:
            st.session_state["annotation-error"] = str(error)

    st.text_input("Label", annotation.label, key=f"label-{feature}", placeholder="Name this feature", on_change=save)
    st.multiselect(
        "Tags",
        known,
        default=list(annotation.tags),
        key=f"tags-{feature}",
        accept_new_options=True,
        placeholder="Add tags",
        on_change=save,
    )
    st.text_area(
        "Note",
        annotation.note,
        key=f"note-{feature}",
        height=80,
        placeholder="What you see, what to check",
        on_change=save,
    )
    error = st.session_state.pop("annotation-error", None)
    if error:
        st.error("The annotation was not saved.")
        st.text(error)


def _examples(index: FeatureIndex, feature: int) -> None:
    """Mount the examples. What is chosen in them comes back as state, and from there goes into the address.

    The view is sent along only when the feature changes: the browser is ahead of the server, and must not be sent back.
    """
    kept = st.session_state.get("examples") or {}
    view = {**_view_of_address(), **(kept.get("view") or {})}
    if "examples" not in st.session_state or st.session_state.get("examples-of") != feature:
        st.session_state["examples-of"], st.session_state["examples-view"] = feature, view
    payload = data.examples(index, feature)
    stamp = f"{data.index_stamp(index)}:{feature}"
    result = components.show(
        "examples", {**payload, "view": st.session_state["examples-view"], "stamp": stamp}, states=("view",)
    )
    if result.view:
        _remember(result.view)


def _view_of_address() -> dict[str, str | int | bool]:
    params = st.query_params
    threshold = params.get("threshold", "0")
    return {
        "examples": params.get("examples", VIEW["examples"]),
        "context": params.get("context", VIEW["context"]),
        "threshold": min(90, int(threshold)) if threshold.isdecimal() else 0,
        "breaks": params.get("breaks") == "1",
        "smooth": params.get("smooth") == "1",
    }


def _remember(view: dict[str, str | int | bool]) -> None:
    for name, default in VIEW.items():
        value = view.get(name, default)
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if value == default:
            if name in st.query_params:
                del st.query_params[name]
        elif st.query_params.get(name) != text:
            st.query_params[name] = text
