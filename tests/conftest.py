"""What all tests share."""

import pytest
import torch

torch.backends.cudnn.allow_tf32 = False  # by default a GPU's convolutions round what they multiply to three digits


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the times that tests recorded: they depend on the machine, so nothing asserts them."""
    for report in terminalreporter.getreports("passed"):
        for _, text in report.user_properties:
            terminalreporter.write_line(str(text))
