"""Augmentation against its geometry in closed form, its numbers against what is measured on the pictures."""

from __future__ import annotations

import cmath
import math
from dataclasses import fields

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.augment import Augmentation, Geometry

CERTAIN = Augmentation(probability=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def one(**values: float) -> Geometry:
    """The geometry of a single sample; what is not named is zero."""
    given = {field.name: torch.tensor([values.get(field.name, 0.0)], dtype=torch.float64) for field in fields(Geometry)}
    return Geometry(**{name: value.bool() if name.startswith("flip") else value for name, value in given.items()})


def row(geometry: Geometry, i: int) -> Geometry:
    return Geometry(**{field.name: getattr(geometry, field.name)[i : i + 1] for field in fields(Geometry)})


def plane(height: int, width: int) -> Tensor:
    """z = right + i up of every pixel, from the centre; [H, W]."""
    right = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    up = (height - 1) / 2 - torch.arange(height, dtype=torch.float64)
    return torch.complex(right.expand(height, width), up[:, None].expand(height, width))


def blob(z: Tensor) -> Tensor:
    """A Gaussian of widths 4.5 and 3.5 pixels, aslant and off the centre."""
    z = (z - (3 + 2j)) * cmath.exp(0.5j)
    return torch.exp(-0.5 * ((z.real / 4.5).square() + (z.imag / 3.5).square()))


def undone(z: Tensor, augmentation: Augmentation, height: int, width: int, **values: float) -> Tensor:
    """Where the point that is at z after the changes was before them: the changes' inverses, the last one first."""
    given = dict.fromkeys((field.name for field in fields(Geometry)), 0.0) | values
    z = z - augmentation.translate_std * complex(width * given["shift_x"], -height * given["shift_y"])
    along, k = cmath.exp(1j * given["direction"]), 2 ** (augmentation.aniso_std * given["stretch"])
    z = z / along
    z = torch.complex(z.real / k, z.imag * k) * along
    z = z / cmath.exp(1j * given["angle"]) / 2 ** (augmentation.scale_std * given["scale"])
    z = z.conj() if given["flip_y"] else z
    return -z.conj() if given["flip_x"] else z


# --- the geometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"flip_x": 1},
        {"flip_y": 1},
        {"scale": 1.3},
        {"scale": -1.1},
        {"angle": 0.7},
        {"angle": -2.5},
        {"stretch": 1.4},
        {"stretch": -1.0, "direction": 0.6},
        {"shift_x": 0.83},
        {"shift_y": -0.61},
        {"shift_x": -0.4, "shift_y": 0.9},
        {"flip_x": 1, "scale": -0.7, "angle": 1.9, "stretch": 1.2, "direction": -2.0, "shift_x": 0.3, "shift_y": 0.5},
        {"flip_x": 1, "flip_y": 1, "scale": 0.9, "angle": -0.4, "stretch": -0.8, "direction": 1.0, "shift_y": -0.7},
    ],
)
@pytest.mark.parametrize(
    "augmentation", [Augmentation(), Augmentation(scale_std=0.3, aniso_std=0.1, translate_std=0.05)]
)
def test_each_change_and_all_together_act_as_their_formula(
    values: dict[str, float], augmentation: Augmentation
) -> None:
    """y(z) = x(z before the changes) for a smooth blob; the worst pixel measured is off by 0.24% of its height."""
    z = plane(70, 82)
    y = augmentation.apply(blob(z)[None, None], one(**values))[0, 0]
    torch.testing.assert_close(y, blob(undone(z, augmentation, 70, 82, **values)), rtol=0, atol=3e-3)


def test_flips_permute_pixels() -> None:
    x = noise(1, 3, 5, 6)
    for values, dims in (({"flip_x": 1.0}, (3,)), ({"flip_y": 1.0}, (2,)), ({"flip_x": 1.0, "flip_y": 1.0}, (2, 3))):
        assert torch.equal(CERTAIN.apply(x, one(**values)), x.flip(dims))


def test_the_picture_is_continued_by_reflection() -> None:
    """cos(pi k j / (W - 1)) is its own reflection, so that its warp is known up to the border and at any distance."""
    z, augmentation = plane(24, 32), Augmentation(translate_std=1.0)

    def waves(z: Tensor) -> Tensor:
        return torch.cos(2 * math.pi / 31 * (z.real + 31 / 2)) * torch.cos(math.pi / 23 * (z.imag - 23 / 2))

    for values in ({"shift_x": 0.31}, {"shift_x": -3.7, "shift_y": 2.2}, {"scale": -3.0}, {"angle": 0.8}):
        y = augmentation.apply(waves(z)[None, None], one(**values))[0, 0]
        expected = waves(undone(z, augmentation, 24, 32, **values))
        torch.testing.assert_close(y, expected, rtol=0, atol=8e-3)  # measured: 5e-3


