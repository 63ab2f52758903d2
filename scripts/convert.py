"""Looks at a Hugging Face checkpoint of BLT, or writes it anew: float32, other shards, the config in today's spelling.

    python scripts/convert.py blt-1b-hf
    python scripts/convert.py blt-1b-hf --output blt-1b-float32 --max-shard-gigabytes 5

Without --output nothing but the headers of the files is read, which takes seconds at any size: every tensor's name and
shape is compared with the config. What is written is read back by transformers and by bltjax.interop.huggingface.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from bltjax.config import to_dict
from bltjax.flops import parameters
from bltjax.interop.huggingface import Pretrained, inspect_pretrained, load_pretrained, save_pretrained


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Checks, describes or rewrites a checkpoint."""

    folder: Annotated[Path, tyro.conf.Positional]
    """With config.json and model.safetensors, or shards and their index."""
    output: Path | None = None
    """Where to write the checkpoint anew; a folder that does not exist, or is empty."""
    max_shard_gigabytes: float = 2.0
    """Size of one file, in 10^9 bytes."""
    windows: bool = True
    """--no-windows: full causal attention, as transformers 4.57 computes whatever the config says."""


def description(pretrained: Pretrained) -> str:
    """The configs, as JSON, and the parameters by group, for people."""
    models = {"blt": pretrained.config}
    if pretrained.entropy_config is not None:
        models["entropy"] = pretrained.entropy_config
    values = {name: to_dict(model) for name, model in models.items()}
    patches = {"threshold": pretrained.threshold, "max_patch_length": pretrained.max_patch_length}
    lines = [json.dumps(values | patches, indent=1), "", f"{'parameters':>15}"]
    for name, model in models.items():
        groups = parameters(model)
        lines += [f"{count:>15,}  {name}/{group}" for group, count in groups.items()]
        lines.append(f"{sum(groups.values()):>15,}  {name}")
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    if arguments.output is None:
        print(description(inspect_pretrained(arguments.folder, arguments.windows)))
        return
    pretrained = load_pretrained(arguments.folder, arguments.windows)
    save_pretrained(arguments.output, pretrained, int(arguments.max_shard_gigabytes * 1e9))
    print(description(pretrained))
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
