"""Budgets in any unit become whole steps that they pay for; speeds come from where they are said to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compare.run_folders import write_run
from tst_lightning.errors import ConfigError
from tst_lightning.plan.budget import Budget, Speed, measured_speed, speed_of

FLOPS, POSITIONS = 7_851_737_088, 2_048
SPEED = Speed(4e12, "given")


@given(st.sampled_from(["flops", "device_hours", "tokens"]), st.integers(1, 10**6), st.floats(0, 0.99))
def test_a_budget_buys_as_many_whole_steps_as_it_pays_for(unit: str, steps: int, more: float) -> None:
    price = {"flops": FLOPS, "device_hours": FLOPS / 4e12 / 3600, "tokens": POSITIONS}[unit]
    budget = Budget(**{unit: price * (steps + more)})
    bought, said = budget.in_steps(FLOPS, POSITIONS, SPEED, None)
    # Divisions of floats may end a hair below a whole number.
    assert bought == steps or (more < 1e-6 and bought == steps - 1)
    assert said.startswith(f"--{unit}")


def test_steps_are_steps_and_the_configuration_stands_in() -> None:
    assert Budget(steps=12).in_steps(FLOPS, POSITIONS, None, 1000) == (12, "--steps 12")
    assert Budget().in_steps(FLOPS, POSITIONS, None, 1000)[0] == 1000


@pytest.mark.parametrize(
    ("budget", "speed", "said"),
    [
        (Budget(), None, "no budget; give --steps"),
        (Budget(steps=1, tokens=5e6), None, "--steps and --tokens are given"),
        (Budget(flops=1e3), None, "--flops 1000 does not pay for one step of 2,048 positions"),
        (Budget(tokens=-1), None, "--tokens is -1; it must be above 0"),
        (Budget(flops=float("nan")), None, "--flops is nan"),
        (Budget(device_hours=3), None, "--device_hours needs the speed of a device"),
    ],
)
def test_budgets_that_buy_nothing_are_refused(budget: Budget, speed: Speed | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("+", r"\+")):
        budget.in_steps(FLOPS, POSITIONS, speed, None)


def test_speed_is_peak_times_utilisation() -> None:
    assert speed_of("H100", None, 0.4).flops_per_second == pytest.approx(0.4 * 989e12)
    assert speed_of("NVIDIA H200", None, 0.5).flops_per_second == pytest.approx(0.5 * 989e12)
    assert speed_of("my own", 1e12, 0.5).flops_per_second == 5e11
    assert speed_of("H100", None, None) is None, "no utilisation is assumed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Abacus", None, 0.4), "the peak of device 'Abacus' is not known"),
        ((None, None, 0.4), "--mfu is a share of a device's peak"),
        (("H100", None, 40.0), "--mfu is 40"),
        ((None, -1.0, 0.4), "--peak_flops is -1"),
    ],
)
def test_speeds_that_make_no_sense_are_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        speed_of(*arguments)


def test_a_run_gives_its_measured_speed(tmp_path) -> None:
    # Of run_folders: 10 FLOPs and half a second a step.
    speed = measured_speed(write_run(tmp_path / "run", device="2 x cuda"))
    assert speed.flops_per_second == pytest.approx(10 / 0.5 / 2)
    assert "measured in" in speed.source
