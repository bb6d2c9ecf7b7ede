"""The command group."""

import click


@click.group()
def main() -> None:
    """Self-supervised learning from raw files to a registered champion."""
