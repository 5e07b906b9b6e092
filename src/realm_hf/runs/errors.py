"""What is wrong with a run directory."""

__all__ = ["RunDirectoryError"]


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used as asked; the message says why and what to do."""
