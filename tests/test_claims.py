"""Verdicts on synthetic curves where the right answer is known."""

import pytest
import torch

from l2l_kit.evaluation import Curves, beats_baselines


def curves(learned_final: float, crossing: bool = False) -> Curves:
    noise = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    steps = torch.linspace(0, 1, 41)
    baseline = noise * (10 - 9 * steps)
    learned = noise * (10 - (10 - learned_final) * steps)
    if crossing:
        learned[:, 25] = 100.0
    return Curves({"LSTM": learned, "Adam": baseline, "SGD": 2 * baseline}, {"name": "synthetic"}, 0)


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize(
    ("made", "holds"), [(curves(0.5), True), (curves(2.0), False), (curves(0.5, crossing=True), False)]
)
def test_verdict(made: Curves, holds: bool, statistic: str) -> None:
    claim = beats_baselines(made, "figure 0", "it wins", statistic=statistic, from_step=20)
    assert claim.holds is holds
    assert "Adam" in claim.measured
    assert ("claim holds" in str(claim)) is holds


def test_a_difference_within_the_noise_does_not_count() -> None:
    torch.manual_seed(0)
    made = Curves({"LSTM": torch.rand(30, 22), "Adam": torch.rand(30, 22) + 0.02}, {}, 0)
    assert not beats_baselines(made, "figure 0", "it wins").holds


def test_there_must_be_something_to_compare() -> None:
    with pytest.raises(ValueError, match="needs baselines"):
        beats_baselines(Curves({"LSTM": torch.rand(3, 30)}, {}, 0), "figure 0", "it wins")
