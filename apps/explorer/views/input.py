"""Input: a text or an image of one's own, or one from the index, with the features that fire on every part of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st

from saekit.index import FeatureIndex
from saekit_explorer import components, data, widgets
from saekit_explorer.encoded import Encoded, from_index, payload
from saekit_explorer.navigation import open_feature
from saekit_explorer.views import steering

TITLE = "Input"
URL = "input"
MAX_CHARACTERS = 2000
"""Longest text: the address has to hold it."""
MAX_UPLOAD_MB = 20
N_GALLERY = 20
VIEW = {"paint": "strongest", "order": "telling", "smooth": False, "at": None}


def render(index: FeatureIndex) -> None:
    """Draw the page."""
    st.header("Input", anchor=False)
    found = _text(index) if index.kind == "text" else _image(index)
    if found is None:
        return
    stamp, encoded, picture = found
    # Above the tables of features, which are long, but drawn after them: they know which place was chosen.
    above = st.container()
    _show(index, encoded, stamp)
    with above:
        if index.kind == "text":
            steering.on_text(index, str(st.session_state["text"]), encoded)
        else:
            steering.on_image(index, *picture, encoded)


Picture = tuple[bytes, str]
"""An encoded image and its name; of a text, empty."""


def _text(index: FeatureIndex) -> tuple[str, Encoded, Picture] | None:
    text = st.text_area(
        "Text",
        key="text",
        bind="query-params",
        height=96,
        max_chars=MAX_CHARACTERS,
        placeholder="Type or paste a text, then press Ctrl+Enter",
        help="It runs through the backbone and the autoencoder on this machine. The address keeps the text.",
    )
    if not (text or "").strip():
        st.caption("Nothing to show yet. Type a text, or take one from the index:")
        for example in _some_examples(index, 3):
            start = _opening(index, example)
            st.button(start, key=f"take-{example}", on_click=_take, args=(start,), type="tertiary")
        return None
    encoded = _live(lambda: data.live_text(index, text))
    if encoded is None:
        return None
    if encoded.n_cut:
        st.warning(
            f"The text is longer than the context: cut after {encoded.n_places:,} tokens, {encoded.n_cut:,} left out."
        )
    return f"text:{text}", encoded, (b"", "")


def _image(index: FeatureIndex) -> tuple[str, Encoded, Picture] | None:
    left, right = st.columns([0.6, 0.4], gap="large")
    with right:
        upload = st.file_uploader(
            "Upload an image",
            type=["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"],
            max_upload_size=MAX_UPLOAD_MB,
            key="upload",
            help="Uploads stay in this session: the address of the page does not bring them back.",
        )
    with left:
        row = st.container(horizontal=True, vertical_alignment="bottom")
        example = row.number_input(
            "Example of the index",
            0,
            index.n_examples - 1,
            value=None,
            key="example",
            bind="query-params",
            placeholder="a number, or choose below",
            width=280,
        )
        if example is not None:
            row.button("Choose another", on_click=_unpick)
        live = st.toggle(
            "Run its thumbnail through the model",
            key="live",
            bind="query-params",
            help="Adds the reconstruction error. Off, the page shows what the index holds for the full image.",
        )
    if upload is not None:
        st.caption("Showing the upload, which only this session has. Remove it to return to the index's examples.")
        picture, name = upload.getvalue(), upload.name
        encoded = _live(lambda: data.live_image(index, picture, name))
        return None if encoded is None else (f"upload:{upload.file_id}", encoded, (picture, name))
    if example is None:
        st.caption("Choose an image of the index, or upload one.")
        gallery = [{**widgets.image_record(index, each), "example": each} for each in _some_examples(index, N_GALLERY)]
        components.show("gallery", {"images": gallery}, triggers=("pick",), on={"pick": _pick})
        return None
    chosen = int(example)
    thumbnail = (index.examples.thumbnail(chosen), widgets.image_record(index, chosen)["name"])
    if live:
        encoded = _live(lambda: data.live_image(index, *thumbnail))
        return None if encoded is None else (f"live:{chosen}", encoded, thumbnail)
    return f"example:{chosen}", from_index(index, chosen), thumbnail


def _live(run: Callable[[], Encoded]) -> Encoded | None:
    return steering.run_live(run, "The model could not be run on this input.")


def _show(index: FeatureIndex, encoded: Encoded, stamp: str) -> None:
    kept = st.session_state.get("live-view") or {}
    # As on the Feature page: the view goes to the browser with a new input only.
    if "live-pass" not in st.session_state or kept.get("stamp") != stamp:
        kept = {"stamp": stamp, "view": _view_of_address()}
        st.session_state["live-view"] = kept
    browse = data.current_browse()
    result = components.show(
        "live",
        {**payload(index, encoded), "view": kept["view"], "stamp": stamp, "list": browse.to_query()},
        key="live-pass",
        triggers=("open", "address", "change"),
        states=("view",),
        on={"address": lambda: _moved(index), "change": _change},
    )
    if result.view:
        _remember(result.view)
    if result.open is not None:
        open_feature(int(result.open), browse.to_query())


def _view_of_address() -> dict[str, Any]:
    params = st.query_params
    at = params.get("at", "")
    return {
        "paint": params.get("paint", VIEW["paint"]),
        "order": params.get("order", VIEW["order"]),
        "smooth": params.get("smooth") == "1",
        "at": int(at) if at.isdecimal() and len(at) < 7 else None,
    }


def _remember(view: dict[str, Any]) -> None:
    for name, default in VIEW.items():
        value = view.get(name, default)
        if value == default or value is None:
            if name in st.query_params:
                del st.query_params[name]
        else:
            text = str(int(value)) if isinstance(value, (bool, float)) else str(value)
            if st.query_params.get(name) != text:
                st.query_params[name] = text


def _some_examples(index: FeatureIndex, n: int) -> list[int]:
    """A few examples spread over the index, always the same."""
    return np.unique(np.linspace(0, index.n_examples - 1, n).round().astype(int)).tolist()


def _opening(index: FeatureIndex, example: int) -> str:
    ids = index.examples.token_ids(example)[index.examples.layout.n_prefix :][:40].tolist()
    return " ".join("".join(widgets.decode_tokens(index.examples.vocabulary or [], ids)).split())[:160]


def _take(text: str) -> None:
    st.session_state["text"] = text


def _moved(index: FeatureIndex) -> None:
    """The browser went back or forward to another input."""
    asked = st.session_state["live-pass"]["address"]
    if index.kind == "text":
        st.session_state["text"] = asked.get("text", "")
    else:
        example = str(asked.get("example", ""))
        is_example = example.isdecimal() and len(example) < 10 and int(example) < index.n_examples
        st.session_state["example"] = int(example) if is_example else None


def _change() -> None:
    """The "change" button of a feature: the panel above takes it over."""
    st.session_state["change"] = int(st.session_state["live-pass"]["change"])


def _pick() -> None:
    st.session_state["example"] = int(st.session_state["gallery"]["pick"])


def _unpick() -> None:
    st.session_state["example"] = None
