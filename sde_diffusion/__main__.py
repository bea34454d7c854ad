"""The command line, as `sde-diffusion` and as `python -m sde_diffusion`."""

import sys

from sde_diffusion.core.errors import UserError
from sde_diffusion.core.packages import extra


def cli() -> None:
    """Carry out sys.argv, and end the process; without the libraries of a command line, by one sentence."""
    try:
        with extra("cli"):
            from sde_diffusion.commands import command_line
    except UserError as error:
        sys.exit(f"error: {error}")
    command_line.cli()


if __name__ == "__main__":
    cli()
