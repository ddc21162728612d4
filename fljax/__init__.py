"""fljax: a simulator of private federated learning in JAX.

Three ways in. Parts, for your own code and Jupyter::

    round = fljax.recipes.dp_fedavg(training, fljax.poisson(population=143, max_rate=0.3))
    state, info = jax.jit(round.step)(t, key, state, data.train, hparams)

Whole experiments, as on the command line::

    outcome = fljax.run(fljax.load("digits_fedavg").replace(rounds=20))

Results that were written before::

    fljax.results("results/digits_privacy_utility").sql("select * from trials")

Names are imported when they are first used, so that ``import fljax`` and running rounds need jax, flax, optax and
numpy only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fljax import audit as audit
    from fljax import recipes as recipes
    from fljax.cli.arguments import load_experiment as load  # noqa: F401
    from fljax.client.sgd import Training as Training
    from fljax.config import Experiment as Experiment
    from fljax.core.check import FljaxError as FljaxError
    from fljax.core.types import Hparams as Hparams
    from fljax.data import FederatedData as FederatedData
    from fljax.data import load_dataset as load_dataset
    from fljax.models import derive_groups as derive_groups
    from fljax.models import from_functions as from_functions
    from fljax.models import from_linen as from_linen
    from fljax.models import from_nnx as from_nnx
    from fljax.models import make_loss as make_loss
    from fljax.models import make_model as make_model
    from fljax.models import model_flops as model_flops
    from fljax.models import verify as verify
    from fljax.report.citation import citation as citation
    from fljax.server.execute import PerfFlags as PerfFlags
    from fljax.server.round import make_round as make_round
    from fljax.server.sampler import cyclic as cyclic
    from fljax.server.sampler import fixed_size as fixed_size
    from fljax.server.sampler import full as full
    from fljax.server.sampler import poisson as poisson
    from fljax.sim.run import run as run
    from fljax.sweep.run import run_sweep as run_sweep
    from fljax.sweep.store import open_results as results  # noqa: F401

_PLACES = {
    "Experiment": ("fljax.config", "Experiment"),
    "FederatedData": ("fljax.data", "FederatedData"),
    "FljaxError": ("fljax.core.check", "FljaxError"),
    "Hparams": ("fljax.core.types", "Hparams"),
    "PerfFlags": ("fljax.server.execute", "PerfFlags"),
    "Training": ("fljax.client.sgd", "Training"),
    "audit": ("fljax.audit", None),
    "citation": ("fljax.report.citation", "citation"),
    "cyclic": ("fljax.server.sampler", "cyclic"),
    "derive_groups": ("fljax.models", "derive_groups"),
    "fixed_size": ("fljax.server.sampler", "fixed_size"),
    "from_functions": ("fljax.models", "from_functions"),
    "from_linen": ("fljax.models", "from_linen"),
    "from_nnx": ("fljax.models", "from_nnx"),
    "full": ("fljax.server.sampler", "full"),
    "load": ("fljax.cli.arguments", "load_experiment"),
    "load_dataset": ("fljax.data", "load_dataset"),
    "make_loss": ("fljax.models", "make_loss"),
    "make_model": ("fljax.models", "make_model"),
    "model_flops": ("fljax.models", "model_flops"),
    "make_round": ("fljax.server.round", "make_round"),
    "poisson": ("fljax.server.sampler", "poisson"),
    "recipes": ("fljax.recipes", None),
    "results": ("fljax.sweep.store", "open_results"),
    "run": ("fljax.sim.run", "run"),
    "run_sweep": ("fljax.sweep.run", "run_sweep"),
    "verify": ("fljax.models", "verify"),
}
__all__ = ["__version__", *sorted(_PLACES)]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fljax' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def __dir__() -> list[str]:
    return __all__
