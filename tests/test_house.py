"""The house keeps its shape: names, sizes, arrows between rooms, and what an import may cost."""

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "bltjax"

# From the bottom up: a room may import from its own floor and from those before it.
FLOORS = (
    {"config", "vocabulary", "batch"},
    {"sharding"},  # holds the activation helper that modules call
    {"parallel", "blocked"},
    {"presets", "layers", "attention", "kernels", "hashing", "patching"},
    {"entropy_model", "transformer", "cross_attention"},
    {"local", "global_model"},
    {"blt", "baselines"},
    {"families"},
    {"loss", "flops", "interop", "hlo", "movement", "least"},
    {"generate"},
    {"data"},
    {"transfer", "optim", "metrics", "walltime", "lock", "runtime", "checkpoint", "chips", "topology"},
    {"step"},
    {"ahead"},
    {"tally", "evaluate", "claim", "provenance", "train", "scoring", "trained", "harness"},
    {"scaling"},
)
NEAR_DATA = {"config", "vocabulary", "batch", "patching", "data"}  # data knows nothing of models
MODEL_ROOMS = {room for floor in FLOORS[:8] for room in floor} | {"loss", "flops"}
LAST_LINES = {PACKAGE: 400, ROOT / "experiments": 200}
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}

PUBLIC_NAMES = (
    "bltjax.BLT",
    "bltjax.BLTConfig",
    "bltjax.EntropyModel",
    "bltjax.EntropyModelConfig",
    "bltjax.Patches",
    "bltjax.Patches.from_lengths(lengths, num_bytes)",
    "bltjax.Patches.from_starts(starts, num_patches)",
    "bltjax.vocabulary.encode(text, bos=True, eos=False)",
    "bltjax.vocabulary.decode(ids)",
    "bltjax.hashing.ngram_hash(ids, size, buckets, function=0)",
    "bltjax.patching.next_byte_entropy(logits)",
    "bltjax.patching.entropy_starts(entropies, threshold, rule='global')",
    "bltjax.patching.space_starts(ids)",
    "bltjax.patching.strided_starts(ids, size)",
    "bltjax.interop.huggingface.load_pretrained(folder)",
    "bltjax.interop.huggingface.save_pretrained(folder, pretrained)",
    "bltjax.flops.flops_per_byte(config, patch_size, context_bytes, accounting)",
    "bltjax.generate.generate(pretrained, prompts, max_new_bytes)",
    "bltjax.scaling.fit.fit_law(points, method)",
    "bltjax.scaling.fit.compute_equivalent_gain(a, b)",
    "bltjax.scaling.fit.crossover(a, b)",
)


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in python_files("bltjax")}


