"""``python -m ssl_core.cli``: the command line without the console script."""

from ssl_core.cli import main

main(prog_name="ssl-core")
