"""What is reported of bits/dim: Student's interval, pictures, and the text."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2]))

from sde_diffusion.pipelines.likelihood import likelihood_text
from sde_diffusion.report.likelihood import Summary, captioned, histogram, summary
from sde_diffusion.report.pictures import BORDER, PAPER, TILE, Picture, tiles

LINE = 16
"""Pixels of a caption's line."""

# --- the interval ---------------------------------------------------------------------------------------------


def test_the_interval_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, standard error sqrt(5/12), and 3.182 of them to each side (Student's table, 3 d.f.)."""
    found = summary(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.mean == 2.5 and found.n == 4
    assert found.standard_error == pytest.approx(math.sqrt(5.0 / 12.0), rel=1e-12)
    assert found.interval == pytest.approx((2.5 - 3.182 * 0.645497, 2.5 + 3.182 * 0.645497), abs=1e-3)
    assert str(found) == "2.5000 +- 0.6455 [0.4457, 4.5543]"


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [2, 3, 30, 5000])
def test_the_interval_is_students(n: int, level: float) -> None:
    """Against scipy.stats.t.interval of the same mean and standard error, at any level and size."""
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    found = summary(values, level)
    expected = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found.interval == pytest.approx(expected, rel=1e-12)
    assert found.standard_error == pytest.approx(float(stats.sem(values)), rel=1e-12)


def test_one_value_has_no_interval() -> None:
    """Nothing is known of the spread, so nothing is said of it."""
    assert summary(np.array([3.25])) == Summary(3.25, None, None, 1)
    assert str(summary(np.array([3.25]))) == "3.2500"


def test_equal_values_have_an_interval_of_no_width() -> None:
    found = summary(np.full(7, 1.5))
    assert found.standard_error == 0.0 and found.interval == (1.5, 1.5)


@pytest.mark.parametrize("level", [0.5, 0.95])
@pytest.mark.parametrize("n", [2, 5, 40])
def test_the_interval_covers_the_mean_as_often_as_it_says(n: int, level: float) -> None:
    """Of 2,000 sets of normal numbers, a share of `level` covers the true mean, within 4 standard deviations.

    With the normal distribution's quantiles in place of Student's, sets of 2 and 5 would fail.
    """
    trials = 2000
    sets = np.random.default_rng(17).normal(-1.0, 3.0, (trials, n))
    covered = 0
    for values in sets:
        interval = summary(values, level).interval
        assert interval is not None
        covered += interval[0] <= -1.0 <= interval[1]
    assert abs(covered - trials * level) < 4.0 * math.sqrt(trials * level * (1.0 - level))


# --- the pictures ---------------------------------------------------------------------------------------------


def opened(data: bytes) -> NDArray[np.uint8]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_the_histogram_is_a_png_that_depends_on_its_columns() -> None:
    """7 x 4 inches at 120 dots; every column has a colour of its own; the same columns give the same bytes."""
    rng = np.random.default_rng(0)
    ode, elbo = rng.normal(3.0, 0.5, 200), rng.normal(3.4, 0.6, 200)
    one = opened(histogram({"ode": ode}, "bits/dim", "test of digits"))
    both = opened(histogram({"ode": ode, "elbo": elbo}, "bits/dim", "test of digits"))
    assert one.shape == both.shape == (480, 840, 3)

    def share(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> float:
        return float((np.abs(image.astype(int) - colour).max(2) < 8).mean())

    blue, orange = (31, 119, 180), (255, 127, 14)  # matplotlib's C0 and C1
    assert share(one, blue) > 1e-3 and share(one, orange) == 0.0
    assert share(both, blue) > 1e-3 and share(both, orange) > 1e-3
    assert histogram({"ode": ode}, "bits/dim", "x") == histogram({"ode": ode}, "bits/dim", "x")


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0], [-1e3, 1e9]])
def test_a_histogram_of_few_or_equal_values(values: list[float]) -> None:
    assert opened(histogram({"ode": np.array(values)}, "bits/dim", "x")).shape == (480, 840, 3)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (12, 8, 1), (70, 90, 3)])
