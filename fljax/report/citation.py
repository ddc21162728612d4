"""What to cite: the works that an experiment rests on, as BibTeX."""

from __future__ import annotations

import re
from importlib import resources

import fljax
from fljax.config import Experiment

ALGORITHMS = {
    "fedavg": "mcmahan2017communication",
    "fedsgd": "mcmahan2017communication",
    "fedprox": "li2020federated",
    "scaffold": "karimireddy2020scaffold",
    "ditto": "li2021ditto",
}
MECHANISMS = {
    "none": (),
    "central_gaussian": ("mcmahan2018learning",),
    "central_tree": ("mcmahan2018learning", "kairouz2021practical"),
    "central_banded": ("mcmahan2018learning", "choquettechoo2023amplified"),
    "local_gaussian": ("dwork2014algorithmic",),
    "local_laplace": ("dwork2006calibrating",),
    "local_duchi": ("duchi2018minimax",),
    "local_krr": ("kairouz2014extremal",),
    "local_privunit": ("bhowmick2018protection",),
    "distributed_discrete_gaussian": ("kairouz2021distributed",),
    "distributed_skellam": ("agarwal2021skellam",),
    "record_gaussian": ("abadi2016deep",),
}
SOURCES = {
    "fisher": ("wang2024lightweight",),
    "exact": ("wang2024lightweight",),
    "random": ("caldas2018expanding",),
    "random_per_client": ("caldas2018expanding",),
    "ordered": ("diao2021heterofl",),
    "rolling": ("alam2022fedrolex",),
    "magnitude": ("han2015learning",),
    "gumbel": ("durfee2019practical",),
}
"""Sources of masks that follow a published method; the others have no entry."""
MASKS = {
    "otp": ("bonawitz2017practical",),
    "flashe": ("jiang2021flashe",),
    "pairwise": ("bonawitz2017practical", "bell2020secure"),
    "double_mask": ("bonawitz2017practical", "bell2020secure"),
}
"""Masks that follow a published method."""
RULES = {
    "median": ("yin2018byzantine",),
    "trimmed_mean": ("yin2018byzantine",),
    "mean_around_median": ("xie2018generalized",),
    "sign_majority": ("bernstein2019signsgd",),
    "krum": ("blanchard2017machine",),
    "multi_krum": ("blanchard2017machine",),
    "bulyan": ("elmhamdi2018hidden",),
    "geometric_median": ("pillutla2022robust",),
    "centred_clipping": ("karimireddy2021learning",),
    "divide_and_conquer": ("shejwalkar2021manipulating",),
    "flame": ("nguyen2022flame",),
    "fltrust": ("cao2021fltrust",),
    "foolsgold": ("fung2020limitations",),
    "norm_bound": ("sun2019can",),
    "adaptive_norm_bound": ("allouah2025adaptive",),
    "nearest_neighbour_mixing": ("allouah2023fixing",),
    "bucketing": ("karimireddy2022byzantine",),
    "groups": ("velicheti2021secure",),
}
ATTACKS = {
    "label_flip": ("tolpegin2020data",),
    "backdoor": ("bagdasaryan2020how",),
    "free_rider": ("fraboni2021free",),
    "ipm": ("xie2019fall",),
    "alie": ("baruch2019little",),
    "min_max": ("shejwalkar2021manipulating",),
    "min_sum": ("shejwalkar2021manipulating",),
    "mimic": ("karimireddy2022byzantine",),
}
"""Attacks that follow a published method."""
DATA = {
    "digits": ("alpaydin1998optical",),
    "mnist": ("lecun1998gradient",),
    "mnist_by_writer": ("lecun1998gradient", "yadav2019cold"),
    "fashion_mnist": ("xiao2017fashion",),
    "cifar10": ("krizhevsky2009learning",),
    "femnist": ("caldas2018leaf",),
    "shakespeare": ("mcmahan2017communication",),
    "heart_disease": ("janosi1989heart",),
    "synthetic": ("li2020federated",),
}


METHODS = ("algorithm", "optimizer", "mechanism", "source", "masking", "name", "partition", "rule", "kind")
"""Last parts of the names of fields that choose a method."""

PROBES = {
    "labels": ("wainakh2022user",),
    "analytic": ("phong2018privacy", "geiping2020inverting"),
    "inversion": ("zhu2019deep", "geiping2020inverting", "wang2004image"),
    "membership": ("yeom2018privacy", "watson2022importance"),
    "exposure": ("so2023securing",),
}
"""What ``fljax leakage`` follows, by attack; the others are this project's own."""


