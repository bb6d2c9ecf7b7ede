"""``ssl-core``: the top layer. Heavy packages are imported only inside the command that needs them."""

from ssl_core.cli.main import main

__all__ = ["main"]
