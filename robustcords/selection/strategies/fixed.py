"""A subset read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from robustcords.errors import UserError, listed
from robustcords.runtime import collectives
from robustcords.selection.base import PlainStrategy, SelectionContext, StrategyConfig
from robustcords.selection.gradients.groups import check_budget, rows_of
from robustcords.storage.selections import read_selection


class FixedSubset(PlainStrategy):
    """A fixed subset from a file, with the file's weights. The model is not used.

    The file is from ``robustcords select``, a run's ``selections/``, or in the same format. It identifies examples by
    their numbers in the full training set, which are translated to rows of the training split. Unlike other strategies
    it keeps its weights if it has all examples.
    """

    class Config(StrategyConfig):
        """Options of fixed subsets.

        Attributes:
            file: path of an .npz file with ``indices`` (k,), integers in the numbering of the full training set (before
                the validation split), and ``weights`` (k,), floating-point numbers >= 0. Every index must be in the
                training split, so ``seed`` and ``data.validation_fraction`` must be those the file was written with.
                Pickled objects are refused.
        """

        name: str = "fixed"
        file: Annotated[str, Field(min_length=1)]

        @model_validator(mode="before")
        @classmethod
        def _from_the_first_epoch(cls, values: Any) -> Any:
            if not isinstance(values, dict):
                return values
            if values.get("select_first", True) is not True:
                raise ValueError("a fixed subset is trained on from the first epoch: leave select_first out")
            return {**values, "select_first": True}

    uses_model = False

    @classmethod
    def check(cls, config: Any, context: SelectionContext) -> None:
        """Reads the file once before training.

        Raises:
            UserError: as `select`.
        """
        size = len(rows_of(context.train_loader))
        cls.from_context(config, context).select(config.budget_of(size), None)

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns the file's rows of the training loader's data set, in the file's order, and their weights.

        Raises:
            UserError: there is no such file, it holds something else, it names examples that are not in the training
                split, or it does not hold ``budget`` of them.
        """
        del model_params
        rows = rows_of(self.context.train_loader)
        check_budget(budget, len(rows))
        # The main process reads it for all: with several machines, the others need no copy of the file.
        indices, weights = collectives.decide_together(self._read)
        row_of = dict(zip(self.context.numbers[rows].tolist(), rows, strict=True))
        wanted = indices.tolist()
        missing = [number for number in wanted if number not in row_of]
        if missing:
            raise UserError(
                f"{self._blamed}: of its {len(wanted)} examples {len(missing)} are not in the training split "
                f"({listed(map(str, missing))}): held out for validation (data.validation_fraction, seed) or "
                "beyond the set"
            )
        if len(wanted) != budget:
            raise UserError(
                f"{self._blamed}: holds {len(wanted)} examples, and selector.fraction = {self.config.fraction:g} of "
                f"the {len(rows)} in the training split is {budget}; set selector.fraction = "
                f"{_fraction(len(wanted), len(rows))}"
            )
        return [row_of[number] for number in wanted], torch.from_numpy(weights)

    @property
    def _blamed(self) -> str:
        return f'selector.file = "{self.config.file}"'

    def _read(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        path = Path(self.config.file)
        if not path.is_file():
            raise UserError(f"{self._blamed}: there is no such file; `robustcords select` writes one")
        return read_selection(path, self._blamed)


def _fraction(count: int, size: int) -> str:
    """Returns the shortest decimal fraction of ``size`` that is ``count`` examples."""
    digits = next(digits for digits in range(1, 18) if round(float(f"{count / size:.{digits}g}") * size) == count)
    return f"{count / size:.{digits}g}"
