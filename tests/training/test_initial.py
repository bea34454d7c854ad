"""A training that begins with another's network: what it takes, and what it does with other classes and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.commands.training import begin
from sde_diffusion.core.errors import UserError
from sde_diffusion.data import DataTransform
from sde_diffusion.data.dataset import Dataset, Splits
from sde_diffusion.likelihood.decoder import Space
from sde_diffusion.nets.building import build_network, load_weights
from sde_diffusion.pipelines.origin import Origin, check_origin, going_on
from sde_diffusion.runtime.engine import Engine
from sde_diffusion.settings.root import Settings
from sde_diffusion.storage.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from sde_diffusion.storage.results import write_json
from sde_diffusion.training.initial import Initial, Wanted, initial
from sde_diffusion.training.losses import held_out_loss
from tests.importers.golden import reference
from tests.importers.writing import ddim_file, edm_file, lucidrains_file, openai_file, score_sde_file
from tests.nets.contract import perturbed, randn
from tests.proofs.cases import generator

SMALL = {
    "unet": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_resolutions": [4]},
    "adm": {"channels": 32, "multipliers": [1], "blocks": 1, "attention_factors": [1], "heads": 2, "no_class": True},
    "ncsnpp": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention_resolutions": [4]},
    "songunet": {"channels": 8, "multipliers": [1, 1], "blocks": 1, "attention_resolutions": [], "taps": [1, 3, 3, 1]}
    | {"input_pyramid": "skip", "output_pyramid": "skip"},
    "dit": {"width": 16, "depth": 1, "heads": 2},
    "lucidrains": {"channels": 8, "multipliers": [1, 2], "heads": 2, "head_channels": 4},
}
"""Networks of every kind of layer that takes or gives pictures, and of every place of the class's row."""
C_NOISE = torch.tensor([3.0, 700.0], dtype=torch.float64)


def source(
    network: str, shape: tuple[int, ...] = (1, 8, 8), classes: tuple[str, ...] = (), **options: Any
) -> Checkpoint:
    """A network of weights that are drawn, in float64; its average has other ones."""
    own = {**SMALL[network], "in_channels": shape[0], "image_size": shape[-1], "num_classes": len(classes), **options}
    spec = sd.NetworkSpec(sd.VPSDE(), "v", "logsnr", shape=shape, network=network, options=own)
    weights = perturbed(build_network(network, own)).state_dict()
    average = {key: 0.5 * value for key, value in weights.items()}
    found = {"raw": weights, "ema": average}
    return Checkpoint(7, spec, DataTransform(256), found, {}, {}, classes=classes)


def pictures(
    shape: tuple[int, ...] = (1, 8, 8), classes: tuple[str, ...] = (), count: int = 12, seed: int = 0
) -> Dataset:
    """Smooth pictures, one class after another."""
    g = torch.Generator().manual_seed(seed)
    level = torch.rand(count, *shape[:1], 1, 1, generator=g) * torch.linspace(0.2, 1.0, shape[-1])
    samples = (255 * level.expand(count, *shape)).round().to(torch.uint8)
    labels = torch.arange(count) % len(classes) if classes else None
    return Dataset(samples, labels, 256, classes, "the pictures")


def built(found: Checkpoint | Initial, weights: str = "raw") -> nn.Module:
    """The network of a checkpoint, or that of a training's first step."""
    net = build_network(found.spec.network, found.spec.options).double()
    load_weights(net, found.weights[weights] if isinstance(found, Checkpoint) else found.weights)
    return net.eval()


def taken(found: Checkpoint, data: Dataset, weights: str = "raw", **wanted: Any) -> Initial:
    return initial("r", found, found.weights[weights], data, Wanted(**wanted))


