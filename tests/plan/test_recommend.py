"""The advice: what is published is read off, what lies between is between, what lies outside is said to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tst_lightning.plan.recommend import FARTHEST, INDISTINCT, data_factor, least_data, recommend
from tst_lightning.published import Cell, load_grids, load_runs

SIZES = st.floats(1e5, 1e12)
LENGTHS = st.floats(1e5, 1e14)


@pytest.mark.parametrize("grid", [g for g in load_grids() if g.weighting == "uniform"], ids=lambda g: g.name)
def test_at_a_grid_the_grid_is_read_off(grid) -> None:
    advice = recommend(grid.parameters, grid.positions)
    assert advice.basis == "published" and set(advice.outside.values()) == {1.0}
    assert advice.expected_difference == pytest.approx(grid.differences[advice.cell])
    assert advice.surface == pytest.approx({cell: grid.differences[cell] for cell in advice.surface})
    # The grid's best, or one that can't be told from it and reads less.
    assert grid.losses[advice.cell] <= min(grid.losses.values()) + INDISTINCT
    assert data_factor(advice.cell) <= data_factor(grid.best)


def test_between_grids_a_difference_is_between_theirs() -> None:
    short, long, large = (g for g in load_grids() if g.weighting == "uniform")
    advice = recommend((short.parameters * large.parameters) ** 0.5, short.positions)
    assert advice.basis == "interpolated"
    for cell, value in advice.surface.items():
        assert value == pytest.approx((short.differences[cell] + large.differences[cell]) / 2, abs=1e-4)
    advice = recommend(short.parameters, (short.positions * long.positions) ** 0.5)
    for cell, value in advice.surface.items():
        assert value == pytest.approx((short.differences[cell] + long.differences[cell]) / 2, abs=1e-4)


def test_the_published_run_of_3b_is_read_off() -> None:
    advice = recommend(3338e6, 41.9e9)
    assert advice.cell == Cell(6, 0.3) and advice.basis == "published"
    assert advice.expected_difference == pytest.approx(2.676 - 2.808)


def test_between_600m_and_3b_a_difference_is_between_theirs() -> None:
    advice = recommend(1.5e9, 41.9e9)
    assert advice.cell == Cell(6, 0.3) and advice.basis == "interpolated"
    assert -0.132 < advice.expected_difference < load_grids()[2].differences[Cell(6, 0.3)]


def test_mixtures_of_experts_have_one_published_run_and_no_difference() -> None:
    advice = recommend(10.3e9, 420e9, mixture_of_experts=True)
    assert (advice.cell, advice.weighting) == (Cell(16, 0.25), "power_law")
    assert advice.expected_difference is None and advice.nearest_difference is None and advice.basis is None
    hours = {r.method: r.device_hours for r in load_runs() if r.model.startswith("moe")}
    assert f"{hours['tst']:,.0f} and {hours['baseline']:,.0f}" in advice.reasons[0]
    assert f"{hours['baseline'] / hours['tst']:.1f} times" in advice.reasons[0]


def test_far_outside_nothing_is_expected_and_it_says_how_far() -> None:
    advice = recommend(0.64e6, 2e6)
    assert advice.expected_difference is None and advice.nearest_difference < 0
    assert advice.outside["parameters"] == pytest.approx(267.2 / 0.64, rel=0.02)
    assert "419 times outside" in advice.reasons[0] and "no difference is expected" in advice.reasons[1]


@given(SIZES, LENGTHS, st.booleans())
def test_whatever_the_case_distance_and_expectation_agree(parameters: float, positions: float, moe: bool) -> None:
    advice = recommend(parameters, positions, moe)
    assert advice.superposition == "full" and advice.cell is not None
    assert all(factor >= 1 for factor in advice.outside.values())
    far = max(advice.outside.values())
    if moe or far > FARTHEST:
        assert advice.expected_difference is None
    if far > FARTHEST:
        assert "no difference is expected" in " ".join(advice.reasons)
    elif far > 1.11:  # said somewhere, with its factor
        assert "outside" in " ".join(advice.reasons) or "away" in " ".join(advice.reasons)
    if advice.expected_difference is not None:
        assert -0.14 < advice.expected_difference < 0
        assert (advice.basis == "extrapolated") == (far > 1.1) or far < 1.11


@given(st.floats(650e6, 12e9), LENGTHS)
def test_above_the_grids_nothing_is_expected_at_another_length(parameters: float, positions: float) -> None:
    advice = recommend(parameters, positions)
    if not 41.94e9 / 1.1 < positions < 41.94e9 * 1.1:
        assert advice.expected_difference is None
        assert "positions from that run" in advice.reasons[1] and "shrank the best gain by 37%" in advice.reasons[1]


@given(SIZES, LENGTHS, st.floats(0.1, 20))
def test_advice_under_a_limit_of_data_keeps_to_it(parameters: float, positions: float, plenty: float) -> None:
    free = recommend(parameters, positions)
    advice = recommend(parameters, positions, unique_tokens=plenty * positions)
    assert (advice.superposition == "none") == (plenty < 1)
    if advice.superposition == "full":
        assert data_factor(advice.cell) <= plenty * (1 + 1e-9)
        if advice.cell != free.cell:
            assert advice.surface[advice.cell] <= advice.surface[least_data(advice.surface)] / 2 + INDISTINCT
            assert "of the cells of the grids" in " ".join(advice.reasons)
    else:
        assert advice.cell is None and advice.weighting is None and advice.expected_difference is None
        assert data_factor(free.cell) > plenty


@pytest.mark.parametrize(
    ("plenty", "superposition"), [(9.0, "full"), (1.4, "full"), (1.1, "output_only"), (0.7, "none")]
)
def test_less_data_asks_for_less_superposition(plenty: float, superposition: str) -> None:
    advice = recommend(267.2e6, 41.9e9, unique_tokens=plenty * 41.9e9)
    assert advice.superposition == superposition
    if plenty < 2:
        assert ("OutputOnlyPhase trains it" in advice.reasons[-1]) == (superposition == "output_only")
        assert f"would read the data {data_factor(Cell(7, 0.2)) / plenty:.2f} times" in advice.reasons[-1]


def test_a_small_mixture_is_told_how_far_away_the_published_one_is() -> None:
    advice = recommend(0.56e6, 1e6, mixture_of_experts=True)
    assert "times away in parameters" in advice.reasons[1] and "no difference is expected" in advice.reasons[2]


def test_a_mixture_short_of_data_is_given_a_cell_of_the_grids() -> None:
    advice = recommend(10.3e9, 1e12, mixture_of_experts=True, unique_tokens=2.1e12)
    assert advice.superposition == "full" and data_factor(advice.cell) <= 2.1
    assert advice.expected_difference is None and "dense models" in " ".join(advice.reasons)


def test_what_is_said_of_power_law_weights_is_in_the_grids() -> None:
    uniform, power_law = (g for g in load_grids() if g.name.startswith("600M"))
    reason = next(r for r in recommend(10.3e9, 420e9, mixture_of_experts=True).reasons if r.startswith("Power-law"))
    differences = [
        power_law.losses[Cell(s, r)] - uniform.losses[Cell(s, r)] for s in range(8, 14) for r in (0.1, 0.2, 0.3)
    ]
    assert min(differences) < 0 < max(differences)  # either way
    assert f"at most {max(map(abs, differences)):.3f} nats up to r = 0.3, either way" in reason
