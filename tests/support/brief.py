"""Long attacks with few of their steps, for tests of what goes on around them."""

from __future__ import annotations

from typing import Any

import pytest


def shorten(patch: pytest.MonkeyPatch, queries: int = 200) -> None:
    """Gives AutoAttack's attacks, and the checks for masked gradients, a fraction of their steps and queries."""
    from pyautoattack import AutoAttack

    from robustcords.evaluation.sanity import probe

    build = AutoAttack.__init__

    def brief(self: Any, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **options)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 8
        self.apgd.n_iter_orig = self.apgd_targeted.n_iter_orig = 20  # those in l1, which come in three parts
        self.square.n_queries = queries

    patch.setattr(AutoAttack, "__init__", brief)
    for name, value in {"_PGD_STEPS": 10, "_RESTARTS": 2, "_UNBOUNDED_STEPS": 10, "_QUERIES": queries}.items():
        patch.setattr(probe, name, value)
