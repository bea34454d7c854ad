"""From the file of another code base to x0_hat: the spec that is found, and each source's own formulas at its levels.

The outputs of the networks alone are compared with stored ones elsewhere. Here a network is called under its source's
conventions, written out by hand, and its prediction turned into x0_hat by the source's formulas; the denoiser that was
imported must give the same from the state in model space [-1, 1], where a network for [0, 1] sees y = (x + alpha)/2.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.denoisers.base import moments
from sde_diffusion.importers import SOURCES, ddim, edm, openai, score_sde
from sde_diffusion.importers.foreign import Settings
from sde_diffusion.nets.building import outline
from sde_diffusion.storage.checkpoint import checkpoint_files, read_checkpoint
from tests.golden.reference import arrays
from tests.importers.golden import reference
from tests.importers.writing import (
    AVERAGE,
    diffusers_folder,
    edm_bytes,
    edm_file,
    openai_file,
    saved,
    score_sde_file,
    system_call,
    written,
)
from tests.nets.contract import randn

UNET2D = "diffusers_unet2d_ddpm_family"

# --- files, and what must be found in them --------------------------------------------------------------------


def song(name: str, sde: str, continuous: bool = True, **model: Any) -> Settings:
    """The configuration of one of score_sde's networks, trained under an SDE; some keys of its model replaced."""
    config = reference(name).config
    return {**config, "model": {**config["model"], **model}, "training": {"sde": sde, "continuous": continuous}}


def nichol(name: str, **flags: Any) -> Settings:
    """The arguments of one of OpenAI's networks, beside the flags of its diffusion."""
    return {"image_size": 16, **reference(name).config, **flags}


def betas(n: int) -> Tensor:
    """score_sde's rates of n levels, from 0.1/n to 20/n; for 1000 they are DDPM's."""
    return torch.linspace(0.1 / n, 20.0 / n, n, dtype=torch.float64)


PLACE = TemporaryDirectory()
"""Of what is written and imported once for all tests."""


@dataclass(frozen=True, eq=False)
class Case:
    """A file of another code base and the spec that must be found in it, where that differs from the spec's defaults.

    write_anew: path -> the file; config: what is given beside it
    """

    source: str
    write_anew: Callable[[Path], Path]
    process: sd.SDE
    spec: dict[str, Any] = field(default_factory=dict)
    config: Settings | None = None

    @cached_property
    def written(self) -> Path:
        """The file, or the folder, as it was written first; not to be changed."""
        return self.write_anew(Path(mkdtemp(dir=PLACE.name)) / "foreign")

    def write(self, path: Path) -> Path:
        """A copy of it."""
        if self.written.is_dir():
            return Path(shutil.copytree(self.written, path))
        return Path(shutil.copyfile(self.written, path))

    def imported(self, **options: Any) -> sd.NetworkDenoiser:
        return sd.import_checkpoint(self.written, self.source, self.config, **options)

    @cached_property
    def run(self) -> tuple[sd.NetworkDenoiser, Path]:
        """The denoiser and the run folder of one import; not to be changed."""
        folder = Path(mkdtemp(dir=PLACE.name)) / "run"
        return self.imported(folder=folder), folder


def song_case(name: str, process: sd.SDE, config: Settings, **spec: Any) -> Case:
    return Case("score_sde", partial(score_sde_file, name=name), process, spec, config)


def edm_case(name: str, process: sd.SDE, cls: str = "EDMPrecond", doubled: str = "", **spec: Any) -> Case:
    return Case("edm", partial(edm_file, name=name, cls=cls, doubled=doubled), process, spec)


def openai_case(name: str, process: sd.SDE, config: Settings, **spec: Any) -> Case:
    return Case("openai", partial(openai_file, name=name), process, spec, config)


def diffusers_case(process: sd.SDE, options: Mapping[str, Any], **spec: Any) -> Case:
    write = partial(diffusers_folder, name=UNET2D, **options)
    return Case("diffusers", write, process, {"label": "index", **spec})


VP, SUBVP, VE, EDM = sd.VPSDE(0.1, 20.0), sd.SubVPSDE(0.1, 20.0), sd.VESDE(0.01, 50.0), sd.EDM(0.002, 80.0)
LEVELS = sd.DiscreteVP(betas(1000))
NCSN_LEVELS = sd.DiscreteVE(arrays("sde/score_sde_math")["ncsn_sigmas_232"].flip(0))
COSINE = {n: sd.DiscreteVP(arrays("iddpm/tables")[f"betas_cosine_{n}"]) for n in (1000, 4000)}
UNIT: dict[str, Any] = {"input_scale": "centre", "data_range": (0.0, 1.0)}
"""The spec of a network for data in [0, 1] that centres them itself."""
SCORE: dict[str, Any] = {"prediction": "sigma_score"}
LEARNED: dict[str, Any] = {"variance": "learned_range", "label": "index"}
F: dict[str, Any] = {"prediction": "edm", "label": "edm", "input_scale": "unit"}
"""The spec of EDM's own preconditioning."""

