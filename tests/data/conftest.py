import numpy as np
import pytest

from bltjax.data import tokenizer
from bltjax.data.corpus import Documents

TEXT = (
    b"def area(width, height):\n    return width * height\n\n\n",
    "Die Fläche — größer als 12 €; naïve café, 日本語のテキスト.\n".encode(),
    b"\x00\xff\xfe binary \xed\xa0\x80 and \xf0\x9f\x98 cut short\n",
    b"x",
    b"    return width\n        return height * width  # the area, the width, the height\n" * 9,
)


@pytest.fixture(scope="session")
def texts() -> Documents:
    """Documents of many lengths, among them one byte, invalid UTF-8 and NUL."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, int(n), dtype=np.uint8).tobytes() for n in rng.integers(1, 90, 12)]
    return Documents.of([*TEXT, *noise])


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> tokenizer.Tokenizer:
    """A tokenizer with 24 merges, of the text of `texts`."""
    return tokenizer.train(Documents.of(TEXT), 280, tmp_path_factory.mktemp("bpe") / "tokenizer.json")
