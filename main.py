"""The command line, from a checkout: `python main.py ...` and `torchrun main.py ...`; see --help.

Installed, the same is `sde-diffusion ...` and `torchrun -m sde_diffusion ...` (sde_diffusion/commands/command_line.py).
"""

from sde_diffusion.__main__ import cli

if __name__ == "__main__":
    cli()