CASES: dict[str, Case] = {
    "vp": song_case("song_ddpm", VP, song("song_ddpm", "vpsde")),
    "vp uncentred": song_case(
        "song_ddpm_continuous_uncentered_avgpool",
        VP,
        song("song_ddpm_continuous_uncentered_avgpool", "vpsde"),
        **UNIT,
    ),
    "vp discrete": song_case("song_ddpm", LEVELS, song("song_ddpm", "vpsde", False), label="index"),
    "vp discrete ddpm blocks": song_case(
        "song_ddpmpp_ddpmblock_norescale",
        sd.DiscreteVP(betas(500)),
        song("song_ddpmpp_ddpmblock_norescale", "vpsde", False, num_scales=500),
        label="index",
    ),
    "subvp": song_case("song_ddpmpp", SUBVP, song("song_ddpmpp", "subvpsde")),
    "ve": song_case("song_ncsnpp_ve", VE, song("song_ncsnpp_ve", "vesde"), **SCORE, **UNIT, label="log_sigma"),
    "ve centred": song_case("song_ncsnpp_skip", VE, song("song_ncsnpp_skip", "vesde"), **SCORE, label="log_sigma"),
    "ve unscaled": song_case("song_ddpmpp", VE, song("song_ddpmpp", "vesde"), prediction="score", label="sigma"),
    "ve discrete": song_case(
        "song_ddpmpp",
        sd.DiscreteVE(arrays("sde/score_sde_math")["ve0_discrete_sigmas"]),
        song("song_ddpmpp", "vesde", False, scale_by_sigma=True),
        **SCORE,
        label="reversed_index",
    ),
    "ncsnv2": song_case(
        "song_ncsnv2", NCSN_LEVELS, song("song_ncsnv2", "vesde", False), **SCORE, **UNIT, label="reversed_index"
    ),
    "edm": edm_case("edm_precond_edm", EDM, **F),
    "edm vp": edm_case("edm_precond_vp", VP),
    "edm ve": edm_case("edm_precond_ve", sd.VESDE(0.02, 100.0), **SCORE, label="log_half_sigma"),
    "edm iddpm": edm_case(
        "edm_dhariwal_cond_aug",
        COSINE[1000],
        "iDDPMPrecond",
        "out_conv",
        **{**LEARNED, "label": "nearest_index", "shape": (3, 8, 8)},
    ),
    "edm classes": edm_case("edm_songunet_ddpmpp_cond_aug", EDM, **F),
    "edm dhariwal": edm_case("edm_dhariwal_cond_aug", EDM, **F, shape=(3, 8, 8)),
    "edm ncsnpp": edm_case("edm_songunet_ncsnpp", EDM, **F),
    "openai": openai_case("iddpm_unet_noss_uncond", LEVELS, nichol("iddpm_unet_noss_uncond"), label="index"),
    "openai cosine": openai_case(
        "iddpm_unet_ss_cond",
        COSINE[4000],
        nichol("iddpm_unet_ss_cond", diffusion_steps=4000, noise_schedule="cosine", rescale_timesteps=True),
        **{**LEARNED, "label": "index_1000"},
    ),
    "openai x0": openai_case(
        "iddpm_unet_noss_uncond",
        LEVELS,
        nichol("iddpm_unet_noss_uncond", predict_xstart=True),
        label="index",
        prediction="x0",
    ),
    "guided": openai_case("adm_unet_updown_heads", LEVELS, nichol("adm_unet_updown_heads"), **LEARNED),
    "diffusers epsilon": diffusers_case(LEVELS, {}),
    "diffusers v": diffusers_case(LEVELS, {"scheduler": {"prediction_type": "v_prediction"}}, prediction="v"),
    "diffusers sample": diffusers_case(
        LEVELS, {"flat": True, "scheduler": {"prediction_type": "sample"}}, prediction="x0"
    ),
    "diffusers cosine": diffusers_case(
        COSINE[1000], {"pickled": True, "scheduler": {"beta_schedule": "squaredcos_cap_v2"}}
    ),
    "diffusers former": diffusers_case(LEVELS, {"former": True}),
    "diffusers centred": diffusers_case(LEVELS, {"config": {"center_input_sample": True}}, **UNIT),
}
CLASSES = {"edm classes": 4, "edm dhariwal": 4, "edm iddpm": 4, "openai cosine": 5, "guided": 5}


def told(name: str, batch: int) -> dict[str, Tensor]:
    """Class labels for the networks that have them."""
    return {"labels": torch.arange(batch) % CLASSES[name]} if name in CLASSES else {}


