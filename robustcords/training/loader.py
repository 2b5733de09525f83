"""The batches of an epoch: order, share of each process, augmentation and noise."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from robustcords.data.augmentations.base import Augmentation
from robustcords.data.augmentations.check import check_augmentation
from robustcords.data.augmentations.mixing import Mixing
from robustcords.data.augmentations.none import NoAugmentation
from robustcords.data.images import Images
from robustcords.engine import contracts
from robustcords.engine.memory_format import MEMORY_FORMATS
from robustcords.errors import UserError
from robustcords.methods.base import Batch
from robustcords.rng import Noise, derive, generator
from robustcords.runtime import collectives
from robustcords.selection.selector import Subset, everything
from robustcords.training.shuffling import classes_in_a_batch, shuffled

_MIXED = 0.9  # share of a full shuffle's classes that a batch of a narrower one is to have


class BatchLoader:
    """Cuts epochs into batches, which the images give themselves, from memory or from wherever they are.

    Args:
        train: the training split; its rows' numbers in the full training set key all noise.
        batch_size: of the global batch: all processes and accumulation steps together.
        augmentation: of each batch's images; None leaves them as they are.
        seed: the run's seed.
        device: where batches are wanted.
        window: how many examples are shuffled with one another; see `robustcords.training.shuffling.shuffled`.

    Attributes:
        memory_format: the layout of batches, ``"channels_last"`` or ``"contiguous"``.
    """

    def __init__(
        self,
        train: Images,
        batch_size: int,
        augmentation: Augmentation | None = None,
        *,
        seed: int,
        device: torch.device,
        window: int | None = None,
    ) -> None:
        self.train, self.batch_size, self.window = train, batch_size, window
        self.augmentation = augmentation or NoAugmentation()
        self.seed, self.device = seed, device
        self.memory_format = "contiguous"
        check_augmentation(self.augmentation, train, device)
        self._taken = self.augmentation.takes(train)
        self._expected: deque[Tensor] = deque()
        self._ahead: Iterator[tuple[Tensor, Tensor]] = iter(())

    def order(self, epoch: int, subset: Subset) -> list[Tensor]:
        """Returns the epoch's global batches as positions in its subset, shuffled.

        Sizes differ by at most one: a small last batch would have noisy BatchNorm statistics.

        Args:
            epoch: from 0.
            subset: what it trains on.
        """
        rows = subset.indices
        order = shuffled(self.train.numbers[rows], self.window, generator(self.seed, "shuffle", epoch))
        return list(order.tensor_split(self.batches(len(rows))))

    def cautions(self) -> list[str]:
        """Returns what a user should know of the order before training, a sentence each: that it mixes little."""
        if self.window is None or self.window >= len(self.train):
            return []
        found, expected = classes_in_a_batch(self.train.labels, self.order(0, everything(len(self.train))))
        if found > _MIXED * expected:
            return []
        return [
            f"train.shuffle_window = {self.window}: a batch has images of {found:.3g} classes, and of "
            f"{expected:.3g} with a full shuffle: neighbours are of the same class; a larger window mixes them more"
        ]

    def batches(self, size: int) -> int:
        """Returns how many batches an epoch of so many examples has."""
        return math.ceil(size / self.batch_size)

    def read_ahead(self, batches: Sequence[Tensor], subset: Subset, epoch: int) -> None:
        """Says which batches `load` will be asked for next: images on disk are read before they are needed."""
        rows = [self._needed(positions, subset, epoch) for positions in batches]
        self._expected, self._ahead = deque(rows), self._taken.batches([part.tolist() for part in rows], self.device)

    def load(self, positions: Tensor, subset: Subset, epoch: int) -> Batch:
        """Returns this process's share of a global batch."""
        share = self._share(positions)
        rows = subset.indices[positions]
        numbers = self.train.numbers[rows[share]].to(self.device)
        if isinstance(self.augmentation, Mixing):
            x, y = self._mixed(self.augmentation, rows, share, epoch)
        else:
            x, y = self._augmented(rows[share], epoch)
        return Batch(
            x.contiguous(memory_format=MEMORY_FORMATS[self.memory_format]),
            y,
            subset.weights[positions[share]].to(self.device),
            Noise(derive(self.seed, "attack", epoch), numbers),
            subset.total(positions),
            self.augmentation.geometry(Noise(derive(self.seed, "augment", epoch), numbers)),
        )

    def _share(self, positions: Tensor) -> Tensor:
        """Returns which examples of a global batch are this process's."""
        return torch.arange(len(positions)).tensor_split(collectives.world_size())[collectives.rank()]

    def _needed(self, positions: Tensor, subset: Subset, epoch: int) -> Tensor:
        """Returns the rows that `load` reads."""
        rows, share = subset.indices[positions], self._share(positions)
        if isinstance(self.augmentation, Mixing):
            return rows[self._partners(self.augmentation, rows, share, epoch)[0]]
        return rows[share]

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images and their labels as they are, on the device: read ahead, where these were expected."""
        if self._expected and torch.equal(self._expected[0], rows):
            self._expected.popleft()
            return next(self._ahead)
        return self._taken.batch(rows, self.device)

    def _augmented(self, rows: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Returns some images and their labels, on the device."""
        x, y = self._read(rows)
        noise = Noise(derive(self.seed, "augment", epoch), self.train.numbers[rows].to(self.device))
        source = f"augmentation {contracts.title(self.augmentation)}"
        return contracts.numbers(
            source, self.augmentation(x, noise), torch.Size((len(x), *self.train.shape)), x.dtype
        ), y

    def _mixed(self, mixing: Mixing, rows: Tensor, share: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Returns this process's share of a global batch's images, mixed in pairs, and their labels (b, classes)."""
        needed, places, noise = self._partners(mixing, rows, share, epoch)
        x, y = self._augmented(rows[needed], epoch)
        first, second = places.to(self.device).split(len(share))
        return mixing.mixed((x[first], x[second]), (y[first], y[second]), len(self.train.classes), noise[share])

    def _partners(self, mixing: Mixing, rows: Tensor, share: Tensor, epoch: int) -> tuple[Tensor, Tensor, Noise]:
        """Returns the places in a global batch of this process's examples and their partners, and where these are."""
        noise = Noise(derive(self.seed, "mix", epoch), self.train.numbers[rows])
        partners = mixing.partners(noise)[share]
        # A partner may be in another process's share. Where it is in this one, it is loaded once.
        needed, places = torch.cat([share, partners]).unique(return_inverse=True)
        return needed, places, noise

    def micro_batches(self, size: int, accumulation: int) -> tuple[int, int]:
        """Returns how many examples the smallest and the largest micro-batch of a process have.

        Args:
            size: how many examples an epoch has.
            accumulation: micro-batches per step.
        """
        batches = self.batches(size)
        parts = collectives.world_size() * accumulation
        return size // batches // parts, math.ceil(math.ceil(size / batches) / parts)

    def check(self, size: int, accumulation: int) -> None:
        """Checks that every process has something to do in every accumulation step.

        Args:
            size: how many examples an epoch has.
            accumulation: micro-batches per step.

        Raises:
            UserError: a batch has fewer examples than processes times accumulation steps.
        """
        if self.micro_batches(size, accumulation)[0] < 1:
            smallest = size // self.batches(size)
            raise UserError(
                f"train.batch_size = {self.batch_size} gives batches of {smallest} of {size} examples, too few for "
                f"train.accumulation = {accumulation} times {collectives.world_size()} process(es)"
            )
