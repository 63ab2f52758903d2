"""The same short texts in many languages: the messages of a program and their translations, from GNU .mo catalogues.

A source tree of a program, such as Django's, has them in `.../locale/<language>/LC_MESSAGES/<name>.mo`. What is not
translated, or marked as doubtful, is not in a catalogue; English is what the others are translations of.
"""

import dataclasses
import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE = "en"  # the language that messages are written in
_MAGIC = 0x950412DE


@dataclasses.dataclass(frozen=True)
class Message:
    """One message in every language that was asked for.

    Attributes:
      catalogue: where it comes from, the same in all languages.
      texts: by language.
    """

    catalogue: str
    texts: Mapping[str, str]

    def held_out(self, one_in: int) -> bool:
        """Whether it is among every so many, drawn by the hash of its English text."""
        return int(hashlib.sha256(self.texts[SOURCE].encode()).hexdigest()[:8], 16) % one_in == 0


def catalogue(path: Path) -> dict[str, str]:
    """The translations of a .mo file by what they translate; messages with plural forms are left out.

    A context stands before what is translated, with an end-of-transmission (0x04) between.

    Raises:
      ValueError: for what is no such file.
    """
    data = path.read_bytes()
    if len(data) < 20:
        raise ValueError(f"{path}: is no .mo catalogue, it has {len(data)} bytes.")
    order = next((order for order in "<>" if struct.unpack(f"{order}I", data[:4])[0] == _MAGIC), None)
    if order is None:
        raise ValueError(f"{path}: is no .mo catalogue, it does not begin with {_MAGIC:#x}.")
    count, originals, translations = struct.unpack(f"{order}3I", data[8:20])

    def text(table: int, index: int) -> bytes:
        try:
            length, begin = struct.unpack_from(f"{order}2I", data, table + 8 * index)
        except struct.error as error:
            raise ValueError(f"{path}: is cut short: {error}.") from error
        if begin + length > len(data):
            raise ValueError(f"{path}: is cut short, a message ends at {begin + length} of {len(data)} bytes.")
        return data[begin : begin + length]

    found = {}
    for index in range(count):
        original, translation = text(originals, index), text(translations, index)
        if original and translation and b"\0" not in original:
            found[original.decode()] = translation.decode()
    return found


def parallel_messages(folder: Path, languages: Sequence[str]) -> list[Message]:
    """The messages below a folder that every language has, by catalogue; each English text once.

    Args:
      languages: names of folders, as zh_Hans; "en" is what the others translate.

    Raises:
      FileNotFoundError: for a language without any catalogue.
      ValueError: where no message is there in all languages, or the list has no other than English.
    """
    others = [language for language in languages if language != SOURCE]
    if not others:
        raise ValueError(f"languages={list(languages)}: name one at least besides {SOURCE!r}.")
    found: dict[str, dict[tuple[str, str], str]] = {}
    for language in others:
        paths = sorted(folder.rglob(f"locale/{language}/LC_MESSAGES/*.mo"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no locale/{language}/LC_MESSAGES/*.mo: name another folder.")
        found[language] = {}
        for path in paths:
            name = path.relative_to(folder).as_posix().replace(f"locale/{language}/LC_MESSAGES/", "")
            found[language] |= {(name, original): text for original, text in catalogue(path).items()}
    shared = set.intersection(*map(set, found.values()))
    messages: dict[str, Message] = {}
    for name, original in sorted(shared):
        english = original.rpartition("\x04")[2]
        texts = {each: english if each == SOURCE else found[each][name, original] for each in (SOURCE, *others)}
        messages.setdefault(english, Message(name, texts))
    if not messages:
        raise ValueError(f"{folder}: no message is there in all of {', '.join(languages)}.")
    return list(messages.values())


def as_documents(messages: Sequence[Message], language: str, at_a_time: int) -> list[bytes]:
    """The messages in one language, a line or more each, so many to a document; in every language the same ones."""
    lines = [message.texts[language] for message in messages]
    groups = (lines[first : first + at_a_time] for first in range(0, len(lines), at_a_time))
    return ["".join(f"{line}\n" for line in group).encode() for group in groups]