def same_process(a: sd.SDE, b: sd.SDE) -> bool:
    """Whether two processes are of one class and have one kernel, level by level where they are discrete."""
    if type(a) is not type(b) or (a.times is None) != (b.times is None):
        return False
    t = torch.linspace(1e-5, 1.0, 9, dtype=torch.float64) if a.times is None else a.times
    if b.times is not None and (len(t) != len(b.times) or not torch.equal(t, b.times)):
        return False
    return torch.allclose(a.kernel(t).logsnr, b.kernel(t).logsnr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_spec_is_the_source_s_and_the_run_folder_gives_the_same_bits(name: str) -> None:
    case = CASES[name]
    denoiser, folder = case.run
    spec = denoiser.spec
    found = {key: getattr(spec, key) for key in (*spec.__dataclass_fields__,)}
    expected = {"prediction": "eps", "label": "time", "input_scale": "none", "data_range": (-1.0, 1.0)}
    expected |= {"shape": (3, 16, 16), "variance": "fixed", **case.spec}
    assert {key: found[key] for key in expected} == expected
    assert same_process(spec.process, case.process)

    again = sd.load(folder)
    assert again.spec.state() == spec.state()
    x, kernel = randn(2, *spec.shape).float(), spec.model_process.kernel(0.3)
    outputs = [model(x, kernel, **told(name, 2)) for model in (denoiser, again)]
    assert torch.equal(*outputs) and bool(outputs[0].isfinite().all())
    assert not denoiser.net.training and not any(p.requires_grad for p in denoiser.net.parameters())


@pytest.mark.parametrize("name", ["vp", "ve", "ve centred", "ncsnv2"])
def test_averaged_and_raw_weights_are_as_written(name: str) -> None:
    case = CASES[name]
    denoiser, folder = case.run
    ema = denoiser.net.state_dict()
    raws = [case.imported(weights="raw"), sd.load(folder, weights="raw")]
    for raw in raws:
        for key, value in raw.net.state_dict().items():
            # The frequencies of the Fourier features are not trained, and so not averaged.
            assert torch.equal(ema[key], value if key.endswith(".frequencies") else AVERAGE * value), key


def test_the_step_and_the_classes_are_kept() -> None:
    assert [path.name for path in checkpoint_files(CASES["vp"].run[1])] == ["step_000000007"]
    assert read_checkpoint(CASES["guided"].run[1]).classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("name", ["edm_precond_edm", "edm_precond_vp", "edm_precond_ve"])
def test_edm_s_denoisers_give_their_stored_outputs(name: str, tmp_path: Path) -> None:
    denoiser = sd.import_checkpoint(edm_file(tmp_path / "net.pkl", name), "edm")
    io = reference(name).io
    found = denoiser(io["in.x"], sd.Kernel(1.0, io["in.sigma"]))
    torch.testing.assert_close(found, io["out"], rtol=0, atol=1e-5 * io["out"].abs().max().item())


# --- x0_hat by the sources' formulas --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Levels:
    """An imported denoiser in double precision, and a batch with one state for each of some noise levels.

    alpha, sigma   [B], in model space
    x              [B, *D], in model space
    """

    denoiser: sd.NetworkDenoiser
    alpha: Tensor
    sigma: Tensor
    x: Tensor
    told: dict[str, Tensor]

    @classmethod
    def of(cls, name: str, alpha: Tensor | float, sigma: Tensor) -> Levels:
        denoiser = deepcopy(CASES[name].run[0])
        denoiser.net.double()
        kernel = sd.Kernel(alpha, sigma)
        size = (len(sigma), *denoiser.spec.shape)
        x = kernel.perturb(randn(*size, seed=1).clamp(-1.0, 1.0), randn(*size, seed=2))
        return cls(denoiser, kernel.alpha, kernel.sigma, x, told(name, len(sigma)))

    def net(self, x: Tensor, label: Tensor) -> Tensor:
        """The network itself, [B, *D], with one label a state."""
        return self.denoiser.net(x, label, **self.told)

    def gives(self, x0: Tensor) -> None:
        """Asserts that the denoiser's x0_hat is the given one, each state by its own scale."""
        found = self.denoiser(self.x, sd.Kernel(self.alpha, self.sigma), **self.told)
        error, scale = (a.flatten(1).abs().amax(1) for a in (found - x0, x0))
        assert float((error / scale).max()) < 1e-9


def column(values: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return values[:, None, None, None]


TIMES = torch.linspace(1e-5, 1.0, 25, dtype=torch.float64)
"""From the smallest time of the training."""


def subsampled(n: int, stride: int) -> Tensor:
    """Every stride-th of n indices, and the last."""
    return torch.tensor(sorted({*range(0, n, stride), n - 1}))


def geometric(first: float, last: float, count: int = 25) -> Tensor:
    return torch.linspace(math.log(first), math.log(last), count, dtype=torch.float64).exp()


@pytest.mark.parametrize("name", ["vp", "vp uncentred", "subvp"])
def test_continuous_vp(name: str) -> None:
    """Song et al. 2021: score = -net(x, 999 t)/std, and Tweedie's x0 = (x + std^2 score)/alpha."""
    log_alpha = -0.25 * TIMES**2 * (20.0 - 0.1) - 0.5 * TIMES * 0.1
    alpha, variance = log_alpha.exp(), -torch.expm1(2.0 * log_alpha)
    std = variance if name == "subvp" else variance.sqrt()
    unit = name == "vp uncentred"
    at = Levels.of(name, alpha, 2.0 * std if unit else std)
    y = 0.5 * (at.x + column(alpha)) if unit else at.x
    score = -at.net(2.0 * y - 1.0 if unit else y, 999.0 * TIMES) / column(std)
    y0 = (y + column(std) ** 2 * score) / column(alpha)
    at.gives(2.0 * y0 - 1.0 if unit else y0)


@pytest.mark.parametrize(("name", "n"), [("vp discrete", 1000), ("vp discrete ddpm blocks", 500)])
def test_discrete_vp(name: str, n: int) -> None:
    """Labels t (N - 1), and the std of that index in the table."""
    index = subsampled(n, 37)
    alphas_cumprod = (1.0 - betas(n)).cumprod(0)
    std = (1.0 - alphas_cumprod).sqrt()[index]
    at = Levels.of(name, alphas_cumprod.sqrt()[index], std)
    score = -at.net(at.x, index.double() / (n - 1.0) * (n - 1.0)) / column(std)
    at.gives((at.x + column(std) ** 2 * score) / column(at.alpha))


@pytest.mark.parametrize("name", ["ve", "ve centred", "ve unscaled"])
def test_continuous_ve(name: str) -> None:
    """The label is sigma, of which Fourier features take the logarithm; score = net/sigma with scale_by_sigma."""
    sigma = 0.01 * 5000.0 ** torch.linspace(0.0, 1.0, 25, dtype=torch.float64)
    unit, plain = name == "ve", name == "ve unscaled"
    at = Levels.of(name, 1.0, 2.0 * sigma if unit else sigma)
    y = 0.5 * (at.x + 1.0) if unit else at.x
    out = at.net(2.0 * y - 1.0 if unit else y, sigma if plain else sigma.log())
    score = out if plain else out / column(sigma)
    y0 = y + column(sigma) ** 2 * score
    at.gives(2.0 * y0 - 1.0 if unit else y0)


@pytest.mark.parametrize(("name", "n"), [("ve discrete", 1000), ("ncsnv2", 232)])
def test_discrete_ve_counts_from_the_largest_sigma(name: str, n: int) -> None:
    """score = net(x, i)/sigma_i, where sigma_0 is the largest and i = round((1 - t)(N - 1))."""
    label = subsampled(n, 37)
    sigma = geometric(50.0, 0.01, n)[label]
    unit = name == "ncsnv2"
    at = Levels.of(name, 1.0, 2.0 * sigma if unit else sigma)
    y = 0.5 * (at.x + 1.0) if unit else at.x
    y0 = y + column(sigma) ** 2 * (at.net(2.0 * y - 1.0 if unit else y, label.double()) / column(sigma))
    at.gives(2.0 * y0 - 1.0 if unit else y0)


def test_labels_of_ncsnv2_at_all_levels() -> None:
    """Its network does not look at the label, so the label itself: 231 down to 0 from the least noise to the most."""
    net = Listening()
    denoiser = sd.NetworkDenoiser(net, sd.NetworkSpec(NCSN_LEVELS, label="reversed_index", **SCORE, **UNIT))
    sigma = 2.0 * arrays("sde/score_sde_math")["ncsn_sigmas_232"]
    denoiser(randn(232, 1), sd.Kernel(1.0, sigma))
    assert torch.equal(net.label, torch.arange(232.0, dtype=torch.float64))


class Listening(torch.nn.Module):
    """A network that keeps the label it was given."""

    label: Tensor

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.label = label
        return x


@pytest.mark.parametrize("name", ["edm", "edm classes", "edm dhariwal", "edm ncsnpp"])
def test_edm(name: str) -> None:
    """D = c_skip x + c_out F(c_in x; log(sigma)/4), Karras et al. 2022, Table 1, with sigma_data = 1/2."""
    sigma, data = geometric(0.002, 80.0), 0.5
    at = Levels.of(name, 1.0, sigma)
    total = sigma**2 + data**2
    c_skip, c_out, c_in = data**2 / total, sigma * data / total.sqrt(), 1.0 / total.sqrt()
    at.gives(column(c_skip) * at.x + column(c_out) * at.net(column(c_in) * at.x, sigma.log() / 4.0))


def test_the_std_of_edms_data_is_the_files() -> None:
    """sigma_data of the preconditioner's arguments; 0.5 where they do not say it (Karras et al. 2022, Table 1)."""
    network = {"cls": "EDMPrecond", "model_type": "DhariwalUNet", "img_resolution": 16, "img_channels": 3}
    assert edm.spec_of(network)[0].sigma_data == 0.5
    spec, _ = edm.spec_of({**network, "sigma_data": 0.25})
    assert (spec.sigma_data, spec.prediction, spec.input_scale) == (0.25, "edm", "unit")


def test_edm_vp() -> None:
    """D = x - sigma F(x / sqrt(sigma^2 + 1); 999 t), with t the time of sigma (ibid.)."""
    t = TIMES[1:]
    sigma = torch.expm1(0.5 * 19.9 * t**2 + 0.1 * t).sqrt()
    at = Levels.of("edm vp", 1.0, sigma)
    at.gives(at.x - column(sigma) * at.net(at.x / column(sigma**2 + 1.0).sqrt(), 999.0 * t))


def test_edm_ve() -> None:
    """D = x + sigma F(x; log(sigma/2)) (ibid.)."""
    sigma = 0.02 * 5000.0**TIMES
    at = Levels.of("edm ve", 1.0, sigma)
    at.gives(at.x + column(sigma) * at.net(at.x, (0.5 * sigma).log()))


def test_edm_iddpm() -> None:
    """D = x - sigma F(x / sqrt(sigma^2 + 1); M - 1 - j), with u_j the level nearest to sigma (ibid.)."""
    u = arrays("networks/edm_iddpm_u_table")["u"].double()
    sigma = torch.cat([u[torch.tensor([1, 500, 998])], geometric(0.02, 80.0)])
    j = (sigma[:, None] - u[:-1]).abs().argmin(1)
    at = Levels.of("edm iddpm", 1.0, sigma)
    out = at.net(at.x / column(sigma**2 + 1.0).sqrt(), 999.0 - j.double())
    at.gives(at.x - column(sigma) * out[:, :3])
    fraction = moments(at.denoiser, at.x, sd.Kernel(1.0, sigma), **at.told)[1]
    torch.testing.assert_close(fraction, 0.5 * (out[:, 3:] + 1.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["openai", "openai cosine", "openai x0", "guided"])
def test_openai(name: str) -> None:
    """x0 = sqrt(1/abar) x - sqrt(1/abar - 1) eps, the second half of the channels v, the fraction (v + 1)/2.

    With rescale_timesteps the network is told i (1000/T) (Nichol and Dhariwal 2021, their code).
    """
    tables, cosine = arrays("iddpm/tables"), name == "openai cosine"
    abar = (1.0 - tables["betas_cosine_4000" if cosine else "betas_linear_1000"]).cumprod(0)
    index = subsampled(len(abar), 37 * len(abar) // 1000)
    abar = abar[index]
    at = Levels.of(name, abar.sqrt(), (1.0 - abar).sqrt())
    out = at.net(at.x, index.double() * (1000.0 / 4000.0) if cosine else index.double())
    if name == "openai x0":
        return at.gives(out)
    at.gives(column((1.0 / abar).sqrt()) * at.x - column((1.0 / abar - 1.0).sqrt()) * out[:, :3])
    fraction = moments(at.denoiser, at.x, sd.Kernel(at.alpha, at.sigma), **at.told)[1]
    assert (fraction is None) == (out.shape[1] == 3)
    if fraction is not None:
        torch.testing.assert_close(fraction, 0.5 * (out[:, 3:] + 1.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("diffusers")])
def test_diffusers(name: str) -> None:
    """x0 from epsilon, from v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans and Ho 2022), or given at once."""
    abar = (1.0 - (COSINE[1000].betas if name == "diffusers cosine" else betas(1000))).cumprod(0)
    index, unit = subsampled(1000, 37), name == "diffusers centred"
    alpha, sigma = abar[index].sqrt(), (1.0 - abar[index]).sqrt()
    at = Levels.of(name, alpha, 2.0 * sigma if unit else sigma)
    y = 0.5 * (at.x + column(alpha)) if unit else at.x
    out = at.net(2.0 * y - 1.0 if unit else y, index.double())
    a, s = column(alpha), column(sigma)
    formulas = {"v": a * y - s * out, "sample": out}
    y0 = formulas.get(name.removeprefix("diffusers "), (y - s * out) / a)
    at.gives(2.0 * y0 - 1.0 if unit else y0)


# --- what is refused ------------------------------------------------------------------------------------------


def refused(path: Path, source: str, config: Settings | str | None = None) -> str:
    """What is said of an import that is refused, in one line; nothing of it is left."""
    run = path.parent / "run"
    with pytest.raises(sd.UserError) as caught:
        sd.import_checkpoint(path, source, config, folder=run)
    assert not run.exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def replaced(config: Settings, key: str, value: Any) -> Settings:
    """The configuration with another value at "KEY" or "SECTION.KEY"."""
    first, _, rest = key.partition(".")
    return {**config, first: replaced(config.get(first, {}), rest, value) if rest else value}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("score_sd", "did you mean 'score_sde'?"),
        ("", "Valid names: ddim, diffusers, edm, lucidrains, openai, score_sde."),
    ],
)
def test_an_unknown_source_is_named(source: str, says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path / "none.pth", source)


@pytest.mark.parametrize("source", SOURCES)
def test_a_missing_file_is_named(source: str, tmp_path: Path) -> None:
    assert f"there is no file or folder {tmp_path / 'none.pth'}" in refused(tmp_path / "none.pth", source)


FIRST = "all_modules.4.Conv_0.weight"
"""A layer of the network of case "ve", the ninth parameter that is trained there."""


def lost(content: dict[str, Any]) -> None:
    del content["model"][f"module.{FIRST}"]


def foreign(content: dict[str, Any]) -> None:
    content["model"]["module.all_modules.99.weight"] = torch.zeros(1)


def turned(content: dict[str, Any]) -> None:
    content["model"][f"module.{FIRST}"] = torch.zeros(3, 16, 16, 3)


def shortened(content: dict[str, Any]) -> None:
    content["ema"]["shadow_params"].pop()


def misshapen(content: dict[str, Any]) -> None:
    content["ema"]["shadow_params"][8] = torch.zeros(3, 16, 16, 3)


def unlisted(content: dict[str, Any]) -> None:
    content["ema"] = {"decay": 0.999}


def modelless(content: dict[str, Any]) -> None:
    content["model"] = 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lost, f"missing: {FIRST} (1)"),
        (foreign, "not expected: all_modules.99.weight (1)"),
        (turned, f"of another shape: {FIRST} is (3, 16, 16, 3) where it should make (16, 16, 3, 3)"),
        (shortened, "ema.shadow_params has 155 tensors, and the network 156 parameters"),
        (misshapen, f"ema.shadow_params[8] is (3, 16, 16, 3) where {FIRST} is (16, 16, 3, 3)"),
        (unlisted, "'ema' holds no list shadow_params"),
        (modelless, "holds no state dict, as files of score_sde_pytorch do"),
    ],
)
def test_weights_that_do_not_fit_are_named(damage: Callable[[Any], None], says: str, tmp_path: Path) -> None:
    case = CASES["ve"]
    path = case.write(tmp_path / "net.pth")
    content = torch.load(path, weights_only=True)
    damage(content)
    torch.save(content, path)
    assert says in refused(path, case.source, case.config)


