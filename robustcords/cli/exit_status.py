"""How the program exits: one line for an error, and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from robustcords.cli.error_origin import outside_failure
from robustcords.errors import Interrupted, LostProcess, RunError, UserError, continuation, printable
from robustcords.runtime.launch import rank


@contextmanager
def ending(debug: Callable[[], bool]) -> Iterator[None]:
    """Is a block whose errors end the program; those that are a fault of this package are raised as they are.

    Exit status: 2 the input is at fault, 128 + signal if a signal stopped it, 75 if the time limit did, 1 else.

    Args:
        debug: returns whether the traceback of an error is shown too.
    """
    fail = partial(_fail, debug)
    try:
        yield
    except UserError as error:
        fail(*error.lines, status=2)
    except LostProcess as error:
        fail(f"{error}{continuation()}", status=1, speaks=error.speaks)
    except RunError as error:
        fail(str(error), status=1)
    except Interrupted as error:
        fail(f"{error}{continuation()}", status=error.status)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            fail(f"{str(error.filename)[:100]}...: {error.strerror}", status=2)
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
            # Of a package that writes files of its own, such as a tracker.
            fail(f"{error.filename or 'a file'}: cannot be written ({error.strerror})", status=1)
        if text := outside_failure(error):
            fail(text, status=2, speaks=True)  # it may have failed in this process alone
        raise


def _fail(debug: Callable[[], bool], *lines: str, status: int, speaks: bool | None = None) -> None:
    """Ends the program with one error or more; in processes that do not speak without a word."""
    if is_main() if speaks is None else speaks:
        if debug():
            traceback.print_exc()
        for line in lines:
            print(f"error: {printable(line)}", file=sys.stderr)
    sys.exit(status)


def is_main() -> bool:
    """Returns whether this process prints; the launcher says so before torch is imported."""
    return rank(os.environ) == 0