@pytest.mark.parametrize("count,columns", [(1, 8), (3, 8), (5, 2)])
def test_captioned_tiles_are_the_images_with_text_below(shape: tuple[int, int, int], count: int, columns: int) -> None:
    """Each tile is the image as it is without a caption, in order; dark pixels lie below it; all else is paper."""
    images: Picture = np.random.default_rng(1).integers(0, 256, (count, *shape)).astype(np.uint8)
    captions = [f"{i}.{i}75" for i in range(count)]
    sheet = captioned(images, captions, columns)
    alone = [tiles(image[None], 1)[BORDER:-BORDER, BORDER:-BORDER] for image in images]
    height, width = alone[0].shape[:2]
    assert min(height, width) >= TILE
    across = min(columns, count)
    down = math.ceil(count / across)
    assert sheet.shape == (down * (height + LINE + BORDER) + BORDER, across * (width + BORDER) + BORDER, 3)
    assert sheet.dtype == np.uint8
    rest = sheet.copy()
    for index, tile in enumerate(alone):
        top = BORDER + index // across * (height + LINE + BORDER)
        left = BORDER + index % across * (width + BORDER)
        np.testing.assert_array_equal(sheet[top : top + height, left : left + width], tile)
        below = sheet[top + height : top + height + LINE, left : left + width]
        assert (below < 100).any() and (below == PAPER).mean() > 0.6
        rest[top : top + height + LINE, left : left + width] = PAPER
    assert (rest == PAPER).all()


def test_captions_are_the_text_that_was_given() -> None:
    """Different captions leave different pixels, equal ones equal pixels, and an empty one none."""
    image = np.full((1, 8, 8, 1), 90, dtype=np.uint8)
    lines = [captioned(image, [text])[BORDER + TILE :] for text in ("1.234", "1.234", "5.678", "")]
    assert np.array_equal(lines[0], lines[1]) and not np.array_equal(lines[0], lines[2])
    assert (lines[3] == PAPER).all()


def test_a_caption_for_each_image() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        captioned(np.zeros((2, 8, 8, 1), dtype=np.uint8), ["1.0"])


# --- the text -------------------------------------------------------------------------------------------------


def flow_row(values: NDArray[np.float64], **more: Any) -> dict[str, Any]:
    own = summary(values)
    steps = {} if "steps" in more else {"method": "per_sample", "rtol": 1e-4, "atol": 1e-4}
    return {
        "bits_per_dim": own.mean,
        "standard_error": own.standard_error,
        "interval": own.interval,
        "space": "17 grey levels, uniformly dequantised",
        "nfe": 122,
        "seconds": 4.5,
        "smallest_time": 1e-5,
        **steps,
        "divergence": "hutchinson",
        "probes": 4,
        "probe": "gaussian",
        **more,
    }


def bound_row(values: NDArray[np.float64], **more: Any) -> dict[str, Any]:
    own = summary(values)
    return {
        "bits_per_dim": own.mean,
        "standard_error": own.standard_error,
        "interval": own.interval,
        "space": "17 grey levels, discrete",
        "nfe": 101,
        "seconds": 0.75,
        "smallest_time": 1e-3,
        "prior": 2e-5,
        "denoising": 1.25,
        "reconstruction": 2.0,
        "variance": "learned",
        "terms": 100,
        "steps": 1000,
        **more,
    }


def text_of(columns: dict[str, NDArray[np.float64]], figures: dict[str, dict[str, Any]]) -> str:
    count = len(next(iter(columns.values())))
    rows = [{name: float(values[i]) for name, values in columns.items()} for i in range(count)]
    given = {"samples": count, "data": "digits", "split": "test", "given": "its class", "figures": figures}
    return likelihood_text(given, rows)