@pytest.mark.parametrize(
    ("case", "key", "value", "says"),
    [
        ("ve", "model.nf", 32, "all_modules.0.W is (16,) where it should make (32,) of conditioning.features"),
        ("ve", "model.num_res_blocks", 2, "missing: all_modules.6.GroupNorm_0.weight"),
        ("ve", "model.attn_resolutions", [16], "missing: all_modules.5.NIN_0.W"),
        ("ve", "model.fir", False, "not expected: all_modules.6.Conv2d_0.weight, all_modules.6.Conv2d_0.bias (2)"),
        ("vp", "model.num_res_blocks", 2, "missing: all_modules.4.GroupNorm_0.weight"),
        ("vp", "model.resamp_with_conv", False, "not expected: all_modules.4.Conv_0.weight"),
        ("ncsnv2", "model.nf", 16, "begin_conv.weight is (8, 3, 3, 3) where it should make (16, 3, 3, 3)"),
        ("openai", "num_res_blocks", 2, "missing: input_blocks.2.0.in_layers.0.weight"),
        ("openai", "model_channels", 64, "time_embed.0.weight is (128, 32) where it should make (256, 64)"),
        ("openai cosine", "num_classes", None, "not expected: label_emb.weight (1)"),
        ("openai cosine", "use_scale_shift_norm", False, "emb_layers.1.weight is (64, 128) where it should"),
        ("ve", "model.ch_mul", [1, 2], "key 'ch_mul' in the score_sde model configuration; did you mean 'ch_mult'?"),
        ("ve", "modle", {}, "unknown key 'modle' in the score_sde configuration; did you mean 'model'?"),
        ("openai", "num_head", 4, "unknown key 'num_head' in the OpenAI configuration; did you mean 'num_heads'?"),
        ("ve", "model.nonlinearity", "relu", "model.nonlinearity = 'relu' is not supported; supported: 'swish'"),
        ("ve", "model.conditional", False, "model.conditional = False is not supported"),
        ("ve", "model.progressive_input", "skip", "unknown progressive_input 'skip'; did you mean 'input_skip'?"),
        ("ve", "training.sde", "vesd", "unknown SDE of score_sde 'vesd'; did you mean 'vesde'?"),
        ("ve", "training.sde", "vpsde", "model.scale_by_sigma belongs to training.sde = 'vesde', not 'vpsde'"),
        ("openai", "noise_schedule", "cosin", "unknown noise_schedule 'cosin'; did you mean 'cosine'?"),
        ("ve", "model.nf", "many", "network 'songunet': "),
        ("ve", "model", 3, "a value in the score_sde configuration cannot be used"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(case: str, key: str, value: Any, says: str, tmp_path: Path) -> None:
    found = CASES[case]
    assert found.config is not None
    assert says in refused(found.write(tmp_path / "net"), found.source, replaced(found.config, key, value))


@pytest.mark.parametrize(
    ("which", "key", "value", "says"),
    [
        ("config", "down_block_types", ["DownBlock2D", "CrossAttnDownBlock2D"], "did you mean 'AttnDownBlock2D'?"),
        ("config", "act_fn", "relu", "diffusers: act_fn = 'relu' is not supported; supported: 'silu', 'swish'"),
        ("config", "_class_name", "UNet2DConditionModel", "supported: 'UNet2DModel'"),
        ("config", "norm_num_group", 8, "did you mean 'norm_num_groups'?"),
        ("config", "layers_per_block", 2, "missing: down_blocks.0.resnets.1.norm1.weight"),
        ("config", "block_out_channels", [32, 64], "is (32, 32, 3, 3) where it should make (64, 32, 3, 3)"),
        ("scheduler", "beta_schedule", "cosine", "unknown beta_schedule 'cosine'"),
        ("scheduler", "prediction_type", "eps", "did you mean 'epsilon'?"),
    ],
)
def test_a_folder_of_diffusers_that_does_not_fit_is_named(
    which: str, key: str, value: Any, says: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {which: {key: value}}
    assert says in refused(diffusers_folder(tmp_path / "net", UNET2D, **options), "diffusers")


def test_a_folder_of_diffusers_without_its_parts_is_named(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "net", UNET2D)
    for part, says in (
        ("scheduler/scheduler_config.json", "holds no scheduler/scheduler_config.json"),
        ("unet/config.json", "holds no config.json of a network"),
    ):
        kept = (folder / part).read_bytes()
        (folder / part).unlink()
        assert says in refused(folder, "diffusers")
        written(folder / part, kept)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert "holds no diffusion_pytorch_model.safetensors" in refused(folder, "diffusers")
    assert "is not a folder" in refused(written(tmp_path / "file", b""), "diffusers")


@pytest.mark.parametrize(("case", "published"), [("vp", score_sde.PUBLISHED), ("openai", openai.PUBLISHED)])
def test_a_configuration_that_is_not_there_is_asked_for(
    case: str, published: Mapping[str, Settings], tmp_path: Path
) -> None:
    found = CASES[case]
    path = found.write(tmp_path / "net.pth")
    said = refused(path, found.source)
    assert "does not say its configuration" in said and all(name in said for name in published)
    name = next(iter(published))
    assert f"no published model of that name; did you mean {name!r}?" in refused(path, found.source, name[:-1])
    # A file of a published model needs no configuration beside it, and this one is none.
    assert "the weights do not fit the configuration" in refused(path.rename(tmp_path / f"{name}.pth"), found.source)


def test_a_configuration_may_be_a_file(tmp_path: Path) -> None:
    case = CASES["openai"]
    path, config = case.write(tmp_path / "net.pt"), tmp_path / "net.json"
    for content in (case.config, {"config": case.config, "note": "kept beside it"}):
        config.write_text(json.dumps(content))
        assert sd.import_checkpoint(path, "openai", config).spec.label == "index"
    config.write_text("{")
    assert "is not a JSON file" in refused(path, "openai", str(config))
    config.write_text("[1]")
    assert "should hold a JSON object" in refused(path, "openai", str(config))
    said = refused(edm_file(tmp_path / "edm.pkl", "edm_precond_edm"), "edm", "edm-cifar10")
    assert said == "there is no configuration file edm-cifar10"


def test_openai_s_flags_are_the_arguments_of_its_network(tmp_path: Path) -> None:
    """attention_resolutions in pixels and as factors of the size, widths as text and as numbers."""
    case = CASES["openai"]
    path = case.write(tmp_path / "net.pt")
    flags: Settings = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "num_heads": 1, "dropout": 0.1}
    flags |= {"attention_resolutions": "8", "channel_mult": "1,1", "use_scale_shift_norm": False}
    spec = sd.import_checkpoint(path, "openai", flags).spec
    assert spec.state() == sd.import_checkpoint(path, "openai", case.config).spec.state()
    del flags["channel_mult"]
    assert "channel_mult is needed for image_size 16; only 32, 64," in refused(path, "openai", flags)


def test_improved_diffusion_s_network_is_not_told_its_size(tmp_path: Path) -> None:
    """It has the size of their flags, and takes any other that its levels divide."""
    case = CASES["openai"]
    config = reference("iddpm_unet_noss_uncond").config
    assert "image_size" not in config
    denoiser = sd.import_checkpoint(case.write(tmp_path / "net.pt"), "openai", config)
    assert denoiser.spec.shape == (3, 64, 64)
    x, kernel = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), denoiser.spec.process.kernel(0.5)
    told = sd.import_checkpoint(tmp_path / "net.pt", "openai", {**config, "image_size": 16})
    assert told.spec.shape == (3, 16, 16) and torch.equal(denoiser(x, kernel), told(x, kernel))


EXPECTED = {
    "vp": "a PyTorch checkpoint",
    "edm": "an EDM pickle",
    "openai": "a PyTorch checkpoint",
    "diffusers epsilon": "a safetensors file",
    "diffusers cosine": "a PyTorch checkpoint",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_truncated_file_is_named(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = file = case.write(tmp_path / "net")
    if path.is_dir():
        (file,) = (path / "unet").glob("diffusion_pytorch_model.*")
    whole = file.read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 1):
        written(file, whole[:length])
        said = refused(path, case.source, case.config)
        assert said == f"{file} is damaged, truncated or of another kind; expected {EXPECTED[name]}"


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "diffusers epsilon"])
def test_a_file_that_would_run_code_is_refused(name: str, tmp_path: Path) -> None:
    case, marker = CASES[name], tmp_path / "marker"
    path = file = case.write(tmp_path / "net")
    if path.is_dir():
        (file,) = (path / "unet").glob("*.bin")
    call = system_call(marker)
    written(file, edm_bytes({"ema": call}) if name == "edm" else saved({"model": call, "step": call}, zipped=True))
    said = refused(path, case.source, case.config)
    assert "asks for 'posix.system'; this was refused and nothing was run" in said and str(file) in said
    assert not marker.exists()


def test_a_folder_with_checkpoints_is_left_alone(tmp_path: Path) -> None:
    folder = shutil.copytree(CASES["edm"].run[1], tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(sd.UserError, match="holds checkpoints already; choose another folder"):
        CASES["vp"].imported(folder=folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- published models -----------------------------------------------------------------------------------------

SPECS: dict[str, Callable[[Settings], sd.NetworkSpec]] = {
    "score_sde": lambda config: score_sde._spec(config, {}),
    "openai": lambda config: openai._spec(config, {})[0],
    "ddim": ddim._spec,
}
PIXELS = {"cifar10": 32, "64": 64, "128x128": 128, "512x512": 512} | dict.fromkeys(
    ("256", "bedroom", "church", "lsun"), 256
)
PARAMETERS = {
    **dict.fromkeys(("vp ddpmpp", "subvp ddpmpp"), 61_804_419),
    **dict.fromkeys(("vp ddpmpp deep", "subvp ddpmpp deep"), 106_632_579),
    **dict.fromkeys(("ve ddpm", "vp ddpm", "subvp ddpm"), 35_218_947),
    "ve ncsnpp continuous": 62_758_787,  # told by 256 Fourier features
    "ve ncsnpp continuous deep": 107_586_947,
    **dict.fromkeys(("ve ncsnpp", "vp ncsnpp", "subvp ncsnpp"), 62_693_251),  # by 128 sinusoids
    **dict.fromkeys(("vp ncsnpp deep", "subvp ncsnpp deep"), 107_521_411),
    "ncsnv2": 29_694_083,
    "256": 65_574_421,
    "uncond 50M": 52_546_438,
    "uncond 100M": 121_063_942,
    "cond 270M": 273_049_350,
    "64x64": 295_904_454,
    "128x128": 421_529_606,
    "256x256": 553_838_086,
    "256x256 uncond": 552_814_086,
    "512x512": 558_997_638,
    "lsun": 552_814_086,
    "ddim cifar10": 35_746_307,
    "ddim celeba": 78_700_803,
    "ddim lsun": 113_673_219,
}
"""Of the sources' networks without their Fourier frequencies, counted in their own classes."""


def kind(source: str, name: str) -> str:
    """Which of PARAMETERS a published model has."""
    if source == "ddim":
        return f"ddim {next((size for size in ('cifar10', 'celeba') if size in name), 'lsun')}"
    if source == "openai":
        known = [key for key in PARAMETERS if all(part in name for part in key.split())]
        return max(known, key=len)
    if "ncsnv2" in name:
        return "ncsnv2"
    if "cifar10" not in name:
        return "256"
    settings = score_sde.PUBLISHED[name]
    network = next(part for part in ("ddpmpp", "ddpm", "ncsnpp") if part in name)
    sde = settings["training"]["sde"].removesuffix("sde")
    told = sde == "ve" and network == "ncsnpp" and "continuous" in name
    return f"{sde} {network}{' continuous' if told else ''}{' deep' if 'deep' in name else ''}"


@pytest.mark.parametrize(("source", "name"), [(s, name) for s in SOURCES for name in SOURCES[s].published])
def test_published_configurations_build(source: str, name: str) -> None:
    spec = SPECS[source](SOURCES[source].published[name])
    (size,) = {size for part, size in PIXELS.items() if part in name} or {64}
    assert spec.shape == (3, size, size)
    assert isinstance(spec.process, sd.VESDE | sd.DiscreteVE) == (spec.prediction == "sigma_score")
    assert parameters(spec.network, json.dumps(spec.options)) == PARAMETERS[kind(source, name)]


@cache
def parameters(network: str, options: str) -> int:
    """How many a network has. options: JSON; many published models have one network under other processes."""
    net = outline(network, json.loads(options))
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", [name for name in score_sde.PUBLISHED if "/" in name])
def test_a_path_names_the_sde(name: str) -> None:
    """As the paths of the source's folders do: of one network there are a VP and a sub-VP model."""
    kinds = {"vp": sd.VPSDE, "subvp": sd.SubVPSDE, "ve": sd.VESDE, "ncsnv2": sd.DiscreteVE}
    process = score_sde._spec(score_sde.PUBLISHED[name], {}).process
    levels = {sd.DiscreteVP: sd.VPSDE, sd.DiscreteVE: sd.VESDE}
    assert kinds[name.partition("/")[0]] in (type(process), levels.get(type(process)))


# --- what a file may say otherwise than expected --------------------------------------------------------------


def test_the_table_of_noise_levels_in_a_file_must_be_the_configurations(tmp_path: Path) -> None:
    """A VE network's own sigmas tell whether the configuration is its own."""
    case = CASES["ve"]
    path = case.write(tmp_path / "net.pth")
    said = refused(path, "score_sde", replaced(case.config, "model.sigma_max", 348.0))
    assert "has 1000 noise levels from 50 to 0.01" in said and "says 1000 from 348 to 0.01" in said
    said = refused(path, "score_sde", replaced(case.config, "model.num_scales", 232))
    assert "says 232 from 50 to 0.01" in said


def test_averages_in_other_forms(tmp_path: Path) -> None:
    """By name, or with the Fourier frequencies among them, which the source leaves out."""
    case = CASES["ve"]
    state = torch.load(case.write(tmp_path / "net.pth"), weights_only=True)
    expected = sd.import_checkpoint(tmp_path / "net.pth", "score_sde", case.config).net.state_dict()
    bare = {key.removeprefix("module."): value for key, value in state["model"].items() if not key.endswith("sigmas")}
    trained = list(reference("song_ncsnpp_ve").grad_norms)
    by_name = {**bare, **dict(zip(trained, state["ema"]["shadow_params"], strict=True))}
    for ema in (by_name, {"shadow_params": list(by_name.values())}):
        torch.save({**state, "ema": ema}, tmp_path / "other.pth")
        found = sd.import_checkpoint(tmp_path / "other.pth", "score_sde", case.config).net.state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("form", ["under ema", "with its configuration", "by torch.save"])
def test_edm_networks_stored_as_plain_containers(form: str, tmp_path: Path) -> None:
    network = reference("edm_precond_edm")
    path, config = tmp_path / "net.pkl", network.config
    if form == "by torch.save":
        torch.save({"ema": network.weights}, path)
    else:
        content = {"ema": network.weights} if form == "under ema" else {"state_dict": network.weights, "config": config}
        written(path, edm_bytes(content))
    denoiser = sd.import_checkpoint(path, "edm", None if form == "with its configuration" else config)
    found = denoiser(network.io["in.x"], sd.Kernel(1.0, network.io["in.sigma"].double()))
    scale = float(network.io["out"].abs().max())
    torch.testing.assert_close(found, network.io["out"], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "name",
    ["FlowMatchLCMScheduler", "ScoreSdeVeScheduler", "EDMEulerScheduler", "CMStochasticIterativeScheduler"],
)
def test_schedulers_without_betas_are_refused(name: str, tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "net", "diffusers_unet2d_ddpm_family")
    (place,) = folder.rglob("scheduler_config.json")
    place.write_text(json.dumps({"_class_name": name, "num_train_timesteps": 1000}))
    assert f"the scheduler '{name}' has no table of betas" in refused(folder, "diffusers")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("use_dynamic_shifting", True, "its shift is another one for each size of picture"),
        ("invert_sigmas", True, "told the time from noise to data"),
        ("shift_terminal", 0.1, "its steps are not those of one shift"),
        ("use_karras_sigmas", True, "its steps are not those of one shift"),
        ("stochastic_sampling", True, "draw noise of their own"),
        ("num_train_timesteps", 500, "num_train_timesteps of flow matching = 500 is not supported; supported: 1000"),
        ("shifts", 2.0, "unknown key 'shifts' in the diffusers scheduler configuration; did you mean 'shift'?"),
    ],
)
def test_what_flow_matching_has_no_equal_of_is_refused(key: str, value: Any, says: str, tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "net", "diffusers_unet2d_ddpm_family")
    (place,) = folder.rglob("scheduler_config.json")
    place.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", key: value}))
    assert says in refused(folder, "diffusers")


SOLVED = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, "beta_schedule": "linear"}


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "euler"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}, "heun"),
        ({"_class_name": "UniPCMultistepScheduler", **SOLVED}, "unipc"),
        ({"_class_name": "DPMSolverMultistepScheduler", **SOLVED}, "dpmpp_2m"),
    ],
)
def test_the_shift_of_a_scheduler_is_kept(scheduler: dict[str, Any], sampler: str, tmp_path: Path) -> None:
    """With the run, for the command line: sampling by its sampler on its grid."""
    folder = diffusers_folder(tmp_path / "net", "diffusers_unet2d_ddpm_family")
    (place,) = folder.rglob("scheduler_config.json")
    place.write_text(json.dumps(scheduler))
    denoiser = sd.import_checkpoint(folder, "diffusers", folder=tmp_path / "run")
    assert isinstance(denoiser.spec.process, sd.RectifiedFlow) and denoiser.spec.prediction == "velocity"
    sampling = read_checkpoint(tmp_path / "run").config["sampling"]
    assert sampling == {"sampler": sampler, "grid": "uniform", "shift": 3.0}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prediction_type": "epsilon"}, "prediction_type with use_flow_sigmas = 'epsilon' is not supported"),
        ({"_class_name": "PNDMScheduler"}, "the scheduler with use_flow_sigmas = 'PNDMScheduler' is not supported"),
        ({"shift_terminal": 0.1}, "its steps are not those of one shift"),
    ],
)
def test_a_solver_of_flow_matching_is_no_solver_of_a_table(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "net", "diffusers_unet2d_ddpm_family")
    (place,) = folder.rglob("scheduler_config.json")
    place.write_text(json.dumps({"_class_name": "UniPCMultistepScheduler", **SOLVED, **changed}))
    assert says in refused(folder, "diffusers")


