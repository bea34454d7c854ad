"""Draws the error of every sampler against its evaluations of the network (NFE), under all six processes.

    python benchmarks/convergence.py          # writes docs/convergence.png and docs/convergence.md, on one thread

The data is a mixture of two anisotropic Gaussians in 12 dimensions, whose denoiser is known in closed form: what is
measured is the sampler's error and no network's. All samplers stop at the grid's last node (finish="none").

    flow         samplers without noise: RMS distance of x at the last node to the exact flow (dop853 at 1e-10), from
                 the same 64 draws of the prior, in float64
    stochastic   |mean - exact| + |covariance - exact| (Frobenius) at the last node, over 20,000 samples that start from
                 the exact marginal at the first node, in float32. Its floor is that of as many exact samples

The options are the samplers' defaults but for those that a name shows. Fixed-step samplers are run at the most steps
that fit a budget of 5, 10, 20, 50, 100 and 200 evaluations; adaptive ones at a list of tolerances (rtol = atol), where
NFE counts the calls for the whole batch, which end with its slowest sample.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sde_diffusion as sd

DOCS = Path(__file__).resolve().parent.parent / "docs"
PROCESSES: dict[str, tuple[sd.SDE, str]] = {
    "VPSDE": (sd.VPSDE(), "logsnr"),
    "SubVPSDE": (sd.SubVPSDE(), "logsnr"),
    "VESDE": (sd.VESDE(), "logsnr"),
    "CosineVPSDE": (sd.CosineVPSDE(), "logsnr"),
    "EDM": (sd.EDM(), "karras"),
    "RectifiedFlow": (sd.RectifiedFlow(), "logsnr"),
}
"""Name -> process and kind of grid."""

BUDGETS = (5, 10, 20, 50, 100, 200)
SHOWN = (10, 20, 50, 100)
DIMS, STARTS, SAMPLES = 12, 64, 20_000

Points = list[tuple[int, float]]
"""(NFE, error)."""


# --- what is drawn ------------------------------------------------------------------------------------------------

BLACK, GREY, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#000000",
    "#8c8c8c",
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)
"""The palette of Okabe and Ito (2008) without its yellow, and a grey."""


@dataclass(frozen=True)
class Curve:
    """A sampler under some options, and how it is drawn.

    evaluations   of a step between two nodes, and the further ones of a run
    tolerances    of an adaptive sampler, in place of budgets
    look          colour, marker and line; None for a row of the table alone
    """

    sampler: str
    look: tuple[str, str, str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluations: tuple[int, int] = (1, 0)
    tolerances: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return " ".join([self.sampler, *(f"{key}={value}" for key, value in self.options.items())])

    def runs(self) -> Iterable[tuple[int, Mapping[str, Any]]]:
        """The nodes of the grid and the options of each point of the curve."""
        for tolerance in self.tolerances:
            yield 2, {"rtol": tolerance, "atol": tolerance}
        each, further = self.evaluations
        for budget in () if self.tolerances else BUDGETS:
            nodes = (budget - further) // each + 1
            if nodes >= 2:
                yield nodes, self.options


def started(sampler: str, order: int) -> Curve:
    """A multistep method of its full order, whose first order - 1 steps cost three evaluations more each."""
    return Curve(sampler, None, {"order": order, "start": "runge_kutta"}, (1, 3 * (order - 1)))


# The colour is the method, the marker its order.
FLOW = [
    Curve("euler", (GREY, "o", "-")),
    Curve("ddim", (BLACK, "o", "-")),
    Curve("heun", (ORANGE, "s", "-"), evaluations=(2, 0)),
    Curve("dpmpp_2s", (SKY, "s", "-"), evaluations=(2, 0)),
    Curve("dpmpp_2m", (BLUE, "s", "-")),
    Curve("unipc", (RED, "s", "-"), {"order": 2}),
    Curve("deis", (GREEN, "s", "-"), {"order": 2}),
    Curve("dpmpp_3m", (BLUE, "^", "-")),
    Curve("dpmpp_3m", (BLUE, "^", ":"), {"solver": "published"}),
    Curve("unipc", (RED, "^", "-"), {"order": 3}),
    Curve("deis", (GREEN, "^", "-"), {"order": 3}),
    Curve("lms", (PINK, "D", "-"), {"order": 4}),
    Curve("ode", (BLACK, "*", "--"), tolerances=(1e-2, 1e-3, 1e-4, 1e-5, 1e-6)),
    started("dpmpp_3m", 3),
    started("unipc", 3),
    started("deis", 3),
    started("lms", 4),
]
STOCHASTIC = [
    Curve("euler_maruyama", (BLACK, "o", "-")),
    Curve("reverse_diffusion", (ORANGE, "v", "-")),
    Curve("ancestral", (SKY, "s", "-"), {"variance": "beta"}),
    Curve("ddpm", (BLUE, "^", "-"), {"variance": "posterior"}),
    Curve("ito", (GREEN, "<", "-"), {"stochasticity": 0.5}),
    Curve("dpmpp_2m_sde", (RED, "D", "-")),
    Curve("heun", (ORANGE, "P", "--"), {"churn": 10.0}, (2, 0)),
    Curve("pc", (PINK, "X", "-"), {}, (2, 1)),
    Curve("annealed_langevin", (GREY, ">", "-"), {"langevin_steps": 5}, (5, 5)),
    Curve("adaptive_sde", (BLACK, "*", "--"), tolerances=(1.0, 0.3, 0.1, 0.03)),
]


# --- what is measured ---------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture() -> sd.GaussianMixture:
    """Means of size about 1, standard deviations 0.3 to 1.3 that differ in every coordinate, weights 1 : 2."""
    g = generator(2)
    means = torch.randn(2, DIMS, generator=g, dtype=torch.float64)
    return sd.GaussianMixture(means, 0.3 + torch.rand(2, DIMS, generator=g, dtype=torch.float64), [1.0, 2.0])


def quick_denoiser(mixture: sd.GaussianMixture) -> sd.Denoiser:
    """The mixture's denoiser as matrix products, for one noise level: a fifth of the oracle's time.

    With v_k = alpha^2 s_k^2 + sigma^2, log r_k = -x^2 . 1/(2 v_k) + x . alpha m_k/v_k + const and component k's
    posterior mean is (alpha s_k^2 x + sigma^2 m_k) / v_k.
    """
    means, variances, log_weights = mixture.means, mixture.stds**2, mixture.weights.log()
    oracle = mixture.denoiser()

    def denoise(x: Tensor, kernel: sd.Kernel, **conditioning: Tensor) -> Tensor:
        if kernel.alpha.ndim:  # one level a sample: the adaptive samplers
            return oracle(x, kernel)
        alpha, noise = kernel.alpha, kernel.variance
        total = alpha**2 * variances + noise
        tilt = alpha * means / total
        const = log_weights - 0.5 * (total.log() + alpha * tilt * means).sum(1)
        square, linear, keep, pull = (
            m.to(x) for m in (-0.5 / total, tilt, alpha * variances / total, noise * means / total)
        )
        r = torch.addmm(const.to(x), x * x, square.T).addmm_(x, linear.T).softmax(1)
        return x * (r @ keep) + r @ pull

    return denoise


def points(curve: Curve, denoiser: sd.Denoiser, process: str, x: Tensor, error: Callable[[Tensor], float]) -> Points:
    """The errors of a sampler from x at the first node."""
    sde, kind = PROCESSES[process]
    found = []
    for nodes, options in curve.runs():
        grid = sd.make_grid(sde, nodes, kind)
        arguments = {"sampler": curve.sampler, "generator": generator(4), "finish": "none"}
        out = sd.sample(denoiser, grid=grid, x=x, **arguments, **options)
        found.append((out.nfe, error(out.x)))
    return found


def flow_errors(process: str, data: sd.GaussianMixture) -> dict[str, Points]:
    sde, kind = PROCESSES[process]
    denoiser, grid = quick_denoiser(data), sd.make_grid(sde, 2, kind)
    x = sde.prior_sample((STARTS, DIMS), generator=generator(3), dtype=torch.float64)
    tight = {"method": "dop853", "rtol": 1e-10, "atol": 1e-10}
    exact = sd.sample(denoiser, grid=grid, x=x, sampler="ode", finish="none", **tight).x

    def error(found: Tensor) -> float:
        return float((found - exact).square().mean().sqrt())

    return {curve.name: points(curve, denoiser, process, x, error) for curve in FLOW}


def stochastic_errors(process: str, data: sd.GaussianMixture) -> tuple[dict[str, Points], float]:
    """The points of each sampler, and the error of as many exact samples."""
    sde, kind = PROCESSES[process]
    denoiser, (first, last) = quick_denoiser(data), (node.kernel for node in sd.make_grid(sde, 2, kind).nodes)
    mean = last.alpha * data.mean
    covariance = last.alpha**2 * data.covariance + last.variance * torch.eye(DIMS)

    def marginal(kernel: sd.Kernel, seed: int) -> Tensor:
        g = generator(seed)
        x0 = data.sample(SAMPLES, generator=g)
        return kernel.perturb(x0, torch.randn(x0.shape, generator=g, dtype=x0.dtype)).float()

    def error(found: Tensor) -> float:
        found = found.double()
        return float((found.mean(0) - mean).norm() + (found.T.cov() - covariance).norm())

    x = marginal(first, 5)
    floor = sum(error(marginal(last, seed)) for seed in range(100, 110)) / 10
    return {curve.name: points(curve, denoiser, process, x, error) for curve in STOCHASTIC}, floor


# --- the table ----------------------------------------------------------------------------------------------------

CURVES = {"flow": FLOW, "stochastic": STOCHASTIC}
KINDS = {
    "flow": "Flow samplers: RMS distance to the exact flow",
    "stochastic": "Stochastic samplers: error of mean and covariance",
}


@dataclass(frozen=True)
class Result:
    """What was found for a process: the points of every curve of "flow" and of "stochastic", and their floors."""

    points: dict[str, dict[str, Points]]
    floors: dict[str, float]

    def at(self, kind: str, curve: Curve) -> list[float]:
        """The errors at the budgets shown, NaN where there is none; between its tolerances for an adaptive sampler."""
        found = self.points[kind][curve.name]
        if curve.tolerances:
            between = np.interp(np.log(SHOWN), *np.log(found).T, left=np.nan, right=np.nan)
            return [float(error) for error in np.exp(between)]
        errors = dict(zip(BUDGETS[-len(found) :], (error for _, error in found)))
        return [errors.get(budget, math.nan) for budget in SHOWN]

    def order(self, kind: str, curve: Curve) -> float:
        """The slope of log error against log NFE over the last points, three at most, or NaN if there are not two.

        Those count that have more than 15 evaluations and an error more than twice the floor.
        """
        floor = self.floors.get(kind, 0.0)
        clear = [(nfe, error) for nfe, error in self.points[kind][curve.name] if nfe > 15 and error > 2.0 * floor][-3:]
        if curve.tolerances or len(clear) < 2:
            return math.nan
        return -float(np.polyfit(*np.log(clear).T, 1)[0])


Results = Mapping[str, Result]


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def number(value: float, digits: str = ".2g") -> str:
    return format(value, digits) if math.isfinite(value) else "-"


def tables(results: Results) -> Iterable[str]:
    """A section for each process."""
    header = ["sampler", *(f"NFE {budget}" for budget in SHOWN), "order"]
    for process, result in results.items():
        yield f"## {process} ({PROCESSES[process][1]} grid)"
        for kind, title in KINDS.items():
            floor = f" (exact samples: {result.floors[kind]:.2g})" if kind in result.floors else ""
            rows = (
                [curve.name, *map(number, result.at(kind, curve)), number(result.order(kind, curve), ".1f")]
                for curve in CURVES[kind]
            )
            yield f"{title}{floor}\n\n{markdown(header, rows)}"


def span(values: Iterable[float], digits: str = ".2g") -> str:
    """The least and the greatest of the values that there are."""
    known = sorted(value for value in values if math.isfinite(value))
    ends = dict.fromkeys(f"{value:{digits}}" for value in (known[0], known[-1])) if known else ["-"]
    return " to ".join(ends)


def leaders(results: Results) -> str:
    """The sampler of the smallest error at each budget."""
    rows = []
    for process, result in results.items():
        for kind, curves in CURVES.items():
            best = []
            for column in range(len(SHOWN)):
                errors = {c.name: e for c in curves if math.isfinite(e := result.at(kind, c)[column])}
                name = min(errors, key=errors.__getitem__)
                best.append(f"{name} ({errors[name]:.2g})")
            rows.append([f"{process}, {kind}", *best])
    return markdown(["smallest error", *(f"NFE {budget}" for budget in SHOWN)], rows)


def summary(results: Results) -> Iterable[str]:
    """Spans over the processes."""
    header = ["over all processes", *(f"NFE {budget}" for budget in SHOWN), "order"]
    for kind, curves in CURVES.items():
        rows = []
        for curve in curves:
            columns = zip(*(result.at(kind, curve) for result in results.values()))
            orders = (result.order(kind, curve) for result in results.values())
            rows.append([curve.name, *map(span, columns), span(orders, ".1f")])
        yield f"{KINDS[kind]}\n\n{markdown(header, rows)}"


# --- the picture --------------------------------------------------------------------------------------------------

LEGENDS = {
    "flow": "Flow samplers\ncircle: order 1, square: 2,\ntriangle: 3, diamond: 4,\nstar: adaptive",
    "stochastic": "Stochastic samplers",
}
LIMITS = {"flow": (2e-7, 5.0), "stochastic": (0.06, 30.0)}


def draw(results: Results, path: Path) -> None:
    """A column for each process, a row for each kind of sampler."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    with rc_context({"font.size": 13}):
        figure = Figure(figsize=(22, 10.5), dpi=90, layout="constrained")
        panels = figure.subplots(2, len(results), sharex=True, sharey="row")
        for (kind, curves), row in zip(CURVES.items(), panels):
            for (process, result), panel in zip(results.items(), row):
                for curve in curves:
                    if curve.look:
                        colour, marker, line = curve.look
                        look = {"color": colour, "marker": marker, "linestyle": line, "label": curve.name}
                        size = 10 if marker == "*" else 5.5
                        panel.plot(*zip(*result.points[kind][curve.name]), **look, markersize=size, lw=1.4)
                if kind in result.floors:
                    panel.axhline(result.floors[kind], color="#c8c8c8", lw=4, zorder=0, label="exact samples (floor)")
                panel.set(xscale="log", yscale="log", xlim=(3.6, 600), ylim=LIMITS[kind], xticks=BUDGETS)
                panel.xaxis.set_major_formatter(ScalarFormatter())
                panel.xaxis.set_minor_formatter(NullFormatter())
                panel.tick_params(axis="x", labelsize=10)
                panel.tick_params(axis="x", which="minor", length=0)
                panel.grid(color="#e6e6e6", lw=0.6)
                if kind == "flow":
                    panel.set_title(f"{process} ({PROCESSES[process][1]} grid)", fontsize=13)
                else:
                    panel.set_xlabel("evaluations (NFE)")
            row[0].set_ylabel(KINDS[kind].split(": ")[1])
            legend = {"title": LEGENDS[kind], "alignment": "left", "frameon": False}
            row[-1].legend(loc="center left", bbox_to_anchor=(1.03, 0.5), **legend)
        figure.savefig(path)


