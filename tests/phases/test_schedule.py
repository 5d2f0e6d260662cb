import pytest
from hypothesis import given
from hypothesis import strategies as st

from tst_lightning.errors import ConfigError
from tst_lightning.phases import NextTokenPhase, PhaseSchedule, SuperpositionPhase


def two(share: float, steps: int) -> PhaseSchedule:
    return PhaseSchedule({"a": SuperpositionPhase(4, share=share), "b": NextTokenPhase()}, steps)


def test_switch_at_the_floor_of_r_t() -> None:
    schedule = two(0.3, 25)  # 0.3 * 25 = 7.5: superposition takes steps 0 to 6
    assert [(entry.name, entry.first_step, entry.steps) for entry in schedule] == [("a", 0, 7), ("b", 7, 18)]
    assert [schedule.at(step).name for step in (0, 6, 7, 8, 24, 25, 99)] == ["a", "a", "b", "b", "b", "b", "b"]
    assert schedule.switches == [7]


def test_binary_fractions_lose_no_step() -> None:
    assert two(0.29, 100).switches == [29]  # 0.29 * 100 is 28.999999999999996
    parts = {name: SuperpositionPhase(1, share=0.1) for name in "abcdefghij"}
    assert PhaseSchedule(parts, 1000).switches == list(range(100, 1000, 100))


def test_rounded_shares_lose_no_step() -> None:
    thirds = {name: SuperpositionPhase(1, share=0.3333333) for name in "abc"}
    assert sum(entry.steps for entry in PhaseSchedule(thirds, 1000)) == 1000


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_phases_tile_the_run(share: float, steps: int) -> None:
    entries = list(two(share, steps))
    assert sum(entry.steps for entry in entries) == steps
    assert [entry.first_step for entry in entries] == [0, *(e.first_step + e.steps for e in entries[:-1])]
    assert all(entry.steps > 0 for entry in entries)


def test_phases_without_steps_are_dropped() -> None:
    assert [entry.name for entry in two(0.0, 10)] == ["b"]
    assert [entry.name for entry in two(1.0, 10)] == ["a"]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5, 0.6), "sum to 1.1, not 1 .a 0.5, b 0.6."),
        ((0.5, 0.4), "sum to 0.9, not 1"),
        ((None, None), "only one phase can take the rest"),
    ],
)
def test_bad_shares_are_refused(shares: tuple[float | None, float | None], message: str) -> None:
    a, b = shares
    with pytest.raises(ConfigError, match=message):
        PhaseSchedule({"a": SuperpositionPhase(4, share=a), "b": NextTokenPhase(share=b)}, 10)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_share_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=f"{share}; it must lie between 0 and 1"):
        NextTokenPhase(share=share)


def test_no_phases_are_refused() -> None:
    with pytest.raises(ConfigError, match="model.phases is empty"):
        PhaseSchedule({}, 10)
