"""Averages of the weights over training: EMA and SWA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from robustcords.training.config import AveragingConfig


class Averaging:
    """A model's averaged weights, kept alongside it.

    BatchNorm's statistics are averaged like weights, or copied, so no pass over the data is needed for them; buffers of
    whole numbers are copied, and masks, which have infinite entries.

    Args:
        model: the model in training, not wrapped; it is copied.
        config: how to average.
    """

    def __init__(self, model: nn.Module, config: AveragingConfig) -> None:
        self.config = config
        self._raw = model
        average = self._ema if config.kind == "ema" else get_swa_multi_avg_fn()
        averages = config.statistics == "averaged"  # otherwise torch copies all buffers
        with torch.no_grad():  # else copies of a scripted module's parameters would be results of an operation
            self._averaged = AveragedModel(model, multi_avg_fn=_copying_integers(average), use_buffers=averages)
        pairs = zip(self._averaged.module.buffers(), model.buffers(), strict=True)
        self._masks = [(ours, theirs) for ours, theirs in pairs if bool(theirs.isinf().any())]

    @property
    def model(self) -> nn.Module:
        """The model to evaluate: the averaged one once averaging has started, before that the one in training."""
        return self._averaged.module if int(self._averaged.n_averaged) else self._raw

    def update(self, progress: float) -> None:
        """Takes in the weights as they are; call it after every optimiser step.

        Args:
            progress: share of the run that is done, in [0, 1].
        """
        if progress >= self.config.start:
            self._averaged.update_parameters(self._raw)
            with torch.no_grad():
                for ours, theirs in self._masks:  # an average of infinities is NaN
                    ours.copy_(theirs)

    def _ema(self, averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        taken = int(self._averaged.n_averaged)  # as count, but on the CPU, so that no accelerator is waited for
        decay = min(self.config.decay, (1 + taken) / (10 + taken)) if self.config.warmup else self.config.decay
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averaged weights and buffers, and how many models are in them."""
        state: dict[str, Tensor] = self._averaged.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state_dict`."""
        self._averaged.load_state_dict(state)


def _copying_integers(average: Callable[..., None]) -> Callable[[Any, Any, Tensor | int], None]:
    """Returns an averaging function that copies tensors of whole numbers and truth values.

    torch's own would cut an average of equal integers down to the next lower one, and fails on truth values.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            average(averaged, current, count)
        else:
            for ours, theirs in zip(averaged, current, strict=True):
                ours.copy_(theirs)

    return update
