"""What makes an update be skipped, and signals that are remembered."""

from __future__ import annotations

import math
import os
import signal
import threading

import pytest

from sde_diffusion.training.guard import MEMORY, LossGuard, listening


def fed(losses: list[float], explosion: float = 1e4) -> LossGuard:
    guard = LossGuard(explosion)
    for loss in losses:
        guard.passed(loss)
    return guard


def test_the_mean_is_geometric_and_runs() -> None:
    """Of n losses the plain geometric mean up to MEMORY of them, then with a memory of so many."""
    assert fed([1.0, 4.0, 16.0]).log_mean == pytest.approx(math.log(4.0))
    later = fed([1.0] * MEMORY + [math.e] * MEMORY).log_mean
    assert later == pytest.approx(1.0 - (1.0 - 1.0 / MEMORY) ** MEMORY)


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_is_refused_from_the_first_update(loss: float, norm: float) -> None:
    assert "the loss is" in LossGuard(0.0).objection(loss, norm)


def test_an_explosion_is_one_in_relation_to_the_mean() -> None:
    guard = fed([0.01] * MEMORY, explosion=100.0)
    assert guard.objection(0.99, 1.0) == "" and "more than 100 times its mean of 0.01" in guard.objection(1.01, 1.0)
    assert fed([0.01] * MEMORY, explosion=0.0).objection(1e9, 1.0) == ""
    assert fed([0.01] * (MEMORY - 1), explosion=100.0).objection(1e9, 1.0) == "", "too early to judge"
    assert guard.objection(-5.0, 1.0) == "", "a bound may be negative"


def test_a_loss_that_doubles_every_time_is_caught() -> None:
    """The mean of logarithms lags MEMORY updates behind, so that the ratio grows beyond any factor."""
    guard = fed([1.0] * MEMORY)
    for doublings in range(60):
        if guard.objection(2.0**doublings, 1.0):
            break
        guard.passed(2.0**doublings)
    assert 14 <= doublings <= 16


def test_skips_are_counted_in_a_row_and_in_all_and_stored() -> None:
    guard = fed([1.0, 2.0])
    guard.skipping()
    guard.skipping()
    guard.passed(1.0)
    guard.skipping()
    assert (guard.in_a_row, guard.skipped) == (1, 3)
    again = LossGuard(1e4)
    again.load(guard.state())
    assert again.state() == guard.state() and again.seen == 3


def test_a_signal_is_remembered_and_a_second_interrupt_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening() as signals:
        assert signals.name == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    names = []

    def work() -> None:
        with listening() as signals:
            names.append(signals.name)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert names == [""]
