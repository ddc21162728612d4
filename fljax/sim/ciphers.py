"""From the section of homomorphic encryption to its stage, and what has to be said of it."""

from __future__ import annotations

from fljax.config import Experiment
from fljax.core.check import in_range
from fljax.core.transform import UpdateTransform
from fljax.sections import HeConfig
from fljax.secure.ckks import Ckks
from fljax.secure.encrypted import Selective, encrypted_sum
from fljax.server.sampler import Sampler

PUBLISHED = (
    "CKKS is not secure where decryptions are published (Li and Micciancio, EUROCRYPT 2021), and the global model is "
    "published in every round: cost and error are simulated, secrecy against those who see it is not claimed."
)
KEYS = {
    "clients": "All clients hold the secret key: one of them together with the server reads every upload.",
    "authority": "A third party holds the secret key: it sees every sum, and together with the server every upload.",
}
SELECTED = (
    "Encrypting {share:g} % of the coordinates is no defence by itself: an attacker who knows which they are was "
    "measured to reconstruct inputs with half of them encrypted, and the sum is decrypted all the same."
)
SPLIT = (
    "Encrypted coordinates carry shares of the noise: epsilon assumes that only sums over the least number of clients "
    "are decrypted, and that so many clients add their shares."
)


def encrypted(experiment: Experiment, inner: UpdateTransform, sampler: Sampler, size: int) -> UpdateTransform:
    """A chain under homomorphic encryption where it is asked for, else the chain itself.

    Args:
      inner: the chain. sampler: who takes part. size: P, the number of shared parameters.
    """
    he = experiment.he
    if he.kind == "none":
        return inner
    choose = Selective(he.share, he.rest, he.warmup_rounds, he.decay)
    least = (he.least or sampler.capacity) if experiment.he_splits_noise else None
    in_range(1, sampler.capacity, least=least or 1, remedy=f"The cohort has {sampler.capacity} clients.")
    return encrypted_sum(inner, scheme_of(he), size, choose, least, exact=he.mode == "exact")


def scheme_of(he: HeConfig) -> Ckks:
    """The parameters of CKKS of an experiment."""
    return Ckks(he.degree, he.bits, he.scale_bits, he.public_key).check()


def he_caveats(experiment: Experiment) -> tuple[str, ...]:
    """What belongs to everything that is said of a run under CKKS; nothing where there is none."""
    he = experiment.he
    if he.kind == "none":
        return ()
    caveats = [PUBLISHED, KEYS[he.key]]
    if he.share < 1:
        caveats.append(SELECTED.format(share=100 * he.share))
    if experiment.he_splits_noise:
        caveats.append(SPLIT)
    return tuple(caveats)
