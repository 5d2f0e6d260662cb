import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.test_resume import signal_at
from tst_lightning.errors import ConfigError
from tst_lightning.optim import WarmupStableDecay, decay_groups


def test_curve_by_hand() -> None:
    schedule = WarmupStableDecay(warmup_steps=3, decay_share=0.4, floor=0.0)
    factors = [schedule.factor(step, 10) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_curves_with_switches_by_hand() -> None:
    """Phases of 6, 3 and 1 of 10 steps."""
    rewarmed = WarmupStableDecay(warmup_steps=3, decay_share=0.4, rewarm_steps=1)
    factors = [rewarmed.factor(step, 10, [6, 9]) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8 / 2, 0.6, 0.4, 0.2 / 2, 0])
    two = WarmupStableDecay(warmup_steps=1, decay_share=0.5, per_phase=True)
    assert [two.factor(step, 10, [6]) for step in range(11)] == pytest.approx(
        [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4, 1 / 2, 1, 2 / 3, 1 / 3, 0]
    )


def test_the_cosine_is_that_of_torch() -> None:
    """Which begins at the peak, where this one has taken a step already, as its rise has."""
    schedule = WarmupStableDecay(decay_share=1.0, shape="cosine", floor=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    other = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=21, eta_min=0.1)
    for step in range(20):
        optimizer.step()
        other.step()
        assert schedule.factor(step, 20) == pytest.approx(other.get_last_lr()[0])


SHAPES = st.sampled_from(["linear", "cosine"])
SWITCHES = st.lists(st.integers(1, 499), unique=True, max_size=4).map(sorted)


@given(st.data(), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), st.integers(60, 500), SHAPES)
def test_never_leaves_its_bounds(
    data: st.DataObject, warmup: int, decay: float, floor: float, total: int, shape: Any
) -> None:
    switches = [step for step in data.draw(SWITCHES) if step < total]
    per_phase = data.draw(st.booleans())
    rewarm = 0 if per_phase else data.draw(st.integers(0, 50))
    schedule = WarmupStableDecay(warmup, decay, floor, shape, rewarm, per_phase)
    assert all(0 < schedule.factor(step, total, switches) <= 1 for step in range(total))


@given(st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), SHAPES, SWITCHES)
def test_each_phase_has_the_schedule_of_a_run_of_its_own(
    warmup: int, decay: float, floor: float, shape: Any, switches: list[int]
) -> None:
    phased = WarmupStableDecay(warmup, decay, floor, shape, per_phase=True)
    alone = WarmupStableDecay(warmup, decay, floor, shape)
    bounds = [0, *switches, 500]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        for step in range(begin, end):
            assert phased.factor(step, 500, switches) == alone.factor(step - begin, end - begin)


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1), SWITCHES)
def test_a_rewarm_changes_only_the_steps_after_a_switch(
    warmup: int, rewarm: int, decay: float, switches: list[int]
) -> None:
    schedule, without = WarmupStableDecay(warmup, decay, rewarm_steps=rewarm), WarmupStableDecay(warmup, decay)
    for step in range(500):
        since = step - max((switch for switch in switches if switch <= step), default=-500)
        share = schedule.factor(step, 500, switches) / without.factor(step, 500, switches)
        assert share == pytest.approx(min(1, (since + 1) / (rewarm + 1)))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1; it must not be negative"),
        ({"rewarm_steps": -1}, "rewarm_steps is -1; it must not be negative"),
        ({"decay_share": 1.5}, "decay_share is 1.5; it must lie between 0 and 1"),
        ({"floor": -0.1}, "floor is -0.1; it must lie between 0 and 1"),
        (
            {"rewarm_steps": 2, "per_phase": True},
            "rewarm_steps is 2, but with lr_schedule.per_phase every phase begins",
        ),
    ],
)
def test_values_outside_their_range_are_refused(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        WarmupStableDecay(**bad)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"warmup_steps": 37}, "warmup_steps is 37, but the run has only 37 steps"),
        ({"warmup_steps": 10, "per_phase": True}, "warmup_steps is 10, but phase 'second' has only 10 steps"),
        ({"rewarm_steps": 10}, "rewarm_steps is 10, but phase 'second' has only 10 steps"),
    ],
)
def test_a_rise_longer_than_its_phase_is_refused(options: dict[str, Any], says: str) -> None:
    phases = {"first": 15, "second": 10, "third": 12}
    with pytest.raises(ConfigError, match=says):
        WarmupStableDecay(**options).check_fits(phases)
    (key, least), *others = options.items()
    WarmupStableDecay(**{key: least - 1}, **dict(others)).check_fits(phases)


def logged_rates(folder: Path) -> dict[int, float]:
    """Step to the learning rate that it was taken with, over all starts of the run."""
    rates: dict[int, float] = {}
    for path in sorted((folder / "csv").glob("version_*/metrics.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                if rate := next((value for key, value in row.items() if key.startswith("lr-") and value), None):
                    rates[int(row["step"])] = float(rate)
    return rates


def test_a_run_takes_the_rates_of_its_phases_and_a_longer_one_those_of_its_own(fit: Any, tmp_path: Path) -> None:
    two = {"warmup_steps": 2, "decay_share": 0.4, "shape": "cosine", "per_phase": True}
    schedule = WarmupStableDecay(**two)  # type: ignore[arg-type]
    phased: dict[str, Any] = {"model__lr_schedule": two}
    assert fit("run", *signal_at(12), **phased)[0] == 128 + 15
    longer = {"model__phases__superposition__init_args__share": 0.25, "trainer__max_steps": 40}
    code, said = fit("run", "--ckpt_path", "last", **phased, **longer)
    assert code == 0 and "40 steps instead of 20: the learning rate had not begun to decay" in said, said
    rates = logged_rates(tmp_path / "run")
    assert rates == pytest.approx({step: 3e-3 * schedule.factor(step, 40, [10]) for step in range(40)})


def test_a_branch_at_the_switch_is_warmed_up_again(fit: Any, tmp_path: Path, tiny_run: Path) -> None:
    switch = str(tiny_run / "checkpoints" / "switch-recovery-step=10.ckpt")
    assert fit("branch", "--ckpt_path", switch, "--model.lr_schedule.rewarm_steps", "4")[0] == 0
    schedule = WarmupStableDecay(warmup_steps=2, decay_share=0.2, rewarm_steps=4)
    expected = {step: 3e-3 * schedule.factor(step, 20, [10]) for step in range(10, 20)}
    assert logged_rates(tmp_path / "branch") == pytest.approx(expected) and expected[10] == pytest.approx(3e-3 / 5)


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    model[0].weight.requires_grad_(True)
    decay, rest = decay_groups(model.named_parameters())
    assert [p.shape for p in decay["params"]] == [(4, 3)] and "weight_decay" not in decay
    assert [p.shape for p in rest["params"]] == [(4,), (4,), (4,)] and rest["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor", "NAdam"])
def test_any_torch_optimizer_takes_the_groups(name: str) -> None:
    model = torch.nn.Linear(3, 4)
    optimizer = getattr(torch.optim, name)(decay_groups(model.named_parameters()), lr=0.01, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