def test_the_text_has_the_figures_side_by_side() -> None:
    """A row for each with mean, error, interval, smallest time, NFE, seconds and what it is about."""
    rng = np.random.default_rng(2)
    ode = rng.normal(3.0, 0.5, 50)
    elbo = ode + rng.normal(0.25, 0.01, 50)
    text = text_of({"ode": ode, "elbo": elbo}, {"ode": flow_row(ode), "elbo": bound_row(elbo)})
    lines = text.splitlines()
    assert lines[0] == "bits/dim of 50 samples of digits (test) given its class"
    assert lines[1].split()[:2] == ["figure", "bits/dim"]
    for line, values in ((lines[3], ode), (lines[4], elbo)):
        own = summary(values)
        assert own.interval is not None
        assert f"{own.mean:.4f}" in line and f"{own.interval[0]:.4f} .. {own.interval[1]:.4f}" in line
    assert lines[3].split()[0] == "ode" and lines[4].split()[0] == "elbo"
    assert "1e-05" in lines[3] and "122" in lines[3] and "4.5" in lines[3] and "uniformly dequantised" in lines[3]
    assert "0.001" in lines[4] and "101" in lines[4] and "0.75" in lines[4] and "discrete" in lines[4]
    assert "ode: hutchinson trace, 4 gaussian probes, per_sample at rtol 0.0001" in lines
    what = "elbo: prior 2.00e-05, denoising 1.2500, reconstruction 2.0000; 1000 levels, 100 of them for each sample"
    assert f"{what}, variance learned" in lines


def test_the_difference_is_taken_sample_by_sample() -> None:
    """Figures that vary together differ by an interval much narrower than either's own: it is a paired one."""
    rng = np.random.default_rng(3)
    ode = rng.normal(3.0, 0.5, 50)
    elbo = ode + rng.normal(0.25, 0.01, 50)
    vlb = ode - 0.125
    columns = {"ode": ode, "elbo": elbo, "vlb": vlb}
    figures = {"ode": flow_row(ode), "elbo": bound_row(elbo), "vlb": bound_row(vlb, terms=None)}
    lines = text_of(columns, figures).splitlines()
    gap = elbo - ode
    ends = stats.t.interval(0.95, 49, loc=gap.mean(), scale=stats.sem(gap))
    said = f"{gap.mean():.4f} +- {stats.sem(gap):.4f} [{ends[0]:.4f}, {ends[1]:.4f}]"
    assert f"elbo - ode, sample by sample: {said}" in lines
    assert "vlb - ode, sample by sample: -0.1250 +- 0.0000 [-0.1250, -0.1250]" in lines
    own = summary(ode).interval
    assert own is not None and ends[1] - ends[0] < 0.1 * (own[1] - own[0])


def test_the_text_of_one_figure_and_one_sample() -> None:
    """No interval, no difference, dashes where there is nothing to say; and what was asked for besides."""
    ode = np.array([3.5])
    more = {"divergence": "exact", "t_min_change": -2.5e-4, "probe_error": 0.0125}
    row = flow_row(ode, **more)
    del row["probes"], row["probe"]
    lines = text_of({"ode": ode}, {"ode": row}).splitlines()
    assert lines[3].split()[:4] == ["ode", "3.5000", "-", "-"]
    assert "ode: exact trace, per_sample at rtol 0.0001" in lines
    assert "ode: the probes give each sample a standard error of 0.0125 bits/dim" in lines
    assert "ode: twice the smallest time changes bits/dim by -2.5e-04" in lines
    assert not any("sample by sample" in line for line in lines)


def test_the_text_of_a_solver_of_fixed_steps_says_its_steps() -> None:
    """A method without tolerances is not said to have any."""
    ode = np.array([3.5, 3.0])
    (line,) = [
        line
        for line in text_of({"ode": ode}, {"ode": flow_row(ode, method="rk4", steps=25)}).splitlines()
        if line.startswith("ode:")
    ]
    assert "rk4" in line and "25 steps" in line and "rtol" not in line
