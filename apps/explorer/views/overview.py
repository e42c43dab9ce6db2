"""Overview: what is in the index, how healthy the dictionary is, and where to start."""

from saekit.index import FeatureIndex
from saekit_explorer import components, data
from saekit_explorer.navigation import open_feature

TITLE = "Overview"
URL = "overview"


def render(index: FeatureIndex) -> None:
    """Draw the page."""
    result = components.show("overview", data.overview(index), triggers=("open",))
    if result.open is not None:
        open_feature(int(result.open))
