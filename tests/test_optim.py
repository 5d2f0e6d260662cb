import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tst_lightning.errors import ConfigError
from tst_lightning.optim import WarmupStableDecay, decay_groups


def test_curve_by_hand() -> None:
    schedule = WarmupStableDecay(warmup_steps=3, decay_share=0.4, floor=0.0)
    factors = [schedule.factor(step, 10) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


@given(st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), st.integers(60, 500))
def test_never_leaves_its_bounds(warmup: int, decay: float, floor: float, total: int) -> None:
    schedule = WarmupStableDecay(warmup, decay, floor)
    for step in range(total):
        assert 0 < schedule.factor(step, total) <= 1


@pytest.mark.parametrize("bad", [{"warmup_steps": -1}, {"decay_share": 1.5}, {"floor": -0.1}])
def test_values_outside_their_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        WarmupStableDecay(**bad)  # type: ignore[arg-type]


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
