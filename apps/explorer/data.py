"""All caching: the open index, the small payload of a feature's page, the current list, the page addresses."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from saekit.index import FeatureIndex
from saekit_explorer import compare_data, overview_data, table, widgets
from saekit_explorer.browse import Browse, Listing, list_features
from saekit_explorer.change import Change
from saekit_explorer.encoded import Encoded
from saekit_explorer.settings import index_path, read_settings

if TYPE_CHECKING:
    from saekit_explorer.live import LiveModel

BROWSE_PARAM = "list"
"""The query parameter by which pages other than Features carry the list that previous/next walk along."""


def open_index() -> FeatureIndex:
    """The index that this process serves, opened once and again when it was rebuilt."""
    path = index_path()
    meta = path / "meta.json"
    stamp = meta.stat().st_mtime_ns if meta.exists() else 0
    return _open_index(str(path), stamp)


@st.cache_resource(show_spinner=False, max_entries=2)
def _open_index(path: str, stamp: int) -> FeatureIndex:
    return FeatureIndex.open(Path(path))


def index_stamp(index: FeatureIndex) -> str:
    """What distinguishes this index, as it is now, from others in the caches."""
    return f"{index.path}:{index.meta.get('content_hash', '')}:{(index.path / 'meta.json').stat().st_mtime_ns}"


def annotations_stamp(index: FeatureIndex) -> int:
    """Changes whenever an annotation does."""
    try:
        return index.annotations_path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def examples(index: FeatureIndex, feature: int) -> dict[str, Any]:
    """`widgets.examples`, kept for the last 256 features."""
    return _examples(index, index_stamp(index), feature)


@st.cache_data(show_spinner=False, max_entries=256)
def _examples(_index: FeatureIndex, stamp: str, feature: int) -> dict[str, Any]:
    return widgets.examples(_index, feature)


def side(index: FeatureIndex, feature: int) -> dict[str, Any]:
    """`widgets.side`, kept until an annotation changes (its links show labels)."""
    return _side(index, index_stamp(index), annotations_stamp(index), feature)


@st.cache_data(show_spinner=False, max_entries=256)
def _side(_index: FeatureIndex, stamp: str, annotations: int, feature: int) -> dict[str, Any]:
    return widgets.side(_index, feature)


def listing(index: FeatureIndex, browse: Browse) -> Listing:
    """The features of `browse`, in order; kept until an annotation changes."""
    return _listing(index, index_stamp(index), annotations_stamp(index), browse)


@st.cache_data(show_spinner=False, max_entries=32, hash_funcs={Browse: repr})
def _listing(_index: FeatureIndex, stamp: str, annotations: int, browse: Browse) -> Listing:
    return list_features(_index, browse)


def overview(index: FeatureIndex) -> dict[str, Any]:
    """`overview_data.overview`, kept until an annotation changes."""
    return _overview(index, index_stamp(index), annotations_stamp(index))


@st.cache_data(show_spinner=False, max_entries=4)
def _overview(_index: FeatureIndex, stamp: str, annotations: int) -> dict[str, Any]:
    return overview_data.overview(_index)


def csv(index: FeatureIndex, browse: Browse) -> str:
    """The whole list as CSV; made when somebody asks for it."""
    return table.to_csv(index, listing(index, browse))


def current_browse() -> Browse:
    """The list that this page was opened from, out of its address."""
    return Browse.from_query(st.query_params.get(BROWSE_PARAM, ""))


def first_feature(index: FeatureIndex) -> int:
    """The feature to show when the address names none."""
    found = overview_data.starters(index, n=1)
    return int(found[0]) if len(found) else 0


def live_model(index: FeatureIndex) -> "LiveModel":
    """Backbone and autoencoder, loaded once per process."""
    return _live_model(index, index_stamp(index), repr(read_settings()))


@st.cache_resource(show_spinner=False, max_entries=1)
def _live_model(_index: FeatureIndex, stamp: str, settings: str) -> "LiveModel":
    from saekit_explorer.live import load_live

    return load_live(_index, read_settings())


def live_text(index: FeatureIndex, text: str) -> Encoded:
    """`live.encode_text`, kept for the last 32 texts."""
    return _live_text(index, index_stamp(index), text)


@st.cache_data(show_spinner=False, max_entries=32)
def _live_text(_index: FeatureIndex, stamp: str, text: str) -> Encoded:
    from saekit_explorer.live import encode_text

    return encode_text(live_model(_index), text)


def live_image(index: FeatureIndex, picture: bytes, name: str) -> Encoded:
    """`live.encode_image`, kept for the last 16 images."""
    return _live_image(index, index_stamp(index), picture, name)


@st.cache_data(show_spinner=False, max_entries=16)
def _live_image(_index: FeatureIndex, stamp: str, picture: bytes, name: str) -> Encoded:
    from saekit_explorer.live import encode_image

    return encode_image(live_model(_index), picture, name)


def steered(index: FeatureIndex, feature: int, change: Change, prompt: str, n_tokens: int) -> dict[str, Any]:
    """`live_steering.steer_prompt`, kept for the last 64."""
    return _steered(index, index_stamp(index), feature, change, prompt, n_tokens)


@st.cache_data(show_spinner=False, max_entries=64, hash_funcs={Change: repr})
def _steered(
    _index: FeatureIndex, stamp: str, feature: int, change: Change, prompt: str, n_tokens: int
) -> dict[str, Any]:
    from saekit_explorer.live_steering import steer_prompt

    return steer_prompt(live_model(_index), feature, change, prompt, n_tokens)


def text_effect(index: FeatureIndex, text: str, feature: int, change: Change, place: int | None) -> dict[str, Any]:
    """`live_steering.effect_on_text`, kept for the last 64."""
    return _text_effect(index, index_stamp(index), text, feature, change, place)


@st.cache_data(show_spinner=False, max_entries=64, hash_funcs={Change: repr})
def _text_effect(
    _index: FeatureIndex, stamp: str, text: str, feature: int, change: Change, place: int | None
) -> dict[str, Any]:
    from saekit_explorer.live_steering import effect_on_text

    return effect_on_text(live_model(_index), text, feature, change, place)


def image_effect(
    index: FeatureIndex, picture: bytes, name: str, feature: int, change: Change, place: int | None
) -> dict[str, Any]:
    """`live_steering.effect_on_image`, kept for the last 32."""
    return _image_effect(index, index_stamp(index), picture, name, feature, change, place)


@st.cache_data(show_spinner=False, max_entries=32, hash_funcs={Change: repr})
def _image_effect(
    _index: FeatureIndex, stamp: str, picture: bytes, name: str, feature: int, change: Change, place: int | None
) -> dict[str, Any]:
    from saekit_explorer.live_steering import effect_on_image

    return effect_on_image(live_model(_index), picture, name, feature, change, place)


def compared(index: FeatureIndex) -> dict[str, Any]:
    """`compare_data.comparison` of this index with what the settings name; read again when a file changes."""
    paths = read_settings().compare
    stamps = tuple(compare_data.stamp(Path(path)) for path in paths)
    return _compared(index, index_stamp(index), paths, stamps)


@st.cache_data(show_spinner=False, max_entries=4)
def _compared(_index: FeatureIndex, stamp: str, paths: tuple[str, ...], stamps: tuple[int, ...]) -> dict[str, Any]:
    return compare_data.comparison(_index, [Path(path) for path in paths])
