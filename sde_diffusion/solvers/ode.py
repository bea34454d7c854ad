"""One entry point for ordinary differential equations: `integrate`.

The same flow serves the sampler (noise to data) and the likelihood (data to noise). Four families of solvers:

    per_sample            Dormand-Prince 5(4) with a step size of its own for each sample: a row's result does not
                          depend on the rows beside it
    rk45, dop853, ...     scipy.integrate.solve_ivp, in float64, one step size for the whole batch, whose error norm
                          is the mean over the batch (what score_sde_pytorch does)
    dopri5, bosh3, ...    torchdiffeq, one step size for the batch, error norm of the worst sample
    euler, midpoint, rk4  torchdiffeq, a given number of equal steps: 1, 2 and 4 evaluations each

The embedded pair (Dormand and Prince 1980) computes k_i = f(t + c_i h, y + h sum_j a_ij k_j), takes the fifth order
result y + h sum b_i k_i, and accepts it when the difference from the fourth order one, in the norm below, is at most 1;
the next step is h times 0.9 error^(-1/5) (Hairer, Norsett and Wanner 1993, section II.4).

    error = sqrt(mean_j (e_j / (atol + rtol max(|y_j|, |y_new_j|)))^2)

The last digits of a float32 network depend on how many rows it is given. Step sizes that followed them would carry that
noise, amplified to the tolerance, into the result; so those of per_sample are powers of two, rounded down, and at most
double. On digits a row of the likelihood is then the same to 7e-7 bits/dim, where it was the same to 5e-4 at rtol 1e-3;
the steps are a tenth more, and their error is half.

Where torch records gradients, what comes out has the derivative of the very steps that were taken, their lengths held
fixed: by y, and by all that f depends on. So it is right for the numbers that were computed, to rounding, and tends to
that of the flow with the tolerances; solving an adjoint equation backwards (Chen et al. 2018) would multiply errors
where the flow runs apart. Of an evaluation its arguments are kept, and it is made again when it is needed. scipy's
solvers lie outside of torch and are refused there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sde_diffusion.core.errors import NotFinite, TooManyEvaluations, UserError, choose
from sde_diffusion.core.kernel import Scalar, as_schedule, has_float64

Field = Callable[[Tensor, Tensor], Tensor]
"""dy/dt = f(t, y), with t a float64 tensor [] or [B] and y [B, *D]."""

Where = Callable[[Tensor], str]
"""Words for a time t, [] or [B], at which something failed."""


@dataclass(frozen=True)
class Control:
    """What a solver is told: tolerances, or steps where they are fixed; the most evaluations; how to name a time."""

    rtol: float
    atol: float
    steps: int
    max_nfe: int
    where: Where


# Dormand and Prince (1980), RK5(4)7M.
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 2.0


def _power_of_two(h: Tensor) -> Tensor:
    """The largest power of two that is at most h."""
    return torch.ldexp(torch.full_like(h, 0.5), torch.frexp(h).exponent)


def _rms(e: Tensor, scale: Tensor) -> Tensor:
    """Root mean square over each row, [B]."""
    return (e / scale).square().mean(1).sqrt()


def _sum(stages: Tensor | list[Tensor], weights: Tensor) -> Tensor:
    """sum_i w_i k_i of stages k [n, B, D], [B, D]."""
    k = stages if isinstance(stages, Tensor) else torch.stack(stages)
    return torch.mv(k.flatten(1).T, weights).view(k.shape[1:])


def _first_step(f: Field, t: Tensor, y: Tensor, k: Tensor, span: float, rtol: float, atol: float) -> Tensor:
    """A first step from the sizes of y, y' and y'', [B] (Hairer et al. 1993, section II.4, algorithm 4.14)."""
    scale = atol + rtol * y.abs()
    d0, d1 = _rms(y, scale), _rms(k, scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1).clamp_max(abs(span))
    sign = 1.0 if span > 0 else -1.0
    k1 = f(t + sign * h0.cpu().double(), y + sign * h0[:, None] * k)
    slope = torch.maximum(d1, _rms(k1 - k, scale) / h0)
    h1 = torch.where(slope <= 1e-15, torch.clamp_min(1e-3 * h0, 1e-6), (0.01 / slope) ** 0.2)
    return torch.minimum(100.0 * h0, h1).clamp_max(abs(span)).cpu().double()


