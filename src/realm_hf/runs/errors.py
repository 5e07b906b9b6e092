"""What can be wrong with a run directory."""

__all__ = ["RunDirectoryError", "RunLocked", "RunTakenOver"]


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used as asked; the message says why and what to do."""


class RunLocked(RunDirectoryError):  # noqa: N818 - it is the state that is named
    """Another trainer holds the run directory."""


class RunTakenOver(RunDirectoryError):  # noqa: N818 - it is the state that is named
    """Another trainer has begun a later term: this one must end."""
