"""Typed parts of JSON files: one class writes, reads and validates each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustcords.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(gt=0)]


class Record(BaseModel):
    """A part of a JSON file. Unknown keys are kept, and written back after the known ones.

    Numbers that are not finite, which JSON lacks, are null.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @classmethod
    def from_json(cls, content: Any, path: Path, line: int | None = None) -> Self:
        """Returns the record of a file's JSON values.

        Args:
            content: the values.
            path: of the file, for the error.
            line: of the values; None for the whole file.

        Raises:
            UserError: a value is missing or wrong; says where.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(map(str, problem["loc"]))
            where = f"{path}:{line}" if line else str(path)
            what = problem["msg"].lower().removeprefix("value error, ")
            raise UserError(f"{where}: damaged: {f'{key}: ' if key else ''}{what}") from error

    def to_json(self) -> dict[str, Any]:
        """Returns the given or read values as JSON values, without defaults."""
        return {key: finite(value) for key, value in self.model_dump(exclude_unset=True).items()}


def finite(value: Any) -> Any:
    """Returns a copy of JSON values with None for every NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
