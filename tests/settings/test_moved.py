"""A configuration key of yesterday's name is answered with today's."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from sde_diffusion.core.errors import UserError
from sde_diffusion.settings.moved import MOVED, check_moved, keys_of, refused
from sde_diffusion.settings.root import Settings

KEYS = {key for key, _, _ in Settings().items()}


@pytest.mark.parametrize(("former", "key"), MOVED.items())
def test_a_moved_key_names_the_new_one(former: str, key: str) -> None:
    """On the command line, in a stored configuration, and where ml_collections refuses to set it in a file."""
    assert key in KEYS and former not in KEYS
    said = f"the configuration key {former} is {key} now"
    with pytest.raises(UserError, match=said):
        check_moved(["seed", former])
    section, _, name = former.rpartition(".")
    config = Settings().config()
    with config.unlocked():
        config[section][name] = True
    with pytest.raises(UserError, match=said):
        Settings.from_config(config)
    with pytest.raises(AttributeError) as refusal:
        setattr(Settings().config()[section], name, True)
    assert said in str(refused(str(refusal.value)))


def test_other_keys_are_left_to_others() -> None:
    check_moved([*KEYS, "training.stepps"])
    assert "unknown configuration key" in str(refused('Key "stepps" does not exist'))
    assert list(keys_of(ConfigDict({"a": {"b": 1}, "c": 2}).to_dict())) == ["a", "a.b", "c"]