def test_constants_stay_constant() -> None:
    x = torch.full((64, 1, 7, 2), 0.7, dtype=torch.float64)
    y, _ = CERTAIN(x, seeded())
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)


def test_what_the_pixels_cannot_carry_is_removed() -> None:
    """Halved in size, a wave of 0.4 cycles a pixel has 0.8: it vanishes, where every second pixel would alias it."""
    wave = torch.cos(math.pi * 25 / 31 * torch.arange(32, dtype=torch.float64)).expand(1, 1, 32, 32)
    y = CERTAIN.apply(wave, one(scale=-5.0))
    assert y.abs().max() < 5e-3


# --- the numbers ----------------------------------------------------------------------------------------------


def test_the_numbers_of_the_published_networks() -> None:
    geometry = one(flip_x=1, scale=0.5, angle=-math.pi / 3, stretch=-2, direction=math.pi / 6, shift_x=0.25, shift_y=-1)
    half_root = math.sqrt(3) / 2
    expected = torch.tensor([[1, 0, 0.5, -0.5, -half_root, -2 * half_root, -1, 0.25, -1]])
    torch.testing.assert_close(geometry.labels(), expected)
    assert geometry.labels().dtype == torch.float32 and Augmentation.dims == expected.shape[1]


@pytest.mark.parametrize("aniso_rotate_probability", [0.0, 1.0])
def test_the_numbers_are_what_is_measured(aniso_rotate_probability: float) -> None:
    """The affine map that three blobs' centroids undergo, taken apart, gives the numbers that the network is told.

    z -> K s e^{ia} flipped(z) + t has L L^T = s^2 K^2 and det L = +- s^2. K is symmetric with factors k > 1 along a
    direction r and 1/k across it, so that (log2 k e^{ir})^2, which does not tell r from r + pi, is measured of the
    label (w e^{ir}) with the sign of w; the label tells that sign only where the direction is not turned.
    """
    augmentation = Augmentation(1.0, 0.1, 0.1, aniso_rotate_probability, 0.02)
    z, centres = plane(80, 72), torch.tensor([4 + 3j, -6 + 2j, 1 - 5j], dtype=torch.complex128)
    blobs = torch.exp(-0.5 * ((z - centres[:, None, None]).abs() / 2).square())
    y, labels = augmentation(blobs.expand(24, -1, -1, -1), seeded(3))
    told = labels.double().T
    y = y * (z.abs() < 32)  # where the reflected blobs are not
    centroids = (y * z).sum((2, 3)) / y.sum((2, 3))
    # Flips are undone on the known side: both of them together cannot be told from a half turn.
    start = torch.where(told[1, :, None] == 1, centres.conj(), centres)
    start = torch.where(told[0, :, None] == 1, -start.conj(), start)
    before, after = (torch.view_as_real(points[:, 1:] - points[:, :1]).mT for points in (start, centroids))
    linear = after @ before.inverse()
    moved = centroids[:, 0] - torch.view_as_complex((linear @ torch.view_as_real(start[:, 0])[:, :, None])[..., 0])

    size = linear.det().sqrt()
    factors, axes = torch.linalg.eigh(linear @ linear.mT)
    k, along = factors[:, 1].sqrt() / size, torch.view_as_complex(axes[:, :, 1].contiguous())
    squeeze = axes @ torch.diag_embed(torch.stack([k, 1 / k], dim=1)) @ axes.mT  # K^-1
    turned = torch.view_as_complex((squeeze @ linear)[:, :, 0].contiguous()) / size
    stretched = (k.log2() / augmentation.aniso_std * along).square()
    pair = torch.complex(told[5], told[6])

    def close(measured: Tensor, expected: Tensor, atol: float) -> None:
        torch.testing.assert_close(measured, expected, rtol=0, atol=atol)

    close(size.log2() / augmentation.scale_std, told[2], 3e-3)
    close(turned, torch.complex(told[3] + 1, told[4]), 1e-3)
    close(moved, augmentation.translate_std * torch.complex(72 * told[7], -80 * told[8]), 3e-3)
    if aniso_rotate_probability:
        side = torch.where((stretched - pair.square()).abs() < (stretched + pair.square()).abs(), 1, -1)
        assert set(side.tolist()) == {-1, 1}
    else:
        side = pair.real.sign()
    close(side * stretched, pair.square(), 1e-2)