def asked(net: nn.Module, x: Tensor, label: int | None = None) -> Tensor:
    labels = {} if label is None else {"labels": torch.full((2,), label)}
    out: Tensor = net(x, C_NOISE, **labels)
    return out


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("network", SMALL)
def test_the_first_outputs_are_the_source_s_to_the_bit(network: str, weights: str) -> None:
    """Whatever the dropout, which does not act when a network is asked."""
    found, x = source(network), randn(2, 1, 8, 8)
    first = taken(found, pictures(), weights, dropout=0.3)
    assert first.spec.options.get("dropout", 0.3) == 0.3 and first.changes == ()
    assert torch.equal(asked(built(first), x), asked(built(found, weights), x))


@pytest.mark.parametrize("network", SMALL)
def test_classes_are_matched_by_name_and_a_new_one_begins_as_no_class(network: str) -> None:
    found, x = source(network, classes=("ant", "bee", "cat")), randn(2, 1, 8, 8)
    first = taken(found, pictures(classes=("cat", "dog", "ant")))
    there, here = built(found), built(first)
    assert first.spec.options["num_classes"] == 3
    for label, before in ((0, 2), (1, None), (2, 0), (None, None), (3, None)):
        assert torch.equal(asked(here, x, label), asked(there, x, before))
    assert (
        "classes 'cat', 'ant' are kept" in first.changes[0]
        and "'dog' are new and begin as no class" in first.changes[1]
    )
    assert not torch.equal(asked(here, x, 0), asked(here, x, 2))


@pytest.mark.parametrize("network", SMALL)
def test_classes_change_nothing_at_first_where_there_were_none(network: str) -> None:
    found, x = source(network), randn(2, 1, 8, 8)
    first = taken(found, pictures(classes=("ant", "bee")), classes=True)
    assert first.spec.conditions == ("labels",) and first.spec.options["num_classes"] == 2
    for label in (0, 1, 2, None):
        assert torch.equal(asked(built(first), x, label), asked(built(found), x))
    assert taken(found, pictures(classes=("ant", "bee"))).spec.conditions == ()  # unless they are asked for


