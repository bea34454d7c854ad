"""Libraries that only a part of the toolkit needs: one context to import them in, one sentence where they are missing.

The core needs torch, numpy, scipy, torchdiffeq and safetensors, which are always there. What else a part imports, it
imports where it is used and inside `extra`:

    with extra("report"):
        import altair
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from sde_diffusion.core.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "data": ("sklearn", "mlxtend", "datasets", "pyarrow", "pooch", "PIL"),
    "report": ("matplotlib", "jinja2", "altair", "vl_convert", "torchmetrics", "pooch", "PIL"),
    "train": ("accelerate", "psutil", "tqdm", "tensorboard"),
    "cli": ("absl", "ml_collections", "yaml"),
    "fid": ("torch_fidelity",),
    "lpips": ("torchvision",),
    "wandb": ("wandb", "accelerate"),
    "mlflow": ("mlflow", "sqlalchemy", "alembic", "accelerate"),
}
"""The extras of the package and the libraries that each of them installs; pyproject.toml has their versions."""


def missing(library: str, extra: str) -> str:
    """The sentence for a library that is not installed, without a full stop."""
    return f'{library} is not installed; it comes with the extra {extra!r}: pip install "sde-diffusion[{extra}]"'


@contextmanager
def extra(name: str) -> Iterator[None]:
    """A context for imports of an extra's libraries. Raises UserError, with the extra's name, where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(missing((error.name or name).partition(".")[0], name)) from error


def require(*names: str) -> None:
    """Raises UserError for the first missing library of these extras, and imports none of them.

    For work that needs them at its end only.
    """
    for name in names:
        for library in EXTRAS[name]:
            if find_spec(library) is None:
                raise UserError(missing(library, name))
