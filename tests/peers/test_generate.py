"""Greedy text equals that of `BltForCausalLM` in transformers, which computes everything anew for every byte.

The cache of transformers is off: with it on, its text is another one. Two shapes of models with ten sets of random
weights each, so that our programs are compiled twice.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BltForCausalLM

from bltjax.generate import Generator, Stop
from tests.peers.test_transformers import HAS_WINDOWS, load, random_model

# None with a longest patch: there transformers drops the empty patch that says that the last byte ends one.
SHAPES = ("grouped queries", "window smaller than the row")
MODELS = 10  # of each shape
PROMPT, NEW = 64, 16  # bytes
MARGIN = 1e-3  # nats between the threshold and every entropy
TIE = 1e-4  # of the largest logit: two ids whose logits are as near are not told apart
SPECIAL = [0, 1, 2, 3]  # ids that stand for no byte are not drawn


def their_text(model: BltForCausalLM, ids: list[int]) -> tuple[list[int], float]:
    """Ids of the prompt and of what they append, and how near the two likeliest ids ever were."""
    nearest = np.inf
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            logits[SPECIAL] = -torch.inf
            best = torch.topk(logits, 2).values
            nearest = min(nearest, float(best[0] - best[1]) / float(logits[4:].abs().max()))
            ids = [*ids, int(logits.argmax())]
    return ids, nearest


def their_entropies(model: BltForCausalLM, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model.model.patcher(torch.tensor([ids]))[0].numpy()[0]


def threshold_apart(entropies: np.ndarray) -> float:
    """In the middle of the widest gap among those that make patches of about three bytes."""
    middle = np.sort(entropies)[len(entropies) // 2 : 4 * len(entropies) // 5]
    gap = np.diff(middle).argmax()
    return float(middle[gap : gap + 2].mean())


@pytest.mark.slow  # and so with the newest transformers only
@pytest.mark.parametrize("name", SHAPES)
def test_greedy_text_of_random_models(name: str, tmp_path: Path):
    model, draw = random_model(name, patcher=True), np.random.default_rng(sum(map(ord, name)))
    compared = tried = 0
    while compared < MODELS:
        tried += 1
        assert tried < 4 * MODELS, "too many texts with an entropy next to the threshold"
        torch.manual_seed(1000 * len(name) + tried)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                weight.normal_(1.0, 0.2) if "norm" in key else weight.normal_(0.0, 0.5)
        prompt = [1, *draw.integers(4, 260, PROMPT).tolist()]
        model.config.patching_threshold = threshold_apart(their_entropies(model, prompt))
        ids, nearest = their_text(model, prompt)
        entropies = their_entropies(model, ids)
        if np.abs(entropies - model.config.patching_threshold).min() < MARGIN or nearest < TIE:
            continue
        pretrained = load(model, tmp_path / str(tried))
        assert (pretrained.config.encoder.window is not None) == HAS_WINDOWS
        found = Generator(pretrained, capacity=128, part=32)([np.array(prompt)], NEW, stop=Stop(eos=False))[0]
        assert found.ids.tolist() == ids[len(prompt) :]
        assert found.starts is not None and 5 < found.starts.sum() < len(ids)
        compared += 1
