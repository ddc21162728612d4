"""The house stands: every file imports from floors below its own only, and running rounds needs few packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2] / "fljax"

BASE = {"core"}
GROUND = BASE | {"data", "models"}
CONCERNS = {"client", "dropout", "privacy", "compress", "secure", "robust"}
SERVER = GROUND | CONCERNS
SIM = SERVER | {"server", "recipes", "config", "sections"}

MAY_IMPORT = {
    "core": set(),
    "sections": BASE,  # needs pydantic, hence used by the floors from sim on alone
    "config": BASE | {"sections"},
    "data": BASE,
    "models": BASE,
    **dict.fromkeys(CONCERNS, GROUND),  # never a sibling
    "server": SERVER,
    "recipes": SERVER | {"server"},
    "sim": SIM,
    "sweep": SIM | {"sim"},
    "audit": SIM | {"sim"},
    "leakage": SIM | {"sim", "audit"},
    "report": SIM | {"sim", "sweep"},
    "cli": SIM | {"sim", "sweep", "audit", "leakage", "report"},
}
"""Floor -> floors below it. Any import counts, also one inside a function."""

EXCEPTIONS: dict[str, set[str]] = {
    # The front door hands out names of all floors, imported when they are first used.
    "__init__.py": {*MAY_IMPORT},
    "__main__.py": {"cli"},
}
"""File -> what it may import."""


def floor_of(path: Path) -> str:
    """core/keys.py -> core, recipes.py -> recipes."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports_of(source: str) -> set[str]:
    """Floors of fljax that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor they come from"
            # `from fljax import recipes` imports a floor, `from fljax import __version__` does not
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "fljax" else [node.module]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fljax":
            names = [f"fljax.{node.attr}"]  # the front door opens on every floor
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("fljax.")}
    return {name for name in found if not name.startswith("__")}


FILES = sorted(HOUSE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_a_file_imports_only_from_floors_below_its_own(path):
    name = str(path.relative_to(HOUSE))
    floor = floor_of(path)
    allowed = EXCEPTIONS[name] if name in EXCEPTIONS else MAY_IMPORT[floor] | {floor}
    outside = imports_of(path.read_text()) - allowed
    assert not outside, f"{name} imports {sorted(outside)}, which is not below {floor}"


def test_the_walk_sees_every_form_of_import():
    source = (
        "import fljax.sim.run\nfrom fljax import recipes, __version__\ndef f():\n    from fljax.client import sgd\n"
    )
    assert imports_of(source + "import fljax\nfljax.poisson, fljax.__version__") == {
        "sim",
        "recipes",
        "client",
        "poisson",
    }


def test_every_floor_is_known():
    floors = {floor_of(p) for p in FILES} - {"__init__", "__main__"}
    assert floors <= set(MAY_IMPORT)


SPARE = ("pydantic", "tyro", "duckdb", "matplotlib", "jinja2", "dp_accounting")
"""Packages that running rounds must not need. rich is not among them: flax imports it."""

PROGRAM = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {SPARE!r}:
            raise ImportError(f"{{name}} is not needed to run rounds")

sys.meta_path.insert(0, Refuse())
import jax
import fljax
from fljax.core.types import Hparams

data = fljax.load_dataset("digits", clients=20)
model = fljax.make_model("mlp", data.input_shape, data.num_classes, hidden=(4,))
training = fljax.Training(model, fljax.make_loss(data.task), epochs=None, steps=1, batch_size=8)
round = fljax.recipes.fisher_dropout(training, fljax.poisson(20, 0.3))
hparams = Hparams(sampling_rate=0.3, clip=0.5, noise_multiplier=1.0, keep_rate=0.5).arrays()
state = round.init(jax.random.key(0), model.init(jax.random.key(1)), hparams)
state, info = jax.jit(round.step)(0, jax.random.key(2), state, data.train, hparams)
assert not set({SPARE!r}) & {{name.split(".")[0] for name in sys.modules}}
print("participants", int(info.participants))
"""


def test_import_and_one_round_need_no_package_but_jax_flax_optax_numpy():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("participants")
