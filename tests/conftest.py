"""Shared by all tests."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tests' tensors are tiny: more threads only wait for each other."""
    torch.set_num_threads(1)
