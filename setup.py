"""What pyproject.toml cannot say: configs/ of the repository is installed as sde_diffusion/configs.

main.py, run_lib.py and configs/ lie at the top of the repository, where people look for them; one package is installed.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sde_diffusion", "sde_diffusion.*"]), "sde_diffusion.configs"],
    package_dir={"sde_diffusion.configs": "configs"},
)
