from __future__ import annotations

import os
import socket

import psutil
import pytest
import torch

from robustcords.errors import UserError
from robustcords.runtime.accelerator import start
from robustcords.runtime.watchdog import name_interface


def test_a_process_that_would_work_alone_beside_others_is_refused(monkeypatch: pytest.MonkeyPatch):
    """On GPUs Accelerate looks at LOCAL_RANK and takes a process that has none for the only one."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none")
    with pytest.raises(UserError, match="LOCAL_RANK"):
        start("fp32")


@pytest.mark.parametrize("own", [False, True])
def test_gloo_takes_the_interface_that_leads_to_the_main_process(own: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    if not own:
        del os.environ["GLOO_SOCKET_IFNAME"]
    name_interface()
    found = os.environ["GLOO_SOCKET_IFNAME"]
    addresses = {each.address for each in psutil.net_if_addrs().get(found, []) if each.family == socket.AF_INET}
    assert (found == "mine") if own else ("127.0.0.1" in addresses)
