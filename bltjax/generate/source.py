"""What is generated from, and scored: a model of any family with its weights, and what turns text into its ids.

In goes what a checkpoint holds; out comes a `Source`, or one error that says what is missing. `Generator` runs it, and
`bltjax.evaluate` scores it.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, Int32

from bltjax import vocabulary
from bltjax.config import (
    EntropyModelConfig,
    LanguageModelConfig,
    ModelConfig,
    PatcherConfig,
)
from bltjax.interop.huggingface_config import Pretrained
from bltjax.patching.rules import PREFIX_CONSISTENT, entropy_threshold
from bltjax.sharding import shard_params

Prompt = str | bytes | np.ndarray  # text, any bytes, or ids


@runtime_checkable
class Tokenizer(Protocol):
    """What a token model needs; `bltjax.data.tokenizer.Tokenizer` is one."""

    vocabulary_size: int

    def encode(self, data: bytes) -> Int32[np.ndarray, "tokens"]: ...

    def decode(self, ids: Any) -> bytes: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A model with its weights, of any family.

    Attributes:
      config: of any family.
      params: of the model; a nested dict of arrays.
      patcher: for a model that reads patches, the rule that it was trained with.
      entropy_config: for a rule that needs entropies, their model; entropy_params: its params.
      tokenizer: for a token model.

    Raises:
      ValueError: for a rule that can't be followed while text is generated, or a part that is missing or not needed.
    """

    config: ModelConfig
    params: Any
    patcher: PatcherConfig | None = None
    entropy_config: EntropyModelConfig | None = None
    entropy_params: Any | None = None
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        is_token = isinstance(self.config, LanguageModelConfig) and not self.config.bytes_only
        reads = self.config.reads_patches
        if reads != (self.patcher is not None):
            problem = "needs the rule that cuts its patches" if reads else "reads no patches, and takes none"
            raise ValueError(f"patcher={self.patcher!r}: a {type(self.config).__name__} {problem}.")
        by_entropy = self.patcher is not None and self.patcher.rule == "entropy"
        if self.patcher is not None and not PREFIX_CONSISTENT[self.patcher.rule]:
            raise ValueError(
                f"patcher.rule={self.patcher.rule!r}: where its patches end depends on bytes that are not yet there, "
                "so there is nothing to generate with. Train with an incremental rule: entropy, space, strided or byte."
            )
        if by_entropy and (self.entropy_config is None or self.entropy_params is None):
            raise ValueError(
                "entropy_params=None: the entropy rule needs the entropy model that the model was trained with; give "
                "its configuration and params, or another patcher, such as PatcherConfig(rule='space')."
            )
        if by_entropy and self.patcher is not None:
            entropy_threshold(self.patcher)
        if is_token != (self.tokenizer is not None):
            problem = "needs its tokenizer" if is_token else "reads bytes, and takes none"
            raise ValueError(f"tokenizer={self.tokenizer!r}: a {type(self.config).__name__} {problem}.")
        if self.tokenizer is not None and isinstance(self.config, LanguageModelConfig):
            wanted, found = self.config.vocabulary_size, self.tokenizer.vocabulary_size + vocabulary.OFFSET
            if wanted != found:
                raise ValueError(
                    f"tokenizer has {found} ids, the 4 special ones included; the model has {wanted}: it is another's."
                )

    @classmethod
    def of(cls, pretrained: "Pretrained | Source", patcher: PatcherConfig | None = None) -> "Source":
        """A source of what `interop.huggingface.load_pretrained` reads.

        Args:
          patcher: takes the place of the entropy rule of the checkpoint.

        Raises:
          ValueError: for a checkpoint without a patcher where none is given, or a threshold that is not finite.
        """
        if isinstance(pretrained, Source):
            return pretrained if patcher is None else dataclasses.replace(pretrained, patcher=patcher)
        if patcher is None:
            if pretrained.entropy_params is None or pretrained.threshold is None:
                raise ValueError(
                    "pretrained has no entropy model or no threshold, so nothing says where its patches start: give "
                    "the rule that it was trained with, patcher=PatcherConfig(...)."
                )
            patcher = PatcherConfig(threshold=pretrained.threshold, max_patch_length=pretrained.max_patch_length)
        entropy = (pretrained.entropy_config, pretrained.entropy_params) if patcher.rule == "entropy" else (None, None)
        return cls(pretrained.config, pretrained.params, patcher, *entropy)

    def on(self, mesh: Mesh) -> "Source":
        """The same with its params laid out over the devices of a mesh, whose replicas share out the rows of a batch.

        Raises:
          ValueError: where a mesh axis does not divide a dimension that it splits.
        """
        entropy = None if self.entropy_params is None else shard_params(self.entropy_params, mesh)
        return dataclasses.replace(self, params=shard_params(self.params, mesh), entropy_params=entropy)

    @property
    def vocabulary_size(self) -> int:
        return self.config.vocabulary_size if isinstance(self.config, LanguageModelConfig) else vocabulary.SIZE

    def ids_of(self, prompt: Prompt) -> Int32[np.ndarray, "ids"]:
        """The ids of a prompt: BOS and its text; ids are taken as they are.

        Raises:
          ValueError: for ids that are not one row of integers of the model's vocabulary.
        """
        if not isinstance(prompt, str | bytes):
            ids = np.asarray(prompt)
            if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
                raise ValueError(f"a prompt of ids has shape {ids.shape}, type {ids.dtype}: pass one row of integers.")
            if ids.min() < 0 or ids.max() >= self.vocabulary_size:
                raise ValueError(
                    f"a prompt has ids {ids.min()} .. {ids.max()}: they lie in 0 .. {self.vocabulary_size - 1}."
                )
            return ids.astype(np.int32)
        if self.tokenizer is None:
            return vocabulary.encode(prompt)
        text = vocabulary.decode(vocabulary.encode(prompt))
        tokens = self.tokenizer.encode(text) + np.int32(vocabulary.OFFSET)
        return np.concatenate([[vocabulary.BOS], tokens]).astype(np.int32)

    def text_of(self, ids: Int[np.ndarray, "ids"]) -> bytes:
        """The raw bytes that ids stand for; special ids stand for none."""
        if self.tokenizer is None:
            return vocabulary.decode(ids)
        return self.tokenizer.decode(ids[ids >= vocabulary.OFFSET] - vocabulary.OFFSET)

    def id_bytes(self) -> Int32[np.ndarray, "vocabulary"]:
        """Raw bytes that each id stands for."""
        return np.array([len(self.text_of(np.array([i]))) for i in range(self.vocabulary_size)], np.int32)

    def drawable(self, eos: bool) -> Bool[np.ndarray, "vocabulary"]:
        """Which ids may be drawn: those that stand for bytes, and EOS where it is wanted."""
        allowed = np.arange(self.vocabulary_size) >= vocabulary.OFFSET
        allowed[vocabulary.EOS] = eos
        return allowed
