"""One error for everything that a stranger's file makes a library do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from realm_hf.untrusted.checks import HubArtefactError

__all__ = ["refusing"]

_LONGEST_REASON = 300


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """
    Re-raise whatever the block raises over a file as a `HubArtefactError`.

    A library may raise anything over a file that it does not expect: `RecursionError`, `ZeroDivisionError`, errors of
    its own, and the panics of a Rust library, which are no `Exception`. What the machine is to blame for (a full disk,
    a missing right, no memory) and an interrupt come through as they are.

    Args:
        what (`str`): The file in words.
    """
    try:
        yield
    except HubArtefactError:
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        is_the_machines = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)
        if is_the_machines or not (is_panic or isinstance(error, Exception)):
            raise
        reason = str(error).strip()[:_LONGEST_REASON] or "no reason given"
        raise HubArtefactError(f"{what} cannot be loaded ({type(error).__name__}): {reason}") from error
