import dataclasses
import functools
import threading
import time

import pytest

from bltjax.config import PatcherConfig
from bltjax.data.sources import Document, Sources
from bltjax.presets import preset
from bltjax.runtime import StopRequest
from bltjax.scaling import inputs as room
from bltjax.scaling.inputs import Inputs, limited

PATCHER = PatcherConfig(mean_patch_bytes=3.0)
EVERY = (
    "blt-tiny", "byte-tiny", "token-tiny", "megabyte-tiny", "spacebyte-tiny", "blt-monotonic-tiny", "blt-strided-tiny",
    "blt-space-tiny", "blt-bpe-tiny",
)  # fmt: skip


def documents(order) -> Sources:
    texts = [bytes([number]) * (10 + number) for number in range(20)]
    return Sources(lambda: (Document(str(i), texts[i]) for i in order), {"files": 20})


def test_a_limit_chooses_by_hash_and_is_never_exceeded():
    chosen = {d.data for d in limited(documents(range(20)), 150)}
    assert chosen == {d.data for d in limited(documents(range(19, -1, -1)), 150)}
    assert 120 < sum(map(len, chosen)) <= 150
    assert chosen != {d.data for d in documents(range(len(chosen)))}
    assert limited(documents(range(20)), 150).origin == {"files": 20, "at_most_bytes": 150}
    with pytest.raises(ValueError, match="shortest document has 10 bytes"):
        limited(documents(range(20)), 9)


def test_copies_of_a_document_are_counted_once():
    twice = limited(documents([*range(20), *range(20)]), 150)
    assert {d.data for d in twice} == {d.data for d in limited(documents(range(20)), 150)}


def test_every_stage_is_done_once_and_then_read(study, monkeypatch):
    said: list[str] = []
    first = Inputs(study, said.append)
    blt, token = preset("blt-tiny"), preset("token-tiny")
    threshold = first.patcher(PATCHER).threshold
    heldout = {len(first.heldout(model, size)) > 0 for model, size in ((blt, PATCHER), (token, None))}
    assert heldout == {True}
    assert sum(text.startswith(("preparing", "training", "scoring")) for text in said) == 4

    def never(*_, **__):
        raise AssertionError("this stage was done already")

    for name in ("prepare", "train", "fit", "score_corpus"):
        monkeypatch.setattr(room, name, never)
    said.clear()
    second = Inputs(study, said.append)
    assert second.patcher(PATCHER).threshold == threshold
    assert second.identity(blt, PATCHER) == first.identity(blt, PATCHER)
    assert second.identity(token, None) == first.identity(token, None)
    assert not any(text.startswith(("preparing", "training", "scoring")) for text in said)


def test_mistake_16_what_cuts_the_text_has_not_read_what_is_scored(study, monkeypatch):
    """The entropy model, the tokenizer and the threshold are made from the training split alone."""
    read = {}

    def spy(name, function, documents):
        def called(*arguments, **options):
            read[name] = {document.tobytes() for document in documents(*arguments)}
            return function(*arguments, **options)

        monkeypatch.setattr(room, name, called)

    spy("fit", room.fit, lambda config, source, *_: source.documents)
    spy("train", room.train, lambda documents, *_: documents)
    made = Inputs(study, lambda text: None)
    threshold = made.patcher(PATCHER).threshold
    made.tokenizer(preset("token-tiny").vocabulary_size - 4)
    train, heldout = ({d.tobytes() for d in made.corpus.documents(split)} for split in ("train", "heldout"))
    assert heldout and not train & heldout
    assert read == {"fit": train, "train": train}
    entropies = room.read_entropies(made.corpus, "train", made.entropy_fingerprint)
    boundaries = room.ByteStream(made.corpus.documents("train")).document_starts
    assert room.calibrate(PATCHER, boundaries, entropies).config.threshold == threshold


def test_families_read_the_same_bytes(study):
    made = Inputs(dataclasses.replace(study, preset=EVERY, delimiter_tokens=296), lambda text: None)
    study = made.study
    models = study.models()
    sizes = {name: study.patchers_of(name)[0] for name in models}
    scored = {made.heldout(models[name], sizes[name]).bytes for name in models}
    assert len(scored) == 1
    for name, model in models.items():
        source = made.source(model, sizes[name], "train")
        assert source.documents.total_bytes == made.corpus.documents("train").total_bytes
        rows = len(source.rows)
        trained = sum(int(source.row(row)["target_bytes"].sum()) for row in range(rows))
        assert trained == source.documents.total_bytes


def test_patches_have_the_size_that_was_asked_for_on_the_training_split(study):
    made = Inputs(dataclasses.replace(study, patch_sizes=(2.5,)), lambda text: None)
    wanted = PatcherConfig(mean_patch_bytes=2.5)
    source = made.source(preset("blt-tiny"), wanted, "train")
    assert source.documents.total_bytes / source.stream_starts.sum() == pytest.approx(2.5, rel=0.05)
    assert made.heldout_unit_bytes(preset("blt-tiny"), wanted) == pytest.approx(2.5, rel=0.2)
    assert made.heldout_unit_bytes(preset("byte-tiny"), None) == 1.0


def test_what_is_shared_is_made_once_and_the_others_wait_for_it(study, monkeypatch):
    study = dataclasses.replace(study, preset=("token-tiny", "blt-tiny"))
    made, said = [], []
    for name in ("prepare", "train", "score_corpus"):
        real = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *a, real=real, name=name, **k: made.append(name) or real(*a, **k))
    first = room.prepare

    def waiting():
        return sum("which makes corpus-" in words for words in said)

    def prepare(*given):
        deadline = time.monotonic() + 60
        while waiting() < 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # until both others have said that they wait
        return first(*given)

    monkeypatch.setattr(room, "prepare", prepare)
    # A lock is of an open file, so threads of one process stand for processes here.
    monkeypatch.setattr(room, "fit", functools.partial(room.fit, stop=StopRequest()))
    found = []

    def work():
        mine = Inputs(study, said.append)
        tokens = mine.identity(study.models()["token-tiny"], None)
        found.append((tokens, mine.identity(study.models()["blt-tiny"], *study.patchers_of("blt-tiny"))))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(made) == ["prepare", "score_corpus", "train"]
    assert len(found) == 3 and found[0] == found[1] == found[2]
    assert waiting() == 2
