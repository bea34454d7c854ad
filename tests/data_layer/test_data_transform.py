"""The map to model space: exact inverses, dequantisation on the bins, and refusals."""

import io
import math

import pytest
import torch

from sde_diffusion.core.errors import UserError
from sde_diffusion.data.dataset import Dataset
from sde_diffusion.data.transform import DataTransform


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(levels: int = 17, count: int = 60) -> Dataset:
    samples = torch.randint(levels, (count, 3, 4, 4), generator=seeded()).to(torch.uint8)
    return Dataset(samples, torch.arange(count) % 3, levels, ("a", "b", "c"), "images")


def all_levels(levels: int) -> torch.Tensor:
    return torch.arange(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("levels", range(2, 257))
def test_every_level_round_trips(levels):
    transform, stored = DataTransform(levels), all_levels(levels)
    x = transform.encode(stored)
    assert x.dtype == torch.float32 and x.min() == -1.0 and x.max() == 1.0
    assert torch.equal(((x + 1) / transform.bin_width).round().to(torch.uint8), stored)
    exact = 255 * stored.double() / (levels - 1)
    off = (transform.to_uint8(x).double() - exact).abs()
    assert off.max() <= 0.5 + 1e-4


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("mean", ["none", "all", "class"])
def test_levels_become_the_nearest_8_bit_value_under_any_mean(levels, mean):
    dataset = images(levels)
    transform = DataTransform.fit(dataset, mean)
    pictures = transform.to_uint8(transform.encode(dataset.samples, dataset.labels), dataset.labels)
    expected = [round(255 * level / (levels - 1)) for level in dataset.samples.flatten().tolist()]
    assert pictures.flatten().tolist() == expected and pictures.shape == dataset.samples.shape


def test_pictures_are_rounded_and_clamped():
    x = torch.tensor([-9.0, -1.0, -1 + 0.9 / 255, -1 + 1.1 / 255, 0.999, 1.0, 9.0])
    assert DataTransform(256).to_uint8(x).tolist() == [0, 0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_values_fill_their_bins_uniformly(levels):
    transform = DataTransform(levels)
    stored = all_levels(levels).expand(-1, 1, 100, 100)
    x = transform.dequantize(stored, generator=seeded())
    u = (x - transform.encode(stored)).double() / transform.bin_width
    assert u.abs().max() <= 0.5 + 1e-4
    error = 5 / math.sqrt(u.numel())
    assert abs(u.mean()) < error * math.sqrt(1 / 12)
    assert abs((u**2).mean() - 1 / 12) < error * math.sqrt(1 / 180)
    # Rounding gives the level back, but for the few draws that float32 puts on the edge of their bin.
    restored = ((x.double() + 1) / transform.bin_width).round()
    assert (restored != stored).double().mean() < 1e-4


def test_bin_width_is_the_spacing_of_the_levels():
    assert DataTransform(17).bin_width == 2 / 16 and DataTransform(256).bin_width == 2 / 255
    assert DataTransform(None).bin_width is None
    steps = DataTransform(17).encode(all_levels(17)).flatten().diff()
    assert torch.allclose(steps, torch.tensor(2 / 16))


def test_one_generator_a_sample_makes_the_noise_independent_of_the_batch():
    transform, stored = DataTransform(17), images().samples[:6]
    together = transform.dequantize(stored, generator=[seeded(i) for i in range(6)])
    alone = [transform.dequantize(stored[i : i + 1], generator=[seeded(i)]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
    with pytest.raises(UserError, match="5 generators"):
        transform.dequantize(stored, generator=[seeded()] * 5)


@pytest.mark.parametrize("dataset", [images(), Dataset(5 + torch.randn(60, 2), None, None, (), "vectors")])
def test_subtracting_the_mean_centres_and_inverts(dataset):
    transform = DataTransform.fit(dataset, "all")
    x = transform.encode(dataset.samples)
    assert x.mean(0).abs().max() < 1e-5
    assert torch.allclose(transform.decode(x), DataTransform(dataset.levels).encode(dataset.samples), atol=1e-6)


def test_subtracting_the_mean_of_each_class_centres_each_class():
    dataset = images()
    transform = DataTransform.fit(dataset, "class")
    x = transform.encode(dataset.samples, dataset.labels)
    assert transform.mean.shape == (3, 3, 4, 4)
    for label in range(3):
        assert x[dataset.labels == label].mean(0).abs().max() < 1e-5
    plain = DataTransform(17).encode(dataset.samples)
    assert torch.allclose(transform.decode(x, dataset.labels), plain, atol=1e-6)
    for call in (transform.encode, transform.to_uint8):
        with pytest.raises(UserError, match="labels are needed"):
            call(dataset.samples)


def test_continuous_data_is_not_dequantised():
    vectors = torch.randn(5, 2)
    assert torch.equal(DataTransform(None).dequantize(vectors, generator=seeded()), vectors)
    with pytest.raises(UserError, match="8-bit"):
        DataTransform(None).to_uint8(vectors)


def test_what_is_not_a_grey_level_is_refused():
    with pytest.raises(UserError, match="already encoded or dequantised"):
        DataTransform(256).encode(torch.rand(2, 3, 4, 4))
    with pytest.raises(UserError, match="0 to 17"):
        DataTransform(17).encode(torch.tensor([0, 17]))
    with pytest.raises(UserError, match="-1 to 0"):
        DataTransform(256).encode(torch.tensor([-1, 0]))


def test_fit_refuses_what_it_cannot_do():
    unlabelled = Dataset(torch.zeros(4, 2), None, None, (), "vectors")
    with pytest.raises(UserError, match="no labels"):
        DataTransform.fit(unlabelled, "class")
    with pytest.raises(UserError, match="class b has no samples"):
        DataTransform.fit(Dataset(torch.zeros(2, 2), torch.tensor([0, 0]), None, ("a", "b"), "v"), "class")
    with pytest.raises(UserError, match="class"):
        DataTransform.fit(unlabelled, "clas")


@pytest.mark.parametrize("mean", ["none", "all", "class"])
def test_state_survives_a_checkpoint_of_weights_only(mean):
    dataset = images()
    transform, file = DataTransform.fit(dataset, mean), io.BytesIO()
    torch.save(transform.to_state(), file)
    file.seek(0)
    restored = DataTransform.from_state(torch.load(file, weights_only=True))
    encoded = [each.encode(dataset.samples, dataset.labels) for each in (transform, restored)]
    assert torch.equal(*encoded) and restored.per_class == (mean == "class")