# --- the page -----------------------------------------------------------------------------------------------------

PAGE = """# Error against evaluations of the network

Written by `python benchmarks/convergence.py`, whose first lines say what is measured. The network is the closed-form
denoiser of a mixture of two Gaussians in 12 dimensions.

![Error of every sampler against its evaluations under six processes](convergence.png)

Errors beyond the axes are not drawn. The columns NFE 10, 20, 50 and 100 are budgets: samplers of two evaluations a step
take the most steps that fit, and adaptive ones are interpolated between the tolerances at which they were run. With
start=runge_kutta, RectifiedFlow takes three evaluations more than the budget, as its first node has no signal. Order is
the slope over the last three points from 20 evaluations on; of stochastic samplers, of those points whose error is more
than twice the floor, which is the error of as many exact samples. Where a stochastic order is far above 1, the error at
20 evaluations is not yet in proportion to a power of the steps.

{text}
"""


def facts(results: Results) -> str:
    """What the numbers show, with the numbers."""
    named = {curve.name: (kind, curve) for kind, curves in CURVES.items() for curve in curves}

    def errors(name: str, budget: int) -> list[float]:
        return [result.at(*named[name])[SHOWN.index(budget)] for result in results.values()]

    def orders(*names: str) -> str:
        return span((result.order(*named[name]) for result in results.values() for name in names), ".1f")

    def ratios(over: str, under: str, budget: int) -> list[float]:
        return [a / b for a, b in zip(errors(over, budget), errors(under, budget))]

    def best(kind: str, budget: int) -> str:
        columns = zip(*(errors(curve.name, budget) for curve in CURVES[kind]))
        return span(min(filter(math.isfinite, column)) for column in columns)

    floors = [result.floors["stochastic"] for result in results.values()]
    settled = [
        curve.name
        for curve in STOCHASTIC
        if all(error < 1.5 * floor for error, floor in zip(errors(curve.name, 100), floors))
    ]
    slow = [curve for curve in FLOW if curve.options.get("start") == "runge_kutta"]
    ramps = {"dpmpp_3m": "dpmpp_3m", "lms": "lms order=4"}
    starts = {
        budget: span(r for c in slow for r in ratios(c.name, ramps.get(c.sampler, f"{c.sampler} order=3"), budget))
        for budget in (20, 100)
    }
    # The tolerance 1e-5 is the last but one of ode's.
    tight = [result.points["flow"]["ode"][-2] for result in results.values()]
    euler = ", ".join(f"{name} {ratio:.2g}" for name, ratio in zip(results, ratios("euler", "ddim", 20)))
    heun = ", ".join(f"{name} {ratio:.2g}" for name, ratio in zip(results, ratios("heun", "dpmpp_2m", 20)))
    langevin = "annealed_langevin langevin_steps=5"
    lines = [
        f"The smallest error of a flow sampler is {best('flow', 10)} at 10 evaluations, {best('flow', 20)} at 20 and "
        f"{best('flow', 50)} at 50, depending on the process.",
        f"Measured orders: {orders('euler', 'ddim')} for euler and ddim, "
        f"{orders('heun', 'dpmpp_2s', 'dpmpp_2m', 'deis order=2')} for heun, dpmpp_2s, dpmpp_2m and deis of order 2, "
        f"{orders('unipc order=2')} for unipc of order 2, {orders('dpmpp_3m', 'deis order=3')} for dpmpp_3m and deis "
        f"of order 3, {orders('dpmpp_3m solver=published')} for the published formula of dpmpp_3m, "
        f"{orders('unipc order=3')} for unipc of order 3 and {orders('lms order=4')} for lms.",
        f"At a tolerance of 1e-5 ode has an error of {span(error for _, error in tight)} for "
        f"{span((nfe for nfe, _ in tight), 'd')} evaluations.",
        f"With start=runge_kutta the error at 20 evaluations is {starts[20]} times that of the default start, and at "
        f"100 {starts[100]} times.",
        f"euler and heun step in t, ddim and dpmpp_2m in log-SNR. At 20 evaluations the error of euler in units of "
        f"ddim's is: {euler}; that of heun in units of dpmpp_2m's: {heun}.",
        f"Stochastic samplers: the smallest error is {best('stochastic', 10)} at 10 evaluations and "
        f"{best('stochastic', 20)} at 20. Within 1.5 times the floor at 100 evaluations under every process: "
        f"{', '.join(settled) or 'none'}.",
        f"annealed_langevin with 5 steps a level has an error of {span(errors(langevin, 100))} at 100 evaluations.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def main() -> None:
    torch.set_num_threads(1)
    data, results = mixture(), {}
    for process in PROCESSES:
        stochastic, floor = stochastic_errors(process, data)
        results[process] = Result({"flow": flow_errors(process, data), "stochastic": stochastic}, {"stochastic": floor})
        print(f"{process} done", flush=True)
    draw(results, DOCS / "convergence.png")
    text = "\n\n".join([facts(results), *summary(results), leaders(results), *tables(results)])
    (DOCS / "convergence.md").write_text(PAGE.format(text=text))


if __name__ == "__main__":
    main()
