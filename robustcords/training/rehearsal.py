"""A dry run of a model's passes, which also chooses their memory format, before training.

Convolutions compute in channels_last, but code may not: ``x.view(len(x), -1)`` behind a convolution, as in any LeNet,
fails there. What works is found by running the passes of training and evaluation once, and taking the one that does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcords.data.images import Images
from robustcords.engine import contracts
from robustcords.engine.convolution import sound_convolutions
from robustcords.engine.inference import Autocast, Inference
from robustcords.engine.memory_format import MEMORY_FORMATS, Layout, lay_out
from robustcords.engine.modes import buffers_kept, evaluation_mode, modes_kept
from robustcords.errors import UserError
from robustcords.models.base import name_of, reason
from robustcords.runtime import collectives
from robustcords.storage.state_check import refuse_unsaved

log = logging.getLogger(__name__)

_ALONE = (
    " (where one image is too few, as for BatchNorm: raise train.batch_size, or lower train.accumulation or the number "
    "of processes, over which a batch is divided)"
)


@dataclass(frozen=True)
class Rehearsal:
    """Runs a model as it will be run, and leaves it as it was.

    Attributes:
        images: some of what it will see.
        device: where it will run.
        autocast: makes the precision that training runs in.
        updates: sizes of the micro-batches that it is trained on; none where it is not trained.
    """

    images: Images
    device: torch.device
    autocast: Autocast = nullcontext
    updates: Sequence[int] = ()

    def settle(self, model: nn.Module, wanted: str) -> Layout:
        """Returns the layout that the model runs in, having moved it to the device and laid it out.

        All processes take the same, and the same recipe takes the same again.

        Args:
            model: images in [0, 1] to logits.
            wanted: ``"auto"`` is channels_last where the model runs in it, else contiguous.

        Raises:
            UserError: the model does not run.
        """
        if wanted == "contiguous":
            return self._settled(model, "contiguous")
        try:
            return self._settled(model, "channels_last")
        except UserError as error:
            if wanted != "auto":
                hint = 'train.memory_format = "auto" takes a layout that it runs in'
                raise UserError(f"{error} (with train.memory_format = {wanted!r}; {hint})") from error
            cause = str(error)
        layout = self._settled(model, "contiguous")
        if collectives.is_main():
            log.warning('using train.memory_format = "%s", because in channels_last %s', layout, cause)
        return layout

    def _settled(self, model: nn.Module, layout: Layout) -> Layout:
        lay_out(model, self.device, layout)
        collectives.gather_objects(lambda: self._run(model, layout))
        return layout

    def _run(self, model: nn.Module, layout: Layout) -> None:
        """Passes images through the model, forward and backward, as evaluation and training do.

        Raises:
            UserError: that fails, does not give logits or gradients, or the model's state could not be saved.
        """
        refuse_unsaved(name_of(model), model)
        devices = [self.device] if self.device.type == "cuda" else []
        draws = torch.random.fork_rng(devices=devices)
        with modes_kept(model), buffers_kept(model), draws, sound_convolutions():
            network = Inference(model, self.autocast, replay=False)
            with evaluation_mode(model), network.folded():
                # Evaluation gives contiguous images to either model, attacks in training and selection its own layout.
                self._pass(network, 2, "contiguous", "evaluated")
                if layout != "contiguous":
                    self._pass(network, 2, layout, "evaluated")
            model.train()
            for size in self.updates:
                with self.autocast():
                    self._pass(model, size, layout, "trained")

    def _pass(self, model: nn.Module, size: int, layout: str, what: str) -> None:
        x, _ = self.images.first(size, self.device)
        x = x.contiguous(memory_format=MEMORY_FORMATS[layout])
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        wanted = trained if what == "trained" else [x.requires_grad_()]
        gradients: Sequence[Tensor | None] = []
        try:
            with torch.enable_grad():
                logits: Any = model(x)
                total = logits.float().sum() if isinstance(logits, Tensor) else None
            if total is not None and total.requires_grad and wanted:
                gradients = torch.autograd.grad(total, wanted, allow_unused=True)
        except Exception as error:
            shape = f"{size} image{'s' if size != 1 else ''} of {' x '.join(map(str, x.shape[1:]))}"
            hint = _ALONE if what == "trained" and size == 1 else ""
            raise UserError(f"{name_of(model)} cannot be {what} on {shape}: {reason(error)}{hint}") from error
        contracts.logits(name_of(model), logits, size, len(self.images.classes))
        if what == "evaluated" and self.updates and (not gradients or gradients[0] is None):
            raise UserError(
                f"{name_of(model)}: no gradient reaches the images, and attacks need one; is there no_grad, detach or "
                "argmax in its forward?"
            )
        if any(gradient is not None and gradient.layout != torch.strided for gradient in gradients):
            raise UserError(f"{name_of(model)} has sparse gradients; build nn.Embedding with sparse=False")
