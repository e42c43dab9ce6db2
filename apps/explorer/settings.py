"""What `saekit explore` was asked to show, handed to the Streamlit process through one environment variable."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from saekit.errors import FeatureIndexError

VARIABLE = "SAEKIT_EXPLORE"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The only files that the explorer opens: nothing in a URL can name another path."""

    index: str
    """Directory of the FeatureIndex."""
    checkpoint: str | None = None
    """Autoencoder for live inputs; None: the one that the index names."""
    backbone: str | None = None
    """Backbone for live inputs; None: the one that the index names."""
    compare: tuple[str, ...] = ()
    """Runs, evaluations and indexes that the Compare page shows beside this index."""

    def to_environment(self) -> dict[str, str]:
        """The environment that hands these settings to the Streamlit process."""
        return {VARIABLE: json.dumps(asdict(self))}


def read_settings() -> Settings:
    """The settings of this process. Raises `FeatureIndexError` when it was started by hand without any."""
    text = os.environ.get(VARIABLE)
    if not text:
        raise FeatureIndexError("No index was given. Type: saekit explore INDEX")
    given = json.loads(text)
    return Settings(**{**given, "compare": tuple(given.get("compare", ()))})


def index_path() -> Path:
    """The one index that this process serves."""
    return Path(read_settings().index)
