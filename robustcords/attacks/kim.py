"""FGSM from a random start, shortened to where it first fools the network (Kim et al.)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustcords.attacks.fgsm import FGSM
from robustcords.engine.contracts import title
from robustcords.engine.modes import Model
from robustcords.errors import UserError
from robustcords.losses.objective import Objective
from robustcords.rng import Noise


class Kim(FGSM):
    """FGSM-RS, shortened to the first misclassified of some points along the perturbation (Kim et al. 2021, Alg. 1).

    With ``p`` the perturbation of FGSM-RS and c ``checkpoints``, an example is ``x + (k / c) p`` for the first k = 1 ..
    c - 1 at which it is misclassified, and ``x + p`` if there is none. Misclassified clean images are unchanged. Each k
    is one more forward pass in eval mode, of the examples that are still classified correctly.
    https://arxiv.org/abs/2010.01799

    Example:
        >>> method = AdversarialTraining(SAT(), Kim(threat, checkpoints=3))
    """

    class Config(FGSM.Config):
        """Options of Kim et al.'s inner interval, in addition to those of FGSM.

        Attributes:
            checkpoints: number of parts that the step is divided into (c in the paper), for c - 1 more forward passes.
                With 1 it is FGSM-RS, except for examples that are already misclassified.
            judged_at: where it is decided that an example is already misclassified, and stays unchanged: ``"image"``,
                which takes one more forward pass, or the random ``"start"``, whose logits the gradient needs anyway, as
                in the authors' script.
        """

        name: str = "kim"
        checkpoints: Annotated[int, Field(ge=1, le=100)] = 3
        judged_at: Literal["image", "start"] = "image"

    config: Kim.Config

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the adversarial images.

        Raises:
            UserError: the objective does not know the labels.
        """
        y, at_start = objective.labels, list[Tensor]()
        if y is None:
            raise UserError(f"attack {title(self)} asks what is classified correctly: give Objective its labels")

        def watched(logits: Tensor) -> Tensor:
            at_start.append(logits.argmax(dim=1) == y)
            return objective.value(logits)

        end = self.threat.project(super().search(model, x, replace(objective, value=watched), noise), x)
        correct = at_start[0] if self.config.judged_at == "start" else _correct(model, x, y)
        x_adv = torch.where(correct.view(-1, 1, 1, 1), end, x)
        rows = correct.nonzero().flatten()
        for k in range(1, self.config.checkpoints):
            if len(rows) == 0:
                break
            point = torch.lerp(x[rows], end[rows], k / self.config.checkpoints)
            correct = _correct(model, point, y[rows])
            x_adv[rows[~correct]] = point[~correct]
            rows = rows[correct]
        return x_adv


def _correct(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Returns which images (B, C, H, W) the model classifies correctly, (B,) bool."""
    with torch.no_grad():
        return model(x).argmax(dim=1) == y
