"""The vocabulary of fljax: what a round is made of, as named tuples of arrays and of pure functions.

Shape letters, used in every docstring: ``N`` population, ``C`` cohort slots, ``M`` examples of a client, ``B`` batch,
``P`` parameters, ``D`` features, ``K`` classes, ``T`` rounds, ``R`` trials. The clipping norm is ``S``, never ``C``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array
PyTree = Any
Params = Any
Payload = dict[str, PyTree]
"""What one client uploads, by named part; the part ``"update"`` is the model update."""
Bounds = dict[str, Array]
"""One L2 bound per named part of a payload: how far one client can move the sum of that part."""


class Positions(NamedTuple):
    """Which words of an upload there are, agreed on before any is sent: known to all parties of a secure sum.

    rows: {group: [C, n]} 0/1 by slot, the neurons whose words a client sends; zero for who is not there.
    open: None, or a tree like the parameters: 1 where enough clients of the round hold a coordinate.
    """

    rows: dict[str, Array]
    open: PyTree = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hparams:
    """Every number that may be swept. All are traced: a new value never recompiles, a vector of them is a sweep.

    Attributes:
      client_lr: learning rate of the local optimiser in round 0.
      client_lr_decay: factor on client_lr per round (1 = constant).
      server_lr: learning rate of the server optimiser in round 0.
      server_lr_decay: factor on server_lr per round (1 = constant).
      lr_warmup: rounds of linear warm-up of both rates (0 = none).
      server_momentum: momentum (SGD) or first-moment decay (Adam, Yogi) of the server optimiser.
      proximal: weight mu of the proximal term (FedProx, Ditto); 0 = none.
      sampling_rate: q, the probability that a client takes part in a round (Poisson sampling).
      availability: probability that a sampled client answers.
      clip: S, the L2 norm to which a client's payload is clipped (inf = no clipping).
      clip_quantile: quantile of the clients' norms that adaptive clipping aims at.
      clip_rate: learning rate of adaptive clipping, in the exponent.
      clip_bit_noise: std of the noise on adaptive clipping's count (0 = a twentieth of the expected cohort).
      noise_multiplier: z = std of the noise on the sum / L2 sensitivity of the sum (0 = no noise); 1 / (epsilon of
        one upload) for local randomisers with a pure epsilon.
      noise_scale: factor on the noise alone, C / C' where a cohort of C stands for a simulated one of C' (1 = none).
      integer_step: size of one integer step of distributed mechanisms, relative to the clip.
      compress_rate: share of the values of an update that sparsification sends (1 = all).
      keep_rate: share of the neurons of each layer that clients train and send (1 = all).
      explore: share of neurons that get a random rank at each refresh of the masks.
      mask_decay: decay of the moving average behind the neuron scores.
      warmup_rounds: dense rounds before the first mask.
      refresh_rounds: rounds between two choices of the masks (0 = choose once, after the warm-up).
      hysteresis: bonus on the score of neurons that are kept already, relative to the spread of the scores.
      query_share: share of the privacy budget that a query of scores takes.
      choice_rho: what one private choice of the masks costs, in zero-concentrated DP.
      distill: weight of learning from the widest sub-model, for ordered widths that are drawn at every step.
      auto_keep: keep the neurons whose energy exceeds this many times that of the noise (0 = keep by rate alone).
      extra: numbers of stages that users write themselves, by name.
    """

    client_lr: Any = 0.1
    client_lr_decay: Any = 1.0
    server_lr: Any = 1.0
    server_lr_decay: Any = 1.0
    lr_warmup: Any = 0.0
    server_momentum: Any = 0.0
    proximal: Any = 0.0
    sampling_rate: Any = 1.0
    availability: Any = 1.0
    clip: Any = float("inf")
    clip_quantile: Any = 0.5
    clip_rate: Any = 0.2
    clip_bit_noise: Any = 0.0
    noise_multiplier: Any = 0.0
    noise_scale: Any = 1.0
    integer_step: Any = 1e-3
    compress_rate: Any = 1.0
    keep_rate: Any = 1.0
    explore: Any = 0.0
    mask_decay: Any = 0.9
    warmup_rounds: Any = 0
    refresh_rounds: Any = 0
    hysteresis: Any = 0.0
    query_share: Any = 0.1
    choice_rho: Any = 0.01
    distill: Any = 1.0
    auto_keep: Any = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> Hparams:
        """The same numbers as arrays: float32, but int32 for counts of rounds."""
        return jax.tree.map(lambda v: jnp.asarray(v, jnp.int32 if isinstance(v, int) else jnp.float32), self._typed())

    def _typed(self) -> Hparams:
        counts = {"warmup_rounds", "refresh_rounds"}
        values = {k: (int(v) if k in counts else float(v)) for k, v in vars(self).items() if k != "extra"}
        return Hparams(**values, extra={k: float(v) for k, v in self.extra.items()})


class Ctx(NamedTuple):
    """What the protocol knows in a round: public to the protocol, not public in the sense of differential privacy.

    On the server ``id`` and ``slot`` are -1. ``support`` is None (noise on every coordinate) or a tree like the
    parameters: 1 where the noise lives, a public set; that of one client on a client, of all of them on the server.
    ``bounds`` is the L2 bound of the whole chain of transforms. ``inclusion`` is None, or where clients keep different
    shares, a tree like the parameters: the expected, public share of the clients that hold a coordinate. ``presence``
    is what the parties of a secure sum learn of each other in any case: by slot, 0 nobody, 1 a client that does not
    answer, 2 one that does; None outside of a round. ``positions`` is None where every upload has a word for every
    value.
    """

    round: Array  # () int32, scan's round index
    hparams: Hparams
    round_key: Key  # shared by all clients of the round
    id: Array  # () int32, of one client
    slot: Array  # () int32, place in the cohort
    expected: Array  # () float32, public expected cohort size
    keep_rate: Array  # () float32, of one client
    support: PyTree = None
    bounds: Bounds | None = None
    inclusion: PyTree = None
    presence: Array | None = None  # [C] int32
    positions: Positions | None = None


class Cohort(NamedTuple):
    """The clients of a round. ids [C] int32, an empty slot has id N; real [C] bool. Empty slots come last."""

    ids: Array
    real: Array


class SamplingLaw(NamedTuple):
    """How cohorts are drawn, as the accountant must know it.

    kind: ``poisson`` | ``truncated_poisson`` | ``fixed_size`` | ``full`` | ``cyclic`` | ``cyclic_poisson``.
    rate: q, inclusion probability of one client in one round (cohort / population for fixed_size and cyclic).
    population: N, or None where it is not known (then delta < 1/N cannot be checked).
    capacity: static cohort slots B of a truncated Poisson sampler, else None.
    groups: number of groups of cyclic_poisson, which take turns; 1 for all others.
    """

    kind: str
    rate: float
    population: int | None = None
    capacity: int | None = None
    groups: int = 1


class Broadcast(NamedTuple):
    """What a client receives: parameters, server-side state of the algorithm (SCAFFOLD's c), parameter mask or None."""

    params: Params
    algorithm: PyTree
    mask: PyTree


class LocalUpdate(NamedTuple):
    """Local training, written for ONE client.

    split: (params) -> (shared, private)       which parameters travel; private is {} where all of them do
    init: (key, params, hparams) -> (algorithm_state, client_state)   server-side state; private state of ONE client
    run: (key, ctx, broadcast, client_state, shard) -> (payload, client_state, info)
        payload holds "update" (a tree like the shared parameters) and "weight" (() number of examples)
    absorb: (ctx, algorithm_state, total) -> algorithm_state     from the released total, after decoding
    personal: (shared, client_state) -> params of one client's own model, or None where all clients use the same
    parts: names of the payload's parts
    claim: (hparams) -> Claim of noise that the client adds while it trains (record level), or None
    """

    split: Callable
    init: Callable
    run: Callable
    absorb: Callable
    personal: Callable | None = None
    parts: tuple[str, ...] = ("update", "weight")
    claim: Callable | None = None


class Selection(NamedTuple):
    """Which neurons come first: of a round, or of one client where clients choose for themselves.

    ranks: {group: [n] int32}, 0 = kept first. most: {group: () int32} at most so many are kept, or None for no limit.
    told: {group: [n] 0/1} the neurons that a client said it keeps, where that is no rank and a number; or None.
    """

    ranks: dict[str, Array]
    most: dict[str, Array] | None = None
    told: dict[str, Array] | None = None


class OwnSelection(NamedTuple):
    """How ONE client chooses neurons for itself, where the choice is not the server's.

    init: (params) -> client_state
    choose: (key, ctx, params, client_state, shard, shared selection) -> (Selection, client_state)
    learn: (ctx, client_state, what it sent: the encoded update) -> client_state
    """

    init: Callable
    choose: Callable
    learn: Callable


class SubModel(NamedTuple):
    """Dropout of neurons: which part of the model a client trains and sends.

    init: (params, hparams) -> state
    select: (ctx, state, params) -> Selection              from public values and the public key of the round alone
    masks: (ctx, Selection) -> {group: [n] 0/1 mask}       of one client, from its ``ctx.keep_rate``
    observe: (ctx, state, released, std) -> state          post-processing of what was released; std of its noise
    deploy: (t, hparams, state, params) -> params          the model to use after round t
    groups: the neuron groups of the model (static)
    forward: ``submodel`` (train only the kept neurons) or ``upload_only`` (train all, send the kept)
    source: what the masks are computed from, one of ``privacy.validity.SOURCES`` (static)
    support: where the noise lives, ``mask`` or ``dense`` (static)
    positions: how a client writes down whose neurons it kept, where the server cannot know: ``bitmap`` or ``list``
    own: how a client chooses for itself, or None where all follow the server's selection
    query: (key, ctx, params, shard) -> {group: [n]} scores of ONE client with joint L2 norm at most 1, sent beside the
      update as the part ``query`` and noised with it; or None
    last: (state) -> the Selection of the round before, to observe how masks move; or None
    release: (key, ctx, sum of the queries) -> {group: [n]} what the server publishes of them by a mechanism of its own;
      or None where the chain's noise hides them. It asks in the rounds before a choice alone.
    spends: (hparams) -> what ``release`` costs, by name, for ``privacy.mechanisms``; or None
    """

    init: Callable
    select: Callable
    masks: Callable
    observe: Callable
    deploy: Callable
    groups: Any
    forward: str
    source: str = "released"
    support: str = "mask"
    own: OwnSelection | None = None
    query: Callable | None = None
    last: Callable | None = None
    release: Callable | None = None
    spends: Callable | None = None
    positions: str = "bitmap"


class Crowd(NamedTuple):
    """What an omniscient adversary sees of a round, between the clients and the aggregator.

    sent: payloads, leaves [C, ...]. honest, malicious: [C] bool, who sent something finite and is honest; who answered
    and is malicious. ids: [C] int32. aggregate: (payloads like sent) -> what the aggregator would make of them.
    """

    sent: PyTree
    honest: Array
    malicious: Array
    ids: Array
    aggregate: Callable


class Adversary(NamedTuple):
    """Malicious clients, simulated: who they are, what they see of their data, and what they send.

    name: for messages.
    members: (key, hparams, t, ids) -> bool like ids: who acts maliciously in round t; key is the same in all rounds
    poison: (ctx, malicious, shard) -> shard, what ONE client sees of its data; None: its own data
    forge: (key, ctx, Crowd) -> payloads [C, ...], of which those of the malicious clients replace what they computed,
      after their encoding (a malicious client obeys no clip); None: they send what they computed
    """

    name: str
    members: Callable
    poison: Callable | None = None
    forge: Callable | None = None


class Round(NamedTuple):
    """One synchronous round: its parts, and their composition ``step``.

    init: (key, params, hparams) -> RoundState
    step: (t, key, state, data, hparams, given=None) -> (RoundState, RoundInfo)    given: the sum of the payloads, where
        the host made it of those of the transcript (a real protocol); the clients then run for their states alone
    transcript: (t, key, state, data, hparams) -> Transcript    the round again, with every intermediate value kept
    law: (hparams) -> SamplingLaw                                concrete numbers in, for the accountant
    claims: (hparams, params) -> Claim                           what the stages promise, for the accountant
    deployed: (t, state, hparams) -> params                      the shared model to use after round t
    """

    init: Callable
    step: Callable
    transcript: Callable
    law: Callable
    claims: Callable
    deployed: Callable
