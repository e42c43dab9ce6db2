"""Change a feature and see what happens: a panel of the Feature page and one of the Input page."""

from collections.abc import Callable
from typing import Any, TypeVar

import streamlit as st

from saekit.errors import SaekitError
from saekit.index import FeatureIndex
from saekit_explorer import components, data, widgets
from saekit_explorer.change import VERBS, Change
from saekit_explorer.encoded import Encoded

PROMPT = "The thing I remember most is"
MAX_PROMPT = 500
N_TOKENS = 30
EVERYWHERE, HERE = "everywhere", "here"

Found = TypeVar("Found")


def run_live(run: Callable[[], Found], failed: str) -> Found | None:
    """What `run` gives, or the reason why the model could not be run."""
    try:
        with st.spinner("Running the model …", show_time=True):
            return run()
    except SaekitError as error:
        st.error(failed)
        st.text(str(error))
        return None


def on_prompt(index: FeatureIndex, feature: int) -> None:
    """What the model writes after a prompt, without and with this feature changed; nothing runs until asked for."""
    is_on = st.toggle(
        "Steer the model with this feature",
        key="steer",
        bind="query-params",
        help="Loads the backbone and the autoencoder on this machine and lets them write, with and without the change.",
    )
    if not is_on:
        return
    prompt = st.text_input("Prompt", value=PROMPT, key="prompt", bind="query-params", max_chars=MAX_PROMPT)
    row = st.container(horizontal=True, vertical_alignment="bottom")
    change = _choose(index, feature, row, verbs=("add", "set", "multiply", "ablate"), default=1.5)
    if change is None:
        return
    if not (prompt or "").strip():
        st.caption("Write a prompt first.")
        return
    found = run_live(
        lambda: data.steered(index, feature, change, str(prompt), N_TOKENS), "The model could not be steered."
    )
    if found is not None:
        components.show("steered", found, key="steered-text")


def on_text(index: FeatureIndex, text: str, encoded: Encoded) -> None:
    """How the predictions of this very text move when one of its features is changed."""
    chosen = _chosen(index, encoded)
    if chosen is None:
        return
    feature, change, place = chosen
    found = run_live(
        lambda: data.text_effect(index, text, feature, change, place), "The model could not be run with this change."
    )
    if found is not None:
        stamp = f"{text}:{feature}:{change}:{place}"
        components.show("effect", {**found, "stamp": stamp}, key="effect-text")


def on_image(index: FeatureIndex, picture: bytes, name: str, encoded: Encoded) -> None:
    """How the model's view of this very image moves when one of its features is changed."""
    chosen = _chosen(index, encoded)
    if chosen is None:
        return
    feature, change, place = chosen
    found = run_live(
        lambda: data.image_effect(index, picture, name, feature, change, place),
        "The model could not be run with this change.",
    )
    if found is not None:
        components.show("effect", found, key="effect-image")


def _chosen(index: FeatureIndex, encoded: Encoded) -> tuple[int, Change, int | None] | None:
    """The feature, the change and the place that the page asks for; None until there is a feature."""
    unit = "token" if encoded.kind == "text" else "patch"
    row = st.container(horizontal=True, vertical_alignment="bottom")
    feature = row.number_input(
        "Change a feature of this input",
        0,
        index.d_sae - 1,
        value=None,
        key="change",
        bind="query-params",
        placeholder="a number, or press “change” beside one",
        width=320,
        help="What the model would have predicted with this feature changed; what the dictionary does not explain "
        "stays as it is.",
    )
    if feature is None:
        return None
    change = _choose(index, int(feature), row, verbs=("ablate", "multiply", "set", "add"), default=2.0)
    if change is None:
        return None
    at = st.query_params.get("at", "")
    place = int(at) if at.isdecimal() and len(at) < 7 and int(at) < encoded.n_places else None
    where = row.segmented_control(
        "Where",
        [EVERYWHERE, HERE],
        format_func=lambda key: "Everywhere" if key == EVERYWHERE else f"At the chosen {unit}",
        default=EVERYWHERE,
        key="where",
        bind="query-params",
        required=True,
    )
    if where == HERE and place is None:
        st.caption(f"Choose a {unit} below first.")
        return None
    if change.verb in ("ablate", "multiply") and feature not in encoded.features:
        st.caption(f"Feature {feature} is silent on this input, so there is nothing to take out of it.")
    return int(feature), change, place if where == HERE else None


def _choose(index: FeatureIndex, feature: int, row: Any, verbs: tuple[str, ...], default: float) -> Change | None:
    """The verb and its amount, in `row`; amounts of `set` and `add` count in the feature's highest activation."""
    verb = row.selectbox("Do", verbs, format_func=lambda key: VERBS[key], key="do", bind="query-params", width=160)
    if verb == "ablate":
        return Change("ablate")
    highest = float(index.stats["max"][feature])
    is_relative = verb in ("set", "add")
    if is_relative and bool(index.stats["is_dead"][feature]):
        st.caption(f"Feature {feature} never fires in this index, so there is no highest activation to count in.")
        return None
    amount = row.number_input(
        "Times its highest activation" if is_relative else "Factor",
        -20.0,
        20.0,
        value=default,
        step=0.5,
        key="amount",
        bind="query-params",
        width=210,
        help=f"Its highest activation in this index is {widgets.shown_number(highest)}." if is_relative else None,
    )
    return Change(str(verb), float(amount) * (highest if is_relative else 1.0))