def _per_sample(f: Field, y: Tensor, t0: float, t1: float, control: Control) -> Tensor:
    rtol, atol = control.rtol, control.atol
    sign = 1.0 if t1 > t0 else -1.0
    t = torch.full((len(y),), t0, dtype=torch.float64)
    first = f(t, y)
    # All stages lie in one piece of memory, so that a sum over them is one matrix product, one pass; but gradients need
    # what was written to it before.
    stages: Tensor | list[Tensor] = (
        [first] * len(_C) if first.requires_grad or y.requires_grad else y.new_empty(len(_C), *y.shape)
    )
    rows = [y.new_tensor(row) for row in (*_A, _ERROR)]
    stages[0] = first
    with torch.no_grad():
        h = _power_of_two(_first_step(f, t, y, stages[0], t1 - t0, rtol, atol))
    nfe = 2
    while bool((t != t1).any()):
        if nfe + 6 > control.max_nfe:
            raise TooManyEvaluations(_too_many(control, t))
        step = sign * torch.minimum(h, (t1 - t).abs())
        weight = step.to(y)[:, None]
        for i, c in enumerate(_C[1:], 1):
            y_stage = torch.addcmul(y, weight, _sum(stages[:i], rows[i]))
            stages[i] = f(t + c * step, y_stage)
        nfe += 6
        with torch.no_grad():
            error = weight * _sum(stages, rows[-1])
            ratio = _rms(error, atol + rtol * torch.maximum(y.abs(), y_stage.abs())).cpu().double()
        if bool(ratio.isnan().any()):
            raise NotFinite(_not_finite(control, t))
        accept = ratio <= 1.0
        here = accept.to(y.device)[:, None]
        y = torch.where(here, y_stage, y)
        stages[0] = torch.where(here, stages[-1], stages[0])
        # The last step lands on t1 itself, so that the row is finished in floating point too.
        arrived = torch.where(step.abs() >= (t1 - t).abs(), torch.full_like(t, t1), t + step)
        t = torch.where(accept, arrived, t)
        factor = (_SAFETY * ratio.clamp_min(1e-10) ** -0.2).clamp(_SHRINK, _GROW)
        h = _power_of_two(step.abs() * torch.where(accept, factor, factor.clamp_max(1.0)))
    return y


def _too_many(control: Control, t: Tensor) -> str:
    return (
        f"the flow needs more than {control.max_nfe} evaluations: at rtol {control.rtol:g}, atol {control.atol:g} the "
        f"slowest sample has come to {control.where(t)}; loosen the tolerances or raise max_nfe"
    )


def _not_finite(control: Control, t: Tensor) -> str:
    return f"the flow is not finite after {control.where(t)}: check the model's output"


def _share(t0: float, t1: float) -> Where:
    """How far the slowest sample has come from t0 to t1."""
    return lambda t: f"{100.0 * float(((t - t0) / (t1 - t0)).min()):.0f}% of its way"


def _watched(f: Field, control: Control) -> Field:
    """f, with an error for more than max_nfe evaluations and for values that are not finite."""
    nfe = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal nfe
        nfe += 1
        if nfe > control.max_nfe:
            raise TooManyEvaluations(_too_many(control, t))
        out = f(t, y)
        if not bool(out.isfinite().all()):
            raise NotFinite(_not_finite(control, t))
        return out

    return field


Solver = Callable[[Field, Tensor, float, float, Control], Tensor]


def _scipy(method: str) -> Solver:
    def solve(f: Field, y: Tensor, t0: float, t1: float, control: Control) -> Tensor:
        from scipy.integrate import solve_ivp  # 0.8 s to import

        watched = _watched(f, control)

        def field(t: float, flat: object) -> object:
            rate = watched(as_schedule(t), torch.as_tensor(flat).to(y).reshape(y.shape))
            if rate.requires_grad:
                raise UserError(without)
            return rate.cpu().double().numpy().ravel()

        without = (
            f"scipy's {method} has no gradient: choose one of the solvers "
            f"{', '.join(name for name in SOLVERS if name not in SCIPY)}, or call it under torch.no_grad"
        )
        if y.requires_grad and torch.is_grad_enabled():
            raise UserError(without)
        start = y.detach().cpu().double().numpy().ravel()
        solution = solve_ivp(field, (t0, t1), start, method=method, rtol=control.rtol, atol=control.atol, t_eval=[t1])
        if not solution.success:
            raise UserError(f"scipy's {method} stopped: {solution.message}")
        return torch.as_tensor(solution.y[:, -1]).to(y).reshape(y.shape)

    return solve


