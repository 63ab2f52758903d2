"""lm-eval sees the model's own scores, of the very bytes; nothing is downloaded."""

import dataclasses
import functools
import json
import logging
import math

import jax
import numpy as np
import pytest

from bltjax import families, vocabulary
from bltjax.data.corpus import Documents
from bltjax.data.pipeline import heldout_batches
from bltjax.evaluate import Reader, Score, evaluate_documents
from bltjax.generate import Generator, Sampling, Stop
from bltjax.patching import Patches
from bltjax.sharding import make_mesh
from tests.programs import quick_jit
from tests.studies import WORDS, random_source, write_run

pytestmark = pytest.mark.lm_eval
ONE = make_mesh(devices=jax.devices()[:1])
TEXTS = [WORDS[:20], WORDS[4:37], "die Höhe, 高さ, \x00".encode(), b"x"]


@dataclasses.dataclass
class Request:
    """What lm-eval hands over, as far as a model looks at it."""

    args: tuple


@pytest.fixture(scope="module", params=["byte", "entropy", "token"])
def trained(request, tmp_path_factory):
    return random_source(request.param, tmp_path_factory.mktemp("source"))


@functools.cache
def byte_source():
    return random_source("byte", None)


def harness(trained, context=64, **options):
    from bltjax.harness import Harness

    return Harness(trained, context_bytes=context, mesh=ONE, batch=4, **options)


@functools.cache
def forward(config):
    return quick_jit(families.build(config).apply)


def by_byte(trained, text):
    """Nats of the ids of a text, as one parallel pass has them, and the byte at which each begins."""
    stream = Reader(trained, mesh=ONE)(Documents.of([text]), 64)
    row = stream.build(0, stream.document_positions(0)[1].size - 2, 0, 64)
    patches = Patches.from_starts(row["starts"][None], 64) if "starts" in row else None
    logits = forward(trained.config)({"params": trained.params}, row["ids"][None].astype(np.int32), patches)
    logits = np.asarray(logits[0], np.float64)
    own = row["targets"] >= vocabulary.OFFSET
    nats = np.log(np.exp(logits).sum(-1))[own] - logits[own, row["targets"][own]]
    return nats, np.cumsum(row["target_bytes"][own]) - row["target_bytes"][own]


def test_a_continuation_has_the_models_own_scores_of_its_bytes(trained):
    model = harness(trained)
    for text in TEXTS:
        each, begins = by_byte(trained, text)
        ends = np.append(begins[1:], len(text))
        places = [0, 1, len(text) // 2, len(text)]
        found = model.scores([(text[:place], text[place:]) for place in places])
        # Of the token family, the token that holds the first byte is scored whole.
        expected = [-each[ends > place].sum() for place in places]
        assert [nats for nats, _ in found] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    pair = ("they ", "think \u00e9")
    assert model.loglikelihood([Request(pair)]) == model.scores([tuple(part.encode() for part in pair)])


def test_a_rolling_score_is_what_the_evaluation_says(trained):
    texts = [WORDS * 5, *TEXTS]
    read = Reader(trained, mesh=ONE)
    batches = heldout_batches(read(Documents.of(texts), 64), 64, 24, 4)
    scores = evaluate_documents(trained.config, trained.params, batches, mesh=ONE)
    model = harness(trained, stride_bytes=24)
    rolling = model.loglikelihood_rolling([Request((text.decode(),)) for text in texts])
    assert rolling == pytest.approx([-score.byte_nats for score in scores], rel=1e-6)
    whole = model.loglikelihood([Request(("", text.decode())) for text in texts])
    assert [nats for nats, _ in whole] == pytest.approx(rolling, rel=1e-6)


def test_the_windows_of_a_continuation_score_its_bytes_once_and_nothing_else(trained):
    from bltjax.harness import continuations

    texts, begins = [WORDS * 5, WORDS * 3, TEXTS[2]], [150, 1, 0]
    source = Reader(trained, mesh=ONE)(Documents.of(texts), 64)
    whole = source.windows(64, 24, np.arange(len(texts)))
    found = continuations(source, begins, 64, 24)
    assert set(found.begin) <= set(whole.begin), "their context is that of the evaluation"
    ids: list[list[int]] = [[] for _ in texts]
    for begin, end, after, document in zip(found.begin, found.end, found.after, found.documents, strict=True):
        targets = source.build(int(begin), int(end), int(after), 64)["targets"]
        ids[document] += targets[targets >= 0].tolist()
    for text, begin, own in zip(texts, begins, ids, strict=True):
        scored = trained.text_of(np.array(own))
        assert text.endswith(scored)
        first = len(trained.text_of(np.array(own[:1])))
        assert len(text) - begin <= len(scored) < len(text) - begin + first, "from the id of its first byte on"


def test_what_greedy_decoding_writes_is_greedy_and_nothing_else_is():
    trained = byte_source()
    prompt = b"the theory of"
    written = Generator(trained, capacity=64)([prompt], 6, stop=Stop(eos=False))[0].text
    other = bytes([written[0] ^ 1]) + written[1:]
    (_, greedy), (_, altered) = harness(trained).scores([(prompt, written), (prompt, other)])
    # Where the model would end the document, greedy decoding does not write on.
    drawn = Generator(trained, capacity=64)([prompt], 6)[0]
    assert greedy == (drawn.ended_by == "bytes" and drawn.text == written)
    assert not altered


def test_what_is_generated_is_what_the_generator_writes():
    trained = byte_source()
    contexts = ["the theory of", "", "th", "and then they think of the thing", "theory"]
    asked = {"until": ["\n", "\u00e9"], "max_gen_toks": 2, "do_sample": False, "temperature": 0.0}
    found = harness(trained).generate_until([Request((context, asked)) for context in contexts])
    write = Generator(trained, capacity=64)
    for context, text in zip(contexts, found, strict=True):
        (one,) = write([context], 8, stop=Stop(strings=("\n", "\u00e9")))
        assert text == one.text.decode(errors="replace")


def test_what_is_drawn_at_random_differs_between_equal_requests():
    trained = byte_source()
    asked = {"until": "\n", "max_gen_toks": 3, "do_sample": True, "temperature": 5.0, "top_k": 0}
    requests = [Request(("the", asked))] * 6
    found = harness(trained, seed=3).generate_until(requests)
    assert len(set(found)) == 6
    assert found == harness(trained, seed=3).generate_until(requests)
    drawn = Generator(trained, capacity=16)([b"the"], 12, Sampling(5.0, seed=3), Stop(strings=["\n"]))[0]
    assert found[0] == drawn.text.decode(errors="replace")


def test_a_prompt_without_room_is_cut_on_its_left_and_counted(caplog):
    trained = byte_source()
    model, text = harness(trained), (WORDS * 3).decode()
    with caplog.at_level(logging.WARNING):
        (found,) = model.generate_until([Request((text, {"max_gen_toks": 2}))])
    assert found == Generator(trained, capacity=64)([text[-55:]], 8)[0].text.decode(errors="replace")
    assert model.cut == 1 and "1 prompts so far were cut on their left" in caplog.text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_gen_toks": 16}, "max_gen_toks=16: its 64 bytes leave no room for a prompt in context_bytes=64"),
        ({"repetition_penalty": 1.2}, "generation_kwargs has repetition_penalty: not known here"),
        ({"do_sample": True, "temperature": -1.0}, "temperature=-1"),
        ({"until": [""]}, "none of them empty"),
    ],
)
def test_what_a_task_asks_in_vain_is_named(asked, message):
    with pytest.raises(ValueError, match=message):
        harness(byte_source()).generate_until([Request(("the", asked))])
    with pytest.raises(ValueError, match="stride_bytes=65: must lie in"):
        harness(byte_source(), stride_bytes=65)