def citation(experiment: Experiment) -> str:
    """BibTeX of the methods and data of an experiment, and of fljax itself.

    A method is named by the work that it follows, as the docstrings say; what is this project's own has no entry. To
    read it in a notebook, print it.

    Args:
      experiment: with or without a sweep; methods that are swept are named, too.
    """
    entries = references()
    own = (
        "@software{fljax,\n  title   = {fljax: a simulator of private federated learning in {JAX}},\n"
        f"  author  = {{{{The fljax authors}}}},\n  year    = {{2026}},\n  version = {{{fljax.__version__}}}\n}}"
    )
    return "\n\n".join([own, *(entries[key] for key in works(experiment))]) + "\n"


def references() -> dict[str, str]:
    """All works that fljax knows, by key."""
    text = resources.files("fljax.report").joinpath("references.bib").read_text("utf-8")
    found = re.findall(r"^@\w+\{([^,]+),\n.*?^\}$", text, re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^@\w+\{.*?^\}$", text, re.DOTALL | re.MULTILINE)
    return dict(zip(found, blocks, strict=True))


def works(experiment: Experiment) -> list[str]:
    """Keys of the works, each once: training, privacy, dropout, compression, encryption, malicious clients, data."""
    keys: list[str] = []
    for e in _variants(experiment):
        keys += _training(e) + _privacy(e) + _savings(e) + _encryption(e) + _malicious(e) + _data(e)
    if experiment.sweep is not None and experiment.privacy.mechanism != "none":
        keys.append("papernot2022hyperparameter")
    return list(dict.fromkeys(keys))


def _variants(experiment: Experiment) -> list[Experiment]:
    """The experiment as it stands, and with every swept choice between methods."""
    variants = [experiment]
    for name, values in _swept(experiment).items():
        if name.rsplit(".", 1)[-1] in METHODS:
            variants += [_with(experiment, name, value) for value in values]
    return variants


def _swept(experiment: Experiment) -> dict[str, tuple]:
    sweep = experiment.sweep
    return {} if sweep is None else {**sweep.grid, **sweep.zip}


def _with(experiment: Experiment, name: str, value: object) -> Experiment:
    """A copy for reading one field: cells are validated where they run, with all their other fields."""
    section, _, field = name.partition(".")
    return experiment.model_copy(update={section: getattr(experiment, section).model_copy(update={field: value})})


def _training(e: Experiment) -> list[str]:
    keys = ["mcmahan2017communication", ALGORITHMS[e.client.algorithm]]
    if e.client.shared is not None:
        keys.append("arivazhagan2019federated")
    if e.server.optimizer != "sgd":
        keys.append("reddi2021adaptive")
    elif e.server.momentum > 0:
        keys.append("hsu2019measuring")
    return keys


def _malicious(e: Experiment) -> list[str]:
    parts = [e.robust.rule, *e.robust.before, *(["groups"] if e.robust.groups > 1 else [])]
    return [key for part in parts for key in RULES.get(part, ())] + [*ATTACKS.get(e.attack.kind, ())]


def _privacy(e: Experiment) -> list[str]:
    mechanism = e.privacy.mechanism
    keys = [*MECHANISMS.get(mechanism, ())]
    if e.privacy.clipping == "adaptive":
        keys.append("andrew2021differentially")
    if mechanism.startswith("distributed"):
        keys.append("mironov2017renyi")
    elif mechanism != "none":
        keys.append("doroshenko2022connect")
    return keys


def _savings(e: Experiment) -> list[str]:
    keys = [*SOURCES.get(e.dropout.source, ())]
    if e.dropout.source != "none" and e.dropout.tiers != (1.0,):
        keys.append("wen2021federated")
    c = e.compress
    if c.sparsify == "topk" or (c.sparsify != "none" and c.error_feedback):
        keys.append("stich2018sparsified")
    if c.sparsify == "randk" and e.privacy.mechanism == "central_gaussian":
        keys.append("hu2024federated")
    if c.quantise == "stochastic":
        keys.append("alistarh2017qsgd")
    if c.quantise == "sign":
        keys.append("karimireddy2019error")
    return keys + list(MASKS.get(e.secure.masking, ()))


def _encryption(e: Experiment) -> list[str]:
    keys = ["dworkin2007recommendation"] if e.channel.kind == "aes_gcm" else []
    if e.he.kind == "ckks":
        keys += ["cheon2017homomorphic", "benaissa2021tenseal"]
        keys += ["jin2023fedml"] if e.he.share < 1 else []
    return keys + (["shamir1979how"] if e.secure.mode == "protocol" else [])


def _data(e: Experiment) -> list[str]:
    keys = [*DATA.get(e.data.name, ())]
    if e.data.partition == "dirichlet":
        keys.append("yurochkin2019bayesian")
    return keys