def _worst_sample(shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """The error norm of the worst row, and so the steps, without gradient; torchdiffeq hands e over flattened."""
    return lambda e: e.detach().reshape(shape).square().mean(1).sqrt().max()


Options = Callable[[Tensor, Tensor, Control], dict[str, object]]
"""(y, span, control) -> torchdiffeq's options."""


def _adaptive(y: Tensor, span: Tensor, control: Control) -> dict[str, object]:
    # Without step_t an adaptive step may evaluate f beyond t1, where a schedule need not exist.
    return {"norm": _worst_sample(y.shape), "step_t": span[1:], "dtype": span.dtype}


def _fixed(y: Tensor, span: Tensor, control: Control) -> dict[str, object]:
    times = torch.lerp(
        span[0], span[1], torch.linspace(0.0, 1.0, control.steps + 1, dtype=span.dtype, device=span.device)
    )
    return {"grid_constructor": lambda f, y0, t: times}


def _torchdiffeq(method: str, options: Options) -> Solver:
    def solve(f: Field, y: Tensor, t0: float, t1: float, control: Control) -> Tensor:
        from torchdiffeq import odeint

        watched = _watched(f, control)
        dtype = torch.float64 if has_float64(y) else torch.float32
        span = torch.tensor([t0, t1], dtype=dtype, device=y.device)
        last = span[0]

        def field(t: Tensor, state: Tensor) -> Tensor:
            nonlocal last
            last = t
            return watched(t, state)

        try:
            return odeint(
                field,
                y,
                span,
                rtol=control.rtol,
                atol=control.atol,
                method=method,
                options=options(y, span, control),
            )[-1]
        except AssertionError as error:  # "underflow in dt"
            raise UserError(f"torchdiffeq's {method} stopped at {control.where(last)}: {error}") from error

    return solve


FIXED_STEPS: dict[str, Solver] = {
    "euler": _torchdiffeq("euler", _fixed),
    "midpoint": _torchdiffeq("midpoint", _fixed),
    "rk4": _torchdiffeq("rk4", _fixed),
}
"""Solvers that take a number of steps; the others take tolerances."""

SCIPY: dict[str, Solver] = {name.lower(): _scipy(name) for name in ("RK45", "RK23", "DOP853", "LSODA")}
"""Solvers outside of torch, which know no gradients."""

SOLVERS: dict[str, Solver] = {
    "per_sample": _per_sample,
    **SCIPY,
    "dopri5": _torchdiffeq("dopri5", _adaptive),
    "dopri8": _torchdiffeq("dopri8", _adaptive),
    "bosh3": _torchdiffeq("bosh3", _adaptive),
    **FIXED_STEPS,
}


def recording(x: Tensor, grad: bool) -> bool:
    """Whether to record gradients: where torch does, and x requires one or the caller asks for that of the network."""
    return torch.is_grad_enabled() and (grad or x.requires_grad)


def integrate(
    f: Field,
    y: Tensor,
    t0: Scalar,
    t1: Scalar,
    *,
    method: str = "per_sample",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int = 100,
    max_nfe: int = 100_000,
    where: Where | None = None,
) -> Tensor:
    """y(t1) for dy/dt = f(t, y) and y(t0) = y, [B, *D]; t1 may lie before t0.

    rtol, atol steer the adaptive methods, steps the fixed ones. where: words for a time at which something failed
    (default: the share of the way).

    Raises UserError for an unknown method, tolerances or steps that are not positive; TooManyEvaluations beyond
    max_nfe; NotFinite for a solution that is not a number; UserError for a gradient through a solver of scipy's.
    """
    solver = choose("ODE method", method, SOLVERS)
    if not (rtol > 0 and atol > 0 and steps > 0):
        raise UserError(f"rtol, atol and steps must be positive, got {rtol}, {atol} and {steps}")
    start, end = float(t0), float(t1)
    if start == end or not y.numel():
        return y
    shape = y.shape
    name = where or _share(start, end)

    def inside(t: Tensor) -> Tensor:
        """t in the interval, beyond which the field need not exist: rounding or a look ahead may pass its end."""
        return as_schedule(t).clamp(min(start, end), max(start, end))

    def field(t: Tensor, state: Tensor) -> Tensor:
        return f(inside(t), state.reshape(shape)).flatten(1)

    recorded = torch.is_grad_enabled()

    def again(t: Tensor, state: Tensor) -> Tensor:
        """f, of which nothing is kept for the backward pass but its arguments. It draws no random numbers."""
        nonlocal recorded
        if not (recorded and torch.is_grad_enabled()):
            return field(t, state)
        rate = checkpoint(field, t, state, use_reentrant=False, preserve_rng_state=False)
        recorded = rate.requires_grad or state.requires_grad
        return rate

    control = Control(rtol, atol, steps, max_nfe, lambda t: name(inside(t)))
    return solver(again, y.flatten(1), start, end, control).reshape(shape)
