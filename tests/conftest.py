"""What all tests share."""

import pytest
import torch
from workers import forked

torch.backends.cudnn.allow_tf32 = False  # by default a GPU's convolutions round what they multiply to three digits


@pytest.fixture
def forked_workers(monkeypatch):
    """Workers of the kit are forked from a process that has imported everything, instead of importing it each."""
    monkeypatch.setattr("l2l_kit.making.work.get_context", forked)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the times that tests recorded: they depend on the machine, so nothing asserts them."""
    for report in terminalreporter.getreports("passed"):
        for _, text in report.user_properties:
            terminalreporter.write_line(str(text))
