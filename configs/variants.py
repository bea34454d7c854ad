"""Variants of a configuration: --config NAME:VARIANT,VARIANT."""

from collections.abc import Iterable

from sde_diffusion.core.errors import choose


def read(chosen: str, valid: Iterable[str]) -> set[str]:
    """The variants in a text such as "subvp,deep". Raises UserError for one that the configuration does not have."""
    table = {name: name for name in valid}
    return {choose("variant", name.strip(), table) for name in chosen.split(",") if name.strip()}
