"""The ASGI app that Streamlit runs: the explorer, and two read-only routes for what messages should not carry.

Thumbnails and scripts have addresses with a content hash in them, so that the browser keeps them and a switch to
another feature sends numbers only.
"""

from pathlib import Path

import streamlit as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from saekit.errors import SaekitError
from saekit_explorer import components

_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


def thumbnail(request: Request) -> Response:
    """The thumbnail of one example of the served index."""
    # Imported here: Streamlit's caches want its runtime, which starts after this module.
    from saekit_explorer import data

    try:
        image = data.open_index().examples.thumbnail(int(request.path_params["example"]))
    except (SaekitError, LookupError):
        return Response(status_code=404)
    return Response(image, media_type="image/webp", headers=_FOREVER)


def script(request: Request) -> Response:
    """One of the components' scripts. Names are looked up in a fixed list, never joined to a path."""
    known = {f"{name}.js": components.FOLDER / f"{name}.js" for name in ("common", *components.STYLES)}
    path = known.get(request.path_params["name"])
    if path is None:
        return Response(status_code=404)
    return Response(path.read_bytes(), media_type="text/javascript", headers=_FOREVER)


app = st.App(
    Path(__file__).parent / "app.py",
    routes=[
        Route("/thumbnail/{stamp}/{example:int}", thumbnail),
        Route(f"/{components.ROUTE}/{{stamp}}/{{name}}", script),
    ],
)
