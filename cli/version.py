"""``nexus version``: what runs here, for bug reports."""

from __future__ import annotations

import platform
import ssl
from importlib import metadata

from cli import render
from cli.options import Json
from nexus import __version__
from nexus.protocol import framing


def version(as_json: Json = False) -> None:
    """Print the versions of Nexus Proxy and of what it stands on."""
    found = {
        "version": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "data_path": data_path(),
        "uvloop": _installed("uvloop"),
        "aiofastnet": _installed("aiofastnet"),
        "websockets": _installed("websockets"),
        "openssl": ssl.OPENSSL_VERSION,
        "platform": platform.platform(),
    }
    if as_json:
        render.document(found)
        return
    render.data(f"nexus-proxy {__version__}")
    for name, text in found.items():
        if name != "version":
            render.data(f"{name.replace('_', ' '):<10} {text or 'not installed'}")


def data_path() -> str:
    """Return what the modules of the data path are: ``compiled``, as in the image, or ``Python``."""
    return "Python" if (framing.__file__ or "").endswith(".py") else "compiled"


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
