"""Adversarial training on small, periodically re-selected subsets."""

import os

# Asks the kernel for huge pages for large tensors. torch reads this once, when it first allocates one; a user's own
# setting stands. Where the kernel has none to give, nothing changes.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.2.0.dev0"
