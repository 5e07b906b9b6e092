"""The child process that tries a stranger's tokenizer on texts. It is run by its path, never imported."""

from __future__ import annotations

import sys

from tokenizers import Tokenizer

TEXTS = (
    "",
    "The Eiffel Tower (330 m) stands in Paris; it was built in 1889.",
    "  naïve Ünïcödé — ﷺ ½ ﬁ Å  \t\n «quotes» and e-mail@example.org\u200b ",
    "日本語のテキスト、中文文本。 Ελληνικά, русский, العربية, हिन्दी, ไทย 🙂👩‍👩‍👧",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> ## ##s \x00\x7f\ufffd",
    "word " * 20_000,
    "é" * 20_000,
    "".join(chr(code) for code in range(32, 0x3000) if not 0xD800 <= code < 0xE000),
)
"""Plain prose, forms that normalization changes, scripts that are cut in other ways, marks, much of each."""


def main(path: str) -> None:
    """Read it and encode; more than 64 wordpieces for each byte are not what a tokenizer gives."""
    tokenizer = Tokenizer.from_file(path)
    for text in TEXTS:
        found = tokenizer.encode(text)
        if len(found.ids) > 64 * (len(text.encode()) + 64):
            raise SystemExit(f"it makes {len(found.ids)} wordpieces of {len(text)} characters")
        tokenizer.decode(found.ids)


if __name__ == "__main__":
    main(sys.argv[1])
