"""The text side of generation: where stop strings end it, and pieces that are whole characters.

In go raw bytes as they are drawn; out come the bytes that may be shown. `Generator` calls this between the steps of
the compiled loop.
"""

import codecs
import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Stop:
    """What ends a row before the number of bytes asked for.

    Raises:
      ValueError: for an empty string, or a number of patches below 1.
    """

    eos: bool = True  # end with an EOS; False: none is ever drawn
    strings: Sequence[str | bytes] = ()  # end before the first of these that comes up; it is not part of the result
    patches: int | None = None  # end with the last byte of this many patches, the one open at the prompt's end included

    def __post_init__(self) -> None:
        if isinstance(self.strings, str | bytes) or not all(self.strings):
            raise ValueError(f"stop.strings={self.strings!r}: pass a sequence of strings, none of them empty.")
        if self.patches is not None and self.patches < 1:
            raise ValueError(f"stop.patches={self.patches}: must be at least 1.")

    @property
    def needles(self) -> list[bytes]:
        return [s.encode() if isinstance(s, str) else s for s in self.strings]


AT_EOS = Stop()


def cut(text: bytes, needles: Sequence[bytes]) -> int | None:
    """Where the first stop string in a text begins; None where there is none.

    Of two, the first is the one that is complete first; it alone would have ended the text as it grew.
    """
    ends = [(place + len(needle), place) for needle in needles if (place := text.find(needle)) >= 0]
    return min(ends)[1] if ends else None


def safe(text: bytes, needles: Sequence[bytes]) -> int:
    """How many bytes of a text without a stop string can't become part of one, whatever follows."""
    longest = 0
    for needle in needles:
        for length in range(min(len(needle) - 1, len(text)), longest, -1):
            if text.endswith(needle[:length]):
                longest = length
                break
    return len(text) - longest


class Characters:
    """Bytes in pieces of whole characters.

    What is no UTF-8 comes as U+FFFD, as `bytes.decode(errors="replace")` has it: a character that is not finished is
    held back until it is, or until the end.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes, last: bool = False) -> bytes:
        """The characters that are whole with this piece, as UTF-8."""
        return self._decoder.decode(piece, last).encode()