def imported_modules(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in the file it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides which room it means"
            assert node.module is not None
            names |= {
                longer if (longer := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
    return {name for name in names if name == "bltjax" or name.startswith("bltjax.")}


def room(module: str) -> str:
    return module.split(".")[1]


ROOMS = sorted({room(module) for module in MODULES if module != "bltjax"})


def run_python(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_has_a_name_of_its_own():
    nameless = [path for path in python_files("bltjax", "experiments", "scripts", "tests") if path.stem in NAMELESS]
    assert not nameless


@pytest.mark.parametrize("folder", LAST_LINES, ids=lambda folder: folder.name)
def test_a_file_is_read_in_one_sitting(folder: Path):
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in folder.rglob("*.py")}
    assert lengths
    assert {path: n for path, n in lengths.items() if n > LAST_LINES[folder]} == {}


def test_every_room_stands_on_one_floor():
    floors_of = {name: [i for i, floor in enumerate(FLOORS) if name in floor] for name in ROOMS}
    assert {name: floors for name, floors in floors_of.items() if len(floors) != 1} == {}


@pytest.mark.parametrize("name", ROOMS)
def test_arrows_point_down(name: str):
    floor = next(i for i, rooms in enumerate(FLOORS) if name in rooms)
    below = set().union(*FLOORS[: floor + 1])
    if name == "data":
        below &= NEAR_DATA
    for module, path in MODULES.items():
        if module != "bltjax" and room(module) == name:
            imported = imported_modules(path)
            assert "bltjax" not in imported, f"{module} imports the whole package"
            assert {i for i in imported if room(i) not in below} == set(), f"{module} points up"


def test_no_two_files_import_each_other():
    graph = {module: imported_modules(path) - {module} for module, path in MODULES.items()}
    assert len(tuple(graphlib.TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_only_layers_and_the_hash_tables_declare_parameters():
    declaring = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "self.param"
    }
    assert declaring == {"bltjax.layers", "bltjax.hashing"}


def test_only_sharding_knows_the_mesh_axes():
    knowing = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).split(".")[-1] in ("PartitionSpec", "P")
    }
    assert knowing <= {"bltjax.sharding"}


def test_model_rooms_import_without_the_training_libraries():
    modules = sorted(module for module in MODULES if module == "bltjax" or room(module) in MODEL_ROOMS)
    imported = run_python(f"""
        import importlib, importlib.abc, sys

        class Absent(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.split(".")[0] in ("grain", "orbax", "optax"):
                    raise ModuleNotFoundError(f"{{name}} is not needed by a model", name=name)

        sys.meta_path.insert(0, Absent())
        for module in {modules}:
            importlib.import_module(module)
            print(module)
    """)
    assert imported.split() == modules


def test_importing_the_package_changes_nothing():
    found = run_python("""
        import logging, os, sys, warnings
        import jax, flax.linen, chex, jaxtyping
        from jax._src import xla_bridge

        def surroundings():
            handlers = list(logging.getLogger().handlers)
            return dict(jax.config.values), dict(os.environ), list(warnings.filters), handlers

        before = surroundings()
        import bltjax
        after = surroundings()
        print(before == after, xla_bridge.backends_are_initialized(), jax.config.jax_enable_x64)
        heavy = ("grain", "orbax", "optax", "torch", "transformers", "matplotlib", "pyarrow", "tokenizers")
        print([name for name in heavy if name in sys.modules])
    """)
    assert found.split("\n")[:2] == ["True False False", "[]"]


@pytest.mark.parametrize("promise", PUBLIC_NAMES)
def test_public_name_and_its_arguments(promise: str):
    path, _, arguments = promise.removesuffix(")").partition("(")
    parts = path.split(".")
    modules = [".".join(parts[:n]) for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in MODULES]
    found = importlib.import_module(modules[-1])
    for part in parts[len(modules[-1].split(".")) :]:
        found = getattr(found, part)
    if arguments:
        expected = ast.parse(f"def f({arguments}): pass").body[0]
        assert isinstance(expected, ast.FunctionDef)
        parameters = list(inspect.signature(found).parameters.values())
        assert [p.name for p in parameters][: len(expected.args.args)] == [a.arg for a in expected.args.args]
        assert all(p.default is not p.empty for p in parameters[len(expected.args.args) :])
        with_default = [p for p in parameters[: len(expected.args.args)] if p.default is not p.empty]
        promised = [ast.literal_eval(default) for default in expected.args.defaults]
        assert [p.default for p in with_default][len(with_default) - len(promised) :] == promised


def test_public_names_are_all_there_is():
    import bltjax

    assert list(bltjax.__all__) == sorted(bltjax.__all__)
    assert all(hasattr(bltjax, name) for name in bltjax.__all__)


def test_every_file_has_its_test_and_every_test_its_file():
    # tests/a/test_b.py is the test of bltjax/a/b.py; those of experiments and scripts stand under their folder's name.
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    files |= {path.relative_to(ROOT).with_suffix("").as_posix() for path in python_files("experiments", "scripts")}
    files = {name for name in files if not name.endswith("__init__")}
    tests = {
        path.relative_to(ROOT / "tests").with_name(path.stem.removeprefix("test_")).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.relative_to(ROOT / "tests").parts[0] not in ("peers", "multihost", "aot")
    }
    assert tests - files == {"house", "readme"}, "tests that mirror no file"
    assert files - tests == set(), "files without a test"