def test_each_change_happens_with_its_probability() -> None:
    """Of 4000 draws, within four standard deviations; and no two changes depend on each other."""
    count, p = 4000, 0.12
    labels = Augmentation(p, aniso_rotate_probability=0.3).draw(count, seeded()).labels()
    expected = dict(enumerate((0.5, p / 2, p, p, p, p, 0.3 * p, p, p)))
    for i, probability in expected.items():
        found = int(labels[:, i].count_nonzero())
        assert abs(found - count * probability) < 4 * math.sqrt(count * probability * (1 - probability)), i
    assert torch.equal(labels[:, 7] != 0, labels[:, 8] != 0)
    together = torch.corrcoef((labels[:, [0, 1, 2, 4, 5, 7]] != 0).double().T) - torch.eye(6)
    assert together.abs().max() < 4 / math.sqrt(count)


def test_strengths_are_normal_and_angles_uniform() -> None:
    """Kolmogorov's distance of 4000 draws below its 0.1% quantile; they are independent of each other."""
    drawn = Augmentation(1.0, aniso_rotate_probability=1.0).draw(4000, seeded())
    numbers = [drawn.scale, drawn.stretch, drawn.shift_x, drawn.shift_y, drawn.angle, drawn.direction]
    for i, values in enumerate(numbers):
        law = ("norm", ()) if i < 4 else ("uniform", (-math.pi, 2 * math.pi))
        assert kstest(values.numpy(), law[0], args=law[1]).statistic < 1.95 / math.sqrt(len(values))
    together = torch.corrcoef(torch.stack(numbers)) - torch.eye(6)
    assert together.abs().max() < 4 / math.sqrt(len(drawn.scale))


# --- what does not change -------------------------------------------------------------------------------------


def test_without_probability_nothing_is_done() -> None:
    x = noise(64, 3, 8, 8)
    y, labels = Augmentation(0.0)(x, seeded())
    assert torch.equal(y, x) and not labels.any()


def test_samples_without_affine_changes_keep_their_bits() -> None:
    x = noise(256, 1, 6, 8)
    before = x.clone()
    y, labels = Augmentation()(x, seeded())
    assert torch.equal(x, before)
    x = torch.where(labels[:, 0, None, None, None] == 1, x.flip(3), x)
    x = torch.where(labels[:, 1, None, None, None] == 1, x.flip(2), x)
    same, still = (y == x).flatten(1).all(1), ~labels[:, 2:].any(1)
    assert torch.equal(same, still) and 100 < int(same.sum()) < 200


def test_a_sample_does_not_depend_on_its_batch_mates() -> None:
    x = noise(12, 2, 9, 11).double()
    geometry = Augmentation(0.4).draw(12, seeded())
    together = CERTAIN.apply(x, geometry)
    for i in range(12):
        alone = CERTAIN.apply(x[i : i + 1], row(geometry, i))
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-12)


def test_the_generator_decides_alone() -> None:
    """The same seed gives the same pictures and numbers, whatever is in them; the global random state is untouched."""
    x, generators, before = noise(16, 3, 8, 8), [seeded(7), seeded(7), seeded(8)], torch.get_rng_state()
    first, again, other = (CERTAIN(x, generator) for generator in generators)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    third = seeded(7)
    assert torch.equal(CERTAIN(noise(16, 1, 4, 4, seed=2), third)[1], first[1])
    assert torch.equal(third.get_state(), generators[0].get_state())
    # How much is drawn does not depend on the outcome either.
    never = seeded(7)
    Augmentation(0.0)(x, never)
    assert torch.equal(never.get_state(), third.get_state())


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["probability", "aniso_rotate_probability"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_what_is_not_a_probability_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"the {name} of an augmentation must lie in \[0, 1\], got"):
        Augmentation(**{name: value})


@pytest.mark.parametrize("name", ["scale_std", "aniso_std", "translate_std"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_what_is_not_a_strength_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"the {name} of an augmentation must be at least 0 and finite"):
        Augmentation(**{name: value})


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 8, 8), torch.zeros(2, 1, 1, 8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)]
)
def test_what_is_not_a_batch_of_images_is_refused(x: Tensor) -> None:
    with pytest.raises(UserError, match="augmentation takes floating-point images"):
        CERTAIN(x, seeded())