def test_a_table_with_zero_terminal_snr(tmp_path: Path) -> None:
    """rescale_betas_zero_snr is diffusers' own rescaling of the betas, which it does in float32."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    folder = diffusers_folder(tmp_path / "net", "diffusers_unet2d_ddpm_family")
    (place,) = folder.rglob("scheduler_config.json")
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    place.write_text(json.dumps({**json.loads(place.read_text()), **settings}))
    process = sd.import_checkpoint(folder, "diffusers").spec.process
    assert isinstance(process, sd.DiscreteVP)
    expected = rescale_zero_terminal_snr(sd.DiscreteVP.linear(1000).betas)
    torch.testing.assert_close(process.betas, expected, rtol=1e-9, atol=1e-9)
    assert float(process.levels.alpha[-1]) == 0.0


def test_a_variance_that_the_network_does_not_put_out_is_refused(tmp_path: Path) -> None:
    folder = diffusers_folder(tmp_path / "net", "diffusers_unet2d_ddpm_family")
    (place,) = folder.rglob("scheduler_config.json")
    settings = json.loads(place.read_text())
    place.write_text(json.dumps({**settings, "variance_type": "learned_range"}))
    assert "puts out 3 channels, and 6 are expected" in refused(folder, "diffusers")
    place.write_text(json.dumps({**settings, "variance_type": "learned"}))
    assert "variance_type = 'learned' is not supported" in refused(folder, "diffusers")


def test_fourier_features_of_a_step_are_refused(tmp_path: Path) -> None:
    """Under a VP-SDE the source would take the logarithm of 999 t, which none of its models does."""
    case = CASES["ve"]
    config = replaced(replaced(case.config, "training.sde", "vpsde"), "model.scale_by_sigma", False)
    assert "model.embedding_type = 'fourier' is not supported" in refused(
        case.write(tmp_path / "net.pth"), "score_sde", config
    )


def test_classes_that_a_network_does_not_have_are_named(tmp_path: Path) -> None:
    case = CASES["openai"]
    denoiser = sd.import_checkpoint(case.write(tmp_path / "net.pt"), "openai", {**case.config})
    cosine = CASES["openai cosine"]
    told = sd.import_checkpoint(cosine.write(tmp_path / "told.pt"), "openai", cosine.config)
    x, kernel = torch.zeros(2, 3, 16, 16), told.spec.process.kernel(0.5)
    with pytest.raises(sd.UserError, match=r"the classes are 0 to 4, and 5 for none; got \[1, 9\]"):
        told(x, kernel, labels=torch.tensor([1, 9]))
    assert denoiser.spec.options["num_classes"] == 0


def test_a_likelihood_of_images_of_another_size_than_the_specs(tmp_path: Path) -> None:
    """Convolutions take any size; the channels must be the network's."""
    path = CASES["openai"].write(tmp_path / "net.pt")
    denoiser = sd.import_checkpoint(path, "openai", reference("iddpm_unet_noss_uncond").config)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    options = {"method": "midpoint", "steps": 2, "generator": torch.Generator().manual_seed(1)}
    assert bool(sd.log_likelihood(denoiser, x, denoiser.spec.process, **options).nats.isfinite())
    with pytest.raises(sd.UserError, match="is one of data of shape"):
        sd.log_likelihood(denoiser, x[:, :1], denoiser.spec.process, **options)
