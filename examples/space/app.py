"""A Space that answers from a published model, or from one in the folder `model/` beside this file.

    MODEL=user/realm-qa python app.py

`page.py` is `examples/app.py`; copy both. Visitors may change the passages: each has a knowledge of his own.
"""

import os
import sys
from pathlib import Path

import page

from realm_hf import RealmForOpenQA, RealmRetriever

if __name__ == "__main__":
    folder = Path(__file__).resolve().parent / "model"
    name = os.environ.get("MODEL") or (str(folder) if folder.is_dir() else "")
    if not name:
        sys.exit(
            f"No model: set the variable MODEL to its name on the Hub, or put what RUN/model holds into {folder}."
        )
    if "SPACE_ID" in os.environ:  # a Space's proxy comes from outside of the container
        page.ADDRESS = "0.0.0.0"  # noqa: S104
    model, retriever = RealmForOpenQA.from_pretrained(name), RealmRetriever.from_pretrained(name)
    questions = [line for line in os.environ.get("QUESTIONS", "").split("|") if line]
    page.launch(page.build_page(model, retriever, questions), int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