@pytest.fixture
def tasks(tmp_path):
    """A folder of three tasks on local files."""
    questions = [
        {"question": "they think of the", "choices": [" thing", " theory"], "label": 0},
        {"question": "the theory of", "choices": [" x", " the thing that they"], "label": 1},
        {"question": "", "choices": ["a", "b"], "label": 0},
    ]
    texts = [{"text": (WORDS * n).decode()} for n in (1, 3, 4)]
    prompts = [{"prompt": "the theory", "answer": "x"}, {"prompt": "of", "answer": "y"}]
    common = {"dataset_path": "json", "test_split": "test"}
    of_text = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    of_prompt = {"output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}"}
    of_choice = {"output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}"}
    of_choice |= {"doc_to_target": "{{label}}", "target_delimiter": ""}
    rolling = [{"metric": "bits_per_byte"}]
    limits = {"until": ["\n"], "max_gen_toks": 4}
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    mine = {
        "mine_choice": (questions, {**of_choice, "metric_list": [{"metric": "acc"}]}),
        "mine_text": (texts, {**of_text, "metric_list": rolling}),
        "mine_prompt": (prompts, {**of_prompt, "generation_kwargs": limits, "metric_list": [exact]}),
    }
    for name, (rows, about) in mine.items():
        data = tmp_path / "data" / f"{name}.jsonl"
        data.parent.mkdir(exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        # JSON is YAML.
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **files, **about}))
    return tmp_path


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_tasks_of_local_files_are_run_from_the_command_line(tasks, tmp_path, capsys, monkeypatch):
    from scripts import evaluate as script

    write_run(tmp_path / "run", "byte-tiny")
    trained = script.load_source(tmp_path / "run")
    arguments = script.Arguments(
        tmp_path / "run",
        tasks=("mine_choice", "mine_text", "mine_prompt"),
        task_folder=tasks,
        json=tmp_path / "found.json",
    )
    script.main(arguments)
    found = json.loads((tmp_path / "found.json").read_bytes())["results"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in arguments.tasks)
    model = harness(trained, stride_bytes=32)
    texts = [WORDS * n for n in (1, 3, 4)]
    nats = [nats for nats, _ in model.scores([(b"", text) for text in texts])]
    total = Score(-math.fsum(nats), sum(map(len, texts)))
    assert found["mine_text"]["bits_per_byte,none"] == pytest.approx(total.bits_per_byte, rel=1e-6)
    choices = [(b"they think of the", b" thing"), (b"they think of the", b" theory"), (b"", b"a"), (b"", b"b")]
    choices += [(b"the theory of", b" the thing that they"), (b"the theory of", b" x")]
    costs = np.array([cost for cost, _ in model.scores(choices)]).reshape(3, 2)
    assert found["mine_choice"]["acc,none"] == pytest.approx(np.mean(costs[:, 0] > costs[:, 1]))
    assert found["mine_prompt"]["exact_match,none"] == 0.0
    with pytest.raises(ValueError, match=r"tasks: .* has no absent: check the names"):
        script.main(dataclasses.replace(arguments, tasks=("absent",)))
