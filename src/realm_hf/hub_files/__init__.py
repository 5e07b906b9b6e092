"""Files on the Hub: read by name, and published in one commit."""

from .committing import Push
from .reading import HubArtefactError, RepoType, Source, check_name, check_room, human_bytes, open_source

__all__ = ["HubArtefactError", "Push", "RepoType", "Source", "check_name", "check_room", "human_bytes", "open_source"]
