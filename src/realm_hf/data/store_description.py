"""What the description file of a passage or sentence store must say before the store is used."""

from pathlib import Path
from typing import Any

from realm_hf.storage.files import check_files, read_json


def read_description(path: Path, format_version: int, what: str, how: str) -> dict[str, Any]:
    """
    Read a store's description and compare the sizes of the files that it names.

    Args:
        path (`Path`): The description, in the store's directory.
        format_version (`int`): What this release reads.
        what (`str`): The store in words, e.g. `"sentences"`.
        how (`str`): How to get one, for messages.

    Raises:
        FileNotFoundError: If there is no store.
        ValueError: If the description is damaged or of another version, or a file is missing or cut.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {what} ({path.name} is missing): {how}")
    info = read_json(path)
    if info["format_version"] != format_version:
        raise ValueError(
            f"{path} has format_version {info['format_version']}, this release reads {format_version}: build it again"
        )
    check_files(path.parent, info["files"], verify=False)
    return info
