"""Every shipped experiment is valid, and every shipped sweep expands to its trials."""

import pytest

from fljax.cli.arguments import load_experiment, shipped
from fljax.sweep.grid import expand

NAMES = sorted(shipped())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_experiment_is_what_its_header_says_it_is(name):
    experiment = load_experiment(name)
    assert experiment.name == name and experiment.title
    for control in experiment.controls:
        assert experiment.control(control).data == experiment.data
    if experiment.sweep is not None and experiment.sweep.search is None:
        trials = expand(experiment)
        assert len({t.experiment.model_dump_json() for t in trials}) == len(trials) > 1
