"""The local Hub, and clients of it."""

import pytest
from hub_server import HubServer


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub of the test module's own."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server
