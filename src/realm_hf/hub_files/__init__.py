"""Files on the Hub: read by name, tried in a child process, and published in one commit."""

from .committing import Push
from .limited import run_limited
from .reading import HubArtefactError, RepoType, Source, check_name, check_room, human_bytes, open_source
from .refusing import refusing

__all__ = [
    "HubArtefactError",
    "Push",
    "RepoType",
    "Source",
    "check_name",
    "check_room",
    "human_bytes",
    "open_source",
    "refusing",
    "run_limited",
]