@pytest.mark.parametrize("network", SMALL)
def test_without_classes_a_network_does_what_it_did_without_one(network: str) -> None:
    found, x = source(network, classes=("ant", "bee")), randn(2, 1, 8, 8)
    first = taken(found, pictures())
    assert first.spec.conditions == () and first.spec.options["num_classes"] == 0
    torch.testing.assert_close(asked(built(first), x), asked(built(found), x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(asked(built(found), x), asked(built(found), x, 0), atol=1e-3)


def test_a_network_that_must_be_told_a_class() -> None:
    """It gets "no class", the mean of its rows, where a training withholds classes; without classes it is refused."""
    found = source("adm", classes=("ant", "bee"), no_class=False)
    data, table = pictures(classes=("ant", "bee")), "conditioning.classes.weight"
    assert torch.equal(taken(found, data).weights[table], found.weights["raw"][table])
    rows = taken(found, data, no_class=True).weights[table]
    torch.testing.assert_close(rows[2], rows[:2].mean(0), rtol=0, atol=0)
    with pytest.raises(UserError, match="the network of r must be told a class, and the data have none"):
        taken(found, pictures())


CONVOLUTIONAL = [name for name in SMALL if name != "dit"]


@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_grey_pictures_are_to_a_network_of_one_channel_what_they_were_to_one_of_three(network: str) -> None:
    """f_1(x) is the mean of the channels of f_3(x, x, x), with a learned variance in each of its two parts."""
    doubled = {"out_channels": 6} if network == "adm" else {}
    found, x = source(network, (3, 8, 8), **doubled), randn(2, 1, 8, 8)
    out = asked(built(found), x.expand(-1, 3, -1, -1))
    first = taken(found, pictures())
    expected = out.unflatten(1, (-1, 3)).mean(2)
    torch.testing.assert_close(asked(built(first), x), expected, rtol=1e-11, atol=1e-11)
    assert first.changes == ("1 channel in place of 3: first layers summed, last layer averaged",)


@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_colours_are_to_a_network_of_three_channels_what_their_mean_was_to_one_of_one(network: str) -> None:
    """f_3(x) is f_1(mean of the channels of x) in every channel."""
    doubled = {"out_channels": 2} if network == "adm" else {}
    found, x = source(network, **doubled), randn(2, 3, 8, 8)
    first = taken(found, pictures((3, 8, 8)))
    expected = asked(built(found), x.mean(1, keepdim=True)).repeat_interleave(3, dim=1)
    torch.testing.assert_close(asked(built(first), x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("network", CONVOLUTIONAL)
def test_other_sizes_keep_every_layer(network: str) -> None:
    found, x = source(network), randn(2, 1, 16, 16)
    first = taken(found, pictures((1, 16, 16)))
    assert first.spec.shape == (1, 16, 16)
    assert torch.equal(asked(built(first), x), asked(built(found), x))
    assert first.changes[0].startswith("pictures of 16x16 in place of 8x8: ")


def test_a_transformer_has_the_positions_of_the_larger_grid() -> None:
    """The smaller picture's are a part of it, so that the tables of the two agree there."""
    found = source("dit")
    first = taken(found, pictures((1, 16, 16)))
    there, here = (net.get_buffer("positions") for net in (built(found), built(first)))
    assert torch.equal(here.view(8, 8, -1)[:4, :4].reshape(16, -1), there)


def test_augmentations_are_told_from_zero_on() -> None:
    found, x = source("songunet"), randn(2, 1, 8, 8)
    first = taken(found, pictures(), augment=9)
    out = built(first)(x, C_NOISE, augment_labels=randn(2, 9))
    assert torch.equal(out, asked(built(found), x)) and "begins at zero" in first.changes[0]


def test_a_mean_that_was_subtracted_stays_the_network_s_own() -> None:
    mean = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = source("unet", classes=("ant", "bee"))
    found = Checkpoint(7, found.spec, DataTransform(17, mean, True), found.weights, {}, {}, classes=("ant", "bee"))
    own = taken(found, pictures(classes=("bee", "ant"))).transform
    assert own.levels == 256 and own.per_class and own.mean is not None and torch.equal(own.mean, mean.flip(0))
    with pytest.raises(UserError, match="less a mean of its classes, of which 'dog' are none"):
        taken(found, pictures(classes=("bee", "dog")))


@pytest.mark.parametrize(
    ("found", "data", "says"),
    [
        (source("dit", (3, 8, 8)), pictures(), "one of 3 channels, which cannot be made one of 1: set data.channels=3"),
        (source("unet", (4, 8, 8)), pictures((3, 8, 8)), "cannot be made one of 3: set data.channels=4"),
        (source("unet"), pictures((1, 9, 9)), "image_size=9 cannot be halved 1 times"),
    ],
)
def test_what_cannot_be_mapped_is_a_sentence(found: Checkpoint, data: Dataset, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        taken(found, data)


def test_vectors_are_no_pictures() -> None:
    vectors = Dataset(torch.zeros(4, 2), None, None, (), "the vectors")
    with pytest.raises(UserError, match=r"samples of shape \[1, 8, 8\], and those of the vectors are \[2\]"):
        taken(source("unet"), vectors)


# --- the training -------------------------------------------------------------------------------------------------


def settings_of(folder: Path, **training: Any) -> Settings:
    values = {"steps": 50, "batch_size": 8, "learning_rate": 2e-3, "warmup_steps": 0, "init_from": str(folder)}
    return Settings.from_values(
        {"device": "cpu", "training": {**values, "held_out_batches": 2, "held_out_levels": 2, **training}}
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network is small, and was trained on nothing."""
    folder, found = tmp_path_factory.mktemp("source"), source("unet")
    weights = {
        name: {key: value.float() * (0.3 if name == "ema" else 0.2) for key, value in found.weights["raw"].items()}
        for name in found.weights
    }
    save_checkpoint(folder, Checkpoint(7, found.spec, DataTransform(256), weights, {}, {}), keep=1)
    return folder


def test_it_begins_where_the_source_is_and_learns_other_data(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The average and its loss are the source's before the first update; after 50 the loss on these data is less."""
    splits = Splits(pictures(count=64), pictures(count=16, seed=1))
    engine, settings = Engine("cpu"), settings_of(run_folder)
    origin = Origin.of(settings, engine)
    assert origin is not None and origin.weights == "ema"
    start = origin.start(settings, splits.train)
    said = capsys.readouterr().out
    assert f"beginning with {run_folder}, step 7, weights 'ema': unet of" in said
    assert "model.label 'logsnr' (here 'time')" in said and "model.unet.channels 8 (here 128)" in said
    assert "fresh are the optimiser" in said and "prediction" not in said.partition("taken from")[2].splitlines()[0]

    run = begin(start, tmp_path, engine, splits)
    denoiser = sd.load(run_folder)
    assert all(torch.equal(a, b) for a, b in zip(run.trainer.net.parameters(), denoiser.net.parameters(), strict=True))
    average = run.trainer.averages.weights()["ema"]
    assert all(torch.equal(average[key], value) for key, value in denoiser.net.state_dict().items())
    before = run.held_out_figures(splits.test)["loss/held_out"]
    assert before == held_out_loss(run.task, denoiser, splits.test, engine).mean
    assert run.trainer.step == 0 and not run.trainer.optimizer.state

    run.train(engine.part(8))
    after = run.held_out_figures(splits.test)["loss/held_out"]
    assert after < 0.8 * before

    # It goes on from its own checkpoint, whatever became of the source, and keeps what it took.
    stored = read_checkpoint(tmp_path)
    resumed = going_on(Settings.from_values({"training": {"steps": 60}}), stored, splits.train)
    assert resumed.settings.training.init_from == str(run_folder) and resumed.settings.training.init_weights == "ema"
    assert resumed.settings.model == start.settings.model and resumed.spec.state() == start.spec.state()
    assert resumed.weights is not None and torch.equal(resumed.weights["stem.weight"], run.trainer.net.stem.weight)


FILES: dict[str, Callable[[Path], tuple[Any, ...]]] = {
    "score_sde": lambda folder: (
        score_sde_file(folder / "a.pth", "song_ncsnpp_ve"),
        reference("song_ncsnpp_ve").config,
    ),
    "edm": lambda folder: (edm_file(folder / "a.pkl", "edm_precond_edm"),),
    "openai": lambda folder: (
        openai_file(folder / "a.pt", "iddpm_unet_ss_cond"),
        {**reference("iddpm_unet_ss_cond").config, "image_size": 16, "diffusion_steps": 400},
    ),
    "ddim": lambda folder: (ddim_file(folder / "a.pth", "ddim_model_pooled"), reference("ddim_model_pooled").config),
    "lucidrains": lambda folder: (
        lucidrains_file(folder / "a.pt", "lucid_release_1_6"),
        reference("lucid_release_1_6").config,
    ),
}
"""Of every source with files of its own one, and its configuration; diffusers: tests/cli/test_fine_tuning.py."""


@pytest.mark.parametrize("origin", FILES)
def test_networks_of_every_source_are_trained_on(origin: str, tmp_path: Path) -> None:
    """Their loss is that of the denoiser that the import gives, in its own process, and every weight moves."""
    denoiser = sd.import_checkpoint(*FILES[origin](tmp_path)[:1], origin, *FILES[origin](tmp_path)[1:], folder=tmp_path)
    data = pictures((3, 16, 16), ("0", "2") if "labels" in denoiser.spec.conditions else (), count=8)
    engine, settings = Engine("cpu"), settings_of(tmp_path, steps=2, batch_size=4, label_dropout=0.2)
    found = Origin.of(settings, engine)
    assert found is not None
    start = found.start(settings, data)
    run = begin(start, tmp_path / "mine", engine, Splits(data, data))
    x0, noise = start.transform.encode(data.samples), torch.randn(8, 3, 16, 16, generator=generator(0))
    t = torch.full((8,), 0.4, dtype=torch.float64)
    there, here = ({} if data.labels is None else {"labels": factor * data.labels} for factor in (2, 1))
    before = sd.denoising_score_matching(denoiser, denoiser.spec.model_process, x0, t, noise, **there)
    with torch.no_grad():
        own = run.task.objective(run.trainer.alone, x0, t, noise, Space(256, 0.0), **here)
    torch.testing.assert_close(own, before, rtol=1e-5, atol=0)
    weights = {key: value.clone() for key, value in run.trainer.net.named_parameters()}
    run.train(engine.part(4))
    assert not [key for key, value in run.trainer.net.named_parameters() if torch.equal(value, weights[key])]


def test_only_a_training_that_is_there_decides_what_it_began_with(run_folder: Path, tmp_path: Path) -> None:
    """A configuration without a checkpoint is that of a training which did not get so far."""
    settings = settings_of(run_folder)
    write_json(tmp_path / "config.json", Settings().plain())
    check_origin(tmp_path, settings)
    shutil.copytree(run_folder / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UserError, match="holds a training that began with fresh weights"):
        check_origin(tmp_path, settings)
    write_json(tmp_path / "config.json", settings_of(run_folder, init_weights="ema").plain())
    check_origin(tmp_path, settings)
    with pytest.raises(UserError, match=r"weights 'ema', not with training\.init_from=.*init_weights='raw'"):
        check_origin(tmp_path, settings_of(run_folder, init_weights="raw"))


def test_the_weights_may_be_chosen(run_folder: Path) -> None:
    raw = Origin.read(str(run_folder / "checkpoints" / "step_000000007"), "raw")
    assert raw.weights == "raw" and torch.equal(
        raw.found.weights[raw.weights]["stem.weight"], sd.load(run_folder, weights="raw").net.stem.weight
    )
    with pytest.raises(UserError, match="unknown weights 'emma'; did you mean 'ema'"):
        Origin.read(str(run_folder), "emma")
    with pytest.raises(UserError, match=r"init_weights='raw' are those of training\.init_from, which is empty"):
        settings_of(Path(), init_from="", init_weights="raw")


@pytest.mark.parametrize("network", SMALL)
def test_settings_are_those_that_build_the_network_again(network: str) -> None:
    found = source(network, (3, 8, 8), classes=("ant", "bee"), **({"out_channels": 3} if network == "adm" else {}))
    model = Settings().model.as_built(found.spec)
    again = model.spec(found.spec.process, (3, 8, 8), ("ant", "bee"), "the pictures")
    assert built(Initial(again, found.weights["raw"], found.transform)) and again.conditions == ("labels",)
    assert Settings().model.as_built(again) == model


def test_fit_goes_on_with_the_network_of_a_run(run_folder: Path) -> None:
    """It is frozen as a whole, and trained as a whole; after no steps of any size it is what it was."""
    denoiser = sd.load(run_folder)
    before = {key: value.clone() for key, value in denoiser.net.state_dict().items()}
    x = DataTransform(256).encode(pictures(count=16).samples)
    still = sd.TrainingSettings(warmup_steps=0, log_every=1000)
    tuned = sd.fit(denoiser.net, denoiser.spec, x, 2, batch_size=4, learning_rate=1e-12, settings=still, device="cpu")
    for key, value in tuned.net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-10)
    again = sd.fit(tuned.net, tuned.spec, x, 5, batch_size=4, learning_rate=1e-2, settings=still, device="cpu")
    moved = [float((value - before[key]).abs().max()) for key, value in again.net.state_dict().items()]
    assert min(moved) > 1e-3
