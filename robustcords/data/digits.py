"""The handwritten digits that ship with scikit-learn."""

from __future__ import annotations

import torch

from robustcords.data.base import DataSource, Splits
from robustcords.data.images import ImageSet
from robustcords.data.split import stratified_split
from robustcords.errors import UserError


class Digits(DataSource):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak 1998): 1797 grey 8 x 8 images of ten classes.

    The set has no split of its own; this one is fixed, whatever the run's seed is: 450 images, stratified by class, are
    the test set, the other 1347 the training set. Pixels are counts from 0 to 16, kept as ``round(count * 255 / 16)``.
    """

    def load(self) -> Splits:
        """Returns the decoded training and test sets."""
        if self.config.path is not None:
            raise UserError(
                "data.path: digits ships with scikit-learn and cannot be read from elsewhere; leave data.path out"
            )
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(bunch.target).long()
        classes = tuple(map(str, bunch.target_names))
        train, test = (
            ImageSet(images[rows], labels[rows], classes) for rows in stratified_split(labels, 450 / 1797, seed=0)
        )
        return Splits(train, test)
