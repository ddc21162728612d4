"""FisherDropout: clients train and send the neurons that carry the most Fisher information, by one public ranking.

The ranking is computed by the server from the updates it has already released (see ``scores``); it is therefore
public, shared by all clients, needs no upload of positions and costs no privacy. Idea after Wang, Yang, Dai,
"Lightweight differential privacy federated learning based on gradient dropout", Computer Science 51(1), 2024; this
mask source is fljax's own, since masks computed from a client's private data are not differentially private.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fljax.core.types import Array, Ctx, PyTree, SubModel
from fljax.dropout.ranked import ranked_submodel
from fljax.dropout.scores import Energy, neuron_scores, no_energy, noise_floor, observe_energy


def fisher_dropout(groups: Any, forward: str = "submodel") -> SubModel:
    """The ranking by noise-corrected energy of the released updates, averaged with ``hparams.mask_decay``."""

    def learn(ctx: Ctx, energy: Energy, released: PyTree, std: Array) -> Energy:
        update = released["update"]
        support = ctx.support if ctx.support is not None else jax.tree.map(jnp.ones_like, update)
        return observe_energy(energy, update, support, std, ctx.hparams.mask_decay)

    return ranked_submodel(
        groups,
        forward,
        start=no_energy,
        score=lambda ctx, energy, params: neuron_scores(energy, groups),
        learn=learn,
        floor=lambda ctx, energy: noise_floor(energy, groups),
    )
