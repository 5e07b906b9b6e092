"""The folder of the Space, alone in another place, serves its page; without a model it says what is missing."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from tiny_answerers import tiny_answerer

SPACE = Path(__file__).resolve().parents[1] / "examples" / "space"

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="the Space needs gradio: pip install 'realm-hf[app]'"
)


@pytest.fixture
def space(tmp_path) -> Path:
    """The folder as an upload has it: links followed."""
    return Path(shutil.copytree(SPACE, tmp_path / "space", symlinks=False))


def environment(port: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MODEL", "SPACE_ID", "QUESTIONS")}
    return {**kept, "GRADIO_SERVER_PORT": str(port), "QUESTIONS": "Where does place 3 lie?|Who?"}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_the_settings_name_a_file_of_the_folder_and_the_requirements_the_package(space):
    settings = yaml.safe_load((space / "README.md").read_text().split("---\n")[1])
    assert settings["sdk"] == "gradio" and (space / settings["app_file"]).is_file()
    wanted = [line for line in (space / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert wanted == ["realm-hf[app]"]
    assert (space / "page.py").read_text() == (SPACE.parent / "app.py").read_text() and not (
        space / "page.py"
    ).is_symlink()


@needs_gradio
@pytest.mark.multiprocess
def test_without_a_model_it_ends_with_a_line_that_says_what_to_set(space):
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=space, env=environment(0), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("No model: set the variable MODEL")


@needs_gradio
@pytest.mark.multiprocess
def test_with_a_model_in_the_folder_it_serves_the_page(space, tiny_passages):
    answerer = tiny_answerer(tiny_passages)
    for part in (answerer.model, answerer.retriever):
        part.save_pretrained(space / "model")
    answerer.retriever.tokenizer.save_pretrained(space / "model")
    port = free_port()
    with (space / "said").open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env=environment(port), stdout=said, stderr=said
        )
        try:
            served = wait_for(f"http://127.0.0.1:{port}/", server)
        finally:
            server.terminate()
            server.wait(timeout=30)
    assert "change the knowledge" in served, (space / "said").read_text()


def wait_for(address: str, server: subprocess.Popen) -> str:
    """The page, as soon as it is served; empty if the server ends before."""
    deadline = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.5)
    return ""
