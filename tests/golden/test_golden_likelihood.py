"""Likelihoods against score_sde with its probe, an independent solution, and the true densities."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.likelihood.flow import PROBES
from tests.golden.reference import DIMS, Arrays, SongProcess, arrays, cases, close, mixture, under

KINDS = ("vp", "subvp", "ve")
BPD_ATOL, LATENT_ATOL = 3e-4, 5e-4
"""RK45 at tolerances of 1e-5; the latent in units of the prior's standard deviation."""
CENTERED, UNCENTERED = 2.0 / 256.0, 1.0 / 256.0
"""Spacings of 256 grey levels that score_sde assumes in [-1, 1] and in [0, 1]: 7 and 8 bits."""

every_case = pytest.mark.parametrize(("dims", "kind"), [(dims, kind) for dims in DIMS for kind in KINDS])


def load(dims: int, kind: str) -> tuple[Arrays, SongProcess, sd.GaussianMixture]:
    """The case's arrays without its name in front, its process and the data."""
    file = f"likelihood/score_sde_likelihood_{dims}d"
    vectors = arrays(file)
    return under(vectors, f"{kind}_"), SongProcess.of(cases(file)[kind]), mixture(vectors, dims)


def stored_probe(monkeypatch: pytest.MonkeyPatch, probe: Tensor) -> None:
    """One stored probe [B, *D] in the place of the library's draw, [B, 1, *D]."""

    def draw(shape: Sequence[int], generator: object, *, like: Tensor) -> Tensor:
        assert tuple(shape) == (len(probe), 1, *probe.shape[1:])
        return probe.unsqueeze(1).to(like)

    monkeypatch.setitem(PROBES, "rademacher", draw)


def run(
    dims: int, kind: str, *, method: str = "rk45", tolerance: float = 1e-5, divergence: str = "hutchinson"
) -> sd.LogLikelihood:
    own, process, oracle = load(dims, kind)
    return sd.log_likelihood(
        oracle.denoiser(),
        own["x"],
        process.sde,
        method=method,
        rtol=tolerance,
        atol=tolerance,
        divergence=divergence,
        probes=1,
        variable="t",
    )


@cache
def exact(dims: int, kind: str) -> sd.LogLikelihood:
    return run(dims, kind, method="dop853", tolerance=1e-10, divergence="exact")


@every_case
def test_rk45(dims: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same solver, probe and state: as many evaluations, and a result closer than its tolerance."""
    own, _, _ = load(dims, kind)
    case = cases(f"likelihood/score_sde_likelihood_{dims}d")[kind]
    stored_probe(monkeypatch, own["hutchinson"])
    ll = run(dims, kind)
    assert ll.nfe == case["nfe"] and ll.t_min == case["eps"]
    close(ll.latent, own["latent"])
    close(sd.bits_per_dim(ll.nats, dims, CENTERED), own["bpd_centered"])
    close(sd.bits_per_dim(ll.nats, dims, UNCENTERED), own["bpd_uncentered"])


FLOAT32_ATOL = {"vp": BPD_ATOL, "subvp": 6e-4, "ve": BPD_ATOL}
"""In bits/dim. Our velocity finds eps_hat = (x - alpha x0_hat) / sigma, whose rounding grows as 1/sigma;
score_sde has the score itself. Sub-VP has sigma = 1e-6 at t_min (VP: 1e-3): up to 4e-4 in float32."""


@every_case
def test_rk45_float32(dims: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """score_sde's float32 run against ours, in float64 and in float32."""
    own, process, oracle = load(dims, kind)
    stored_probe(monkeypatch, own["hutchinson"])
    for x, tolerance in ((own["x"], BPD_ATOL), (own["x"].float(), FLOAT32_ATOL[kind])):
        ll = sd.log_likelihood(oracle.denoiser(), x, process.sde, method="rk45", probes=1, variable="t")
        assert ll.nats.dtype == x.dtype
        bits = sd.bits_per_dim(ll.nats, dims, CENTERED)
        close(bits.double(), own["bpd_float32"].double(), rtol=0.0, atol=tolerance)
        latent, scale = own["latent_float32"].double(), process.sde.prior_std
        close(ll.latent.double(), latent, rtol=0.0, atol=LATENT_ATOL * scale)


@every_case
def test_tight_tolerances_with_the_probe(dims: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, process, _ = load(dims, kind)
    stored_probe(monkeypatch, own["hutchinson"])
    ll = run(dims, kind, method="dop853", tolerance=1e-10)
    close(ll.nats - process.sde.prior_logp(ll.latent), own["delta_logp_hutchinson"], rtol=1e-8, atol=1e-8)


@every_case
def test_exact_trace(dims: int, kind: str) -> None:
    own, process, _ = load(dims, kind)
    ll = exact(dims, kind)
    assert ll.standard_error is None
    close(ll.latent, own["latent_exact"], rtol=1e-8, atol=1e-8)
    close(ll.nats, own["prior_logp_of_latent"] + own["delta_logp_exact_trace"], rtol=1e-8, atol=1e-8)
    close(process.sde.prior_logp(own["latent_exact"]), own["prior_logp_of_latent"])


@every_case
def test_true_densities(dims: int, kind: str) -> None:
    own, process, oracle = load(dims, kind)
    close(oracle.log_prob(own["x"]), own["true_logp0"])
    close(oracle.log_prob(own["x"], process.sde.kernel(process.sde.t_likelihood)), own["true_logp_eps"])
    close(oracle.log_prob(own["latent_exact"], process.sde.kernel(1.0)), own["true_logp_T_of_latent"])


@every_case
def test_change_of_variables(dims: int, kind: str) -> None:
    """With the true density at t = 1 for the prior, the likelihood is the true density at t_min."""
    own, process, oracle = load(dims, kind)
    ll = exact(dims, kind)
    delta = ll.nats - process.sde.prior_logp(ll.latent)
    close(
        oracle.log_prob(ll.latent, process.sde.kernel(1.0)) + delta,
        own["true_logp_eps"],
        rtol=1e-8,
        atol=1e-8,
    )
