"""GLISTER of CORDS."""

from __future__ import annotations

import math
from functools import partial
from inspect import signature
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.config.schema import NotNegative
from robustcords.selection._cords import GLISTERStrategy
from robustcords.selection.base import Granularity
from robustcords.selection.cords.strategy import CordsStrategy, UpstreamConfig
from robustcords.selection.gradients.groups import batches_of, labels_of
from robustcords.selection.solvers.greedy import Greedy
from robustcords.selection.strategies.adv_glister import AdvGLISTERStrategy


class GLISTER(CordsStrategy):
    """CORDS' ``GLISTERStrategy`` on clean images (Killamsetty et al. 2021).

    The defaults of its options are what CORDS' pipeline hands over with its newest configuration for CIFAR-10
    (``configs/SL/config_glister_cifar10.py`` of decile-team/cords): the bias's gradients of all examples at once,
    Stochastic, train mode. CORDS has no per-gradient form, and cannot finish where a class is missing from a split, the
    validation split is smaller than a batch (per_batch), Stochastic comes near the whole of a group, or BatchNorm meets
    a batch of one value a channel in train mode: `AdvGLISTERStrategy` serves there, in eval mode.
    """

    class Config(UpstreamConfig):
        """Options of GLISTER.

        Attributes:
            granularity: as for every selector; ``full`` is Supervised in CORDS.
            eta: step on the *sum* of the chosen gradients. In CORDS' pipeline it is the optimizer's initial learning
                rate, 0.05 (0.01 in older configurations); here it does not follow ``optimizer.lr``.
            greedy: how examples are picked: ``"Stochastic"``, each time the best of a random sample; ``"Naive"``, each
                time the best of all; ``"RGreedy"``, in ``r`` rounds.
            r: number of rounds of RGreedy; reduced for a group with a smaller budget, for which CORDS would never
                return.
            linear_layer: use the gradients of the last layer's weight and bias; otherwise those of its bias alone.
        """

        name: str = "glister"
        granularity: Granularity = "full"
        eta: NotNegative = 0.05
        greedy: Greedy = "Stochastic"
        r: Annotated[int, Field(ge=1)] = 15
        linear_layer: bool = False

    strategy = GLISTERStrategy
    ours = staticmethod(partial(AdvGLISTERStrategy, normalise=False))
    parameters = tuple(signature(GLISTERStrategy).parameters)
    requires = frozenset({VALIDATION_IMAGES})

    def upstream(self, model: nn.Module, budget: int) -> Any | None:
        """Returns CORDS' GLISTER, or None."""
        return super().upstream(model, budget) if self._finishes(budget) else None

    def _finishes(self, budget: int) -> bool:
        """Returns whether CORDS has the form, and comes to an end in each of its groups."""
        train, validation = self.context.train_loader, self.context.val_loader
        assert validation is not None
        batches = batches_of(train)
        size = sum(map(len, batches))
        groups = [(size, budget)]  # candidates, and how many of them
        if self.config.granularity == "per_gradient":
            return False
        if self.config.granularity == "per_batch":
            groups = [(len(batches), math.ceil(budget / len(batches[0])))]
            if len(labels_of(validation)) < len(batches_of(validation)[0]) or validation.batch_size is None:
                return False
        elif self.config.granularity == "per_class":
            count = self.context.num_classes
            members = labels_of(train).bincount(minlength=count).tolist()
            if not all(members) or not labels_of(validation).bincount(minlength=count).all():
                return False
            groups = [(held, math.ceil(budget * held / size)) for held in members]
        # Stochastic's last sample can be no larger than what is left to draw it from.
        samples = [(int(held / share * math.log(100)), held - share + 1) for held, share in groups]
        return self.config.greedy != "Stochastic" or all(sample <= left for sample, left in samples)
