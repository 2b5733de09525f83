"""The states of a run's parts: whether a checkpoint can keep them, found out before one has to."""

from __future__ import annotations

from typing import Any

from robustcords.errors import Interrupted, RunError, UserError, kind_of, one_line
from robustcords.storage.checkpoint import as_kept


def refuse_unkeepable(source: str, part: Any) -> None:
    """Checks before training, and not at its first checkpoint, that a part's state can be kept and taken back.

    Args:
        source: what to call the part in a message.
        part: with ``state_dict`` and ``load_state_dict``; is given its own state.

    Raises:
        UserError: it writes one method of the two; its state is no dict, cannot be kept, or is not taken back.
    """
    refuse_half(source, type(part))
    give_back(source, part, state_of(source, part))


def refuse_half(source: str, kind: Any) -> None:
    """Checks that what a class keeps it takes back, and what it takes back is kept.

    Args:
        source: what to call it in a message.
        kind: a subclass of `robustcords.config.schema.Stateful`.

    Raises:
        UserError: it writes one method of the two.
    """
    if half := kind.half_written():
        raise UserError(f"{source}: {half}: a state that is kept takes both")


def state_of(source: str, part: Any) -> dict[str, Any]:
    """Returns a part's state as checkpoints give it back.

    Raises:
        UserError: it is no dict, or cannot be kept.
    """
    try:
        state = part.state_dict()
    except (UserError, RunError, Interrupted):
        raise
    except Exception as error:
        raise UserError(f"{source}: state_dict failed: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise UserError(f"{source}: state_dict returned {kind_of(state)}, not a dict")
    try:
        return dict(as_kept(state))
    except TypeError as error:
        raise UserError(
            f"{source}: state_dict: {error}; tensors, numbers, strings, None, lists and dicts can be kept"
        ) from error


def give_back(source: str, part: Any, state: dict[str, Any]) -> None:
    """Loads a copy of a state into a part, which may write over it.

    Args:
        source: what to call the part in a message.
        part: is given the state.
        state: as `state_of` returned it.

    Raises:
        UserError: the part fails.
    """
    try:
        part.load_state_dict(dict(as_kept(state)))
    except (UserError, RunError, Interrupted):
        raise
    except Exception as error:
        raise UserError(f"{source}: load_state_dict refuses what state_dict returned: {one_line(error)}") from error
