"""Run: how the dictionary was trained."""

from saekit.index import FeatureIndex
from saekit_explorer import components, run_data

TITLE = "Run"
URL = "run"


def render(index: FeatureIndex) -> None:
    """Draw the page. The log is read each time: it is small, and the run may still be going."""
    components.show("run", run_data.run_page(index))
