"""Error feedback: a client adds what compression has kept back to what it compresses next.

References: Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Stich, Cordonnier, Jaggi, NeurIPS 2018;
Karimireddy, Rebjock, Stich, Jaggi, ICML 2019.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fljax.compress.sparsify import on_support
from fljax.core import tree
from fljax.core.transform import UpdateTransform
from fljax.core.types import Bounds


def error_feedback(compressor: UpdateTransform) -> UpdateTransform:
    """Compresses the update plus the client's residual e, and keeps what was not sent.

    ``e += u; sent = compress(e); e -= sent``: all that a client sends plus its residual is the sum of its updates. With
    a public ``ctx.support`` nothing leaves it, and the rest of the residual waits.

    Args:
      compressor: a stage or a chain, such as ``chain(top_k(), quantise(8, leaves))``. It has to shrink what is left:
        a rescaled ``rand_k``, or stochastic rounding to very few levels, lets the residual grow.

    Guarantees:
      The residual stays with its client. Where the update or the residual is not finite, the client sends what its
      compressor makes of zeros and keeps its old residual. The residual has no bound, and so has what is sent: the clip
      that a private round needs must stand to the right. What a clip cuts off is not fed back.

    Info: ``residual``, the norm of e; the oracle's view only.
    """

    def init(params, hparams):
        state, own = compressor.init(params, hparams)
        return state, (jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params), own)

    def encode(key, ctx, payload, server_state, client_state):
        residual, own = client_state
        owed = jax.tree.map(lambda e, u: e + u.astype(jnp.float32), residual, payload["update"])
        finite = jnp.isfinite(tree.squared_norm(owed))
        allowed = jax.tree.map(lambda on, e: jnp.where(on & finite, e, 0.0), on_support(ctx, owed), owed)
        sent, new_own, info = compressor.encode(key, ctx, {**payload, "update": allowed}, server_state, own)
        left = jax.tree.map(jnp.subtract, owed, sent["update"])
        residual, own = tree.select(finite, (left, new_own), (residual, own))
        return sent, (residual, own), {**info, "residual": tree.norm(residual)}

    def bound(ctx, server_state, bounds: Bounds) -> Bounds:
        bounds = compressor.bound(ctx, server_state, bounds)
        covering = {"update", "payload"} & set(bounds) or set(bounds)
        return {name: jnp.full_like(b, jnp.inf) if name in covering else b for name, b in bounds.items()}

    return compressor._replace(name="feedback", init=init, encode=encode, bound=bound)
