"""Mistakes around the round: samplers, keys, ledger, checkpoints, calibration of a run, configuration, data."""

from __future__ import annotations

from mutant import Mutant

SAMPLER, KEYS = "fljax/server/sampler.py", "fljax/core/keys.py"
LEDGER, CHECKPOINT = "fljax/privacy/ledger.py", "fljax/sim/checkpoint.py"
BUILD, CONFIG = "fljax/sim/build.py", "fljax/config.py"

T_SAMPLER, T_MATCHES = "tests/server/test_sampler.py::", "tests/statistical/test_accounting_matches.py::"
T_CHECKPOINT = "tests/sim/test_sim_checkpoint.py::"

SAMPLERS = (
    Mutant(
        "truncation_keeps_low_ids",
        15,
        "a cohort that overflows keeps the clients with the lowest ids",
        SAMPLER,
        "    lowest, ids = jax.lax.top_k(-scores, slots)\n        real = -lowest < hparams.sampling_rate\n",
        "    chosen = scores < hparams.sampling_rate\n"
        "        ids = jnp.nonzero(chosen, size=slots, fill_value=population)[0].astype(jnp.int32)\n"
        "        real = ids < population\n",
        T_SAMPLER + "test_a_cohort_that_overflows_keeps_a_uniformly_random_subset",
    ),
    Mutant(
        "truncation_untold",
        20,
        "the accountant is not told that cohorts are cut off",
        SAMPLER,
        'kind = "poisson" if slots >= population else "truncated_poisson"',
        'kind = "poisson"',
        T_SAMPLER + "test_the_law_tells_the_accountant_how_cohorts_are_drawn",
    ),
    Mutant(
        "fixed_size_as_poisson",
        20,
        "cohorts of a fixed size are accounted as Poisson cohorts",
        SAMPLER,
        'return _exact("fixed_size", population, cohort, sample)',
        'return _exact("poisson", population, cohort, sample)',
        T_SAMPLER + "test_the_law_tells_the_accountant_how_cohorts_are_drawn",
    ),
    Mutant(
        "poisson_as_fixed_size",
        20,
        "Poisson cohorts have a fixed size, as those of a shuffle",
        SAMPLER,
        "    lowest, ids = jax.lax.top_k(-scores, slots)\n        real = -lowest < hparams.sampling_rate\n",
        "    lowest, ids = jax.lax.top_k(-scores, slots)\n"
        "        real = jnp.arange(slots) < jnp.round(hparams.sampling_rate * population)\n",
        T_SAMPLER + "test_poisson_includes_everybody_independently_with_probability_q",
    ),
    Mutant(
        "fixed_size_with_replacement",
        20,
        "a client may be in a cohort twice",
        SAMPLER,
        "return Cohort(jax.lax.top_k(scores, cohort)[1], jnp.ones(cohort, bool))",
        "return Cohort((scores[:cohort] * population).astype(jnp.int32), jnp.ones(cohort, bool))",
        T_SAMPLER + "test_fixed_size_draws_every_subset_alike",
    ),
    Mutant(
        "cyclic_order_redrawn",
        20,
        "the cyclic order is drawn anew in every round",
        SAMPLER,
        "        order = jax.random.permutation(key, population)\n        return Cohort(order[(t * cohort",
        "        order = jax.random.permutation(jax.random.fold_in(key, t), population)\n"
        "        return Cohort(order[(t * cohort",
        T_SAMPLER + "test_cyclic_covers_everybody_equally",
    ),
    Mutant(
        "rate_of_the_sweep",
        21,
        "the accounted rate is the largest of the sweep",
        SAMPLER,
        "return SamplingLaw(kind, float(hparams.sampling_rate), population",
        "return SamplingLaw(kind, float(max_rate), population",
        T_SAMPLER + "test_the_law_tells_the_accountant_how_cohorts_are_drawn",
    ),
    Mutant(
        "expected_cohort_of_the_sweep",
        21,
        "the public denominator is the number of slots",
        SAMPLER,
        "lambda h: h.sampling_rate * population, law)",
        "lambda h: jnp.float32(slots), law)",
        T_SAMPLER + "test_the_law_tells_the_accountant_how_cohorts_are_drawn",
    ),
    Mutant(
        "one_cohort_for_all_rounds",
        17,
        "every round draws the same cohort",
        SAMPLER,
        "scores = jax.random.uniform(jax.random.fold_in(key, t), (population,))\n        lowest",
        "scores = jax.random.uniform(key, (population,))\n        lowest",
        T_SAMPLER + "test_poisson_rounds_are_independent_of_each_other",
    ),
)

KEYED = (
    Mutant(
        "streams_by_length",
        16,
        "streams with names of one length share their numbers",
        KEYS,
        "zlib.crc32(name.encode())",
        "len(name)",
        "tests/core/test_keys.py::test_streams_are_distinct_and_depend_on_the_key",
    ),
    Mutant(
        "client_keys_by_slot",
        17,
        "a client's key depends on its place in the cohort",
        KEYS,
        "jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)",
        "jax.random.split(key, ids.shape[0])",
        "tests/core/test_keys.py::test_client_keys_follow_the_id_and_not_the_slot",
    ),
)

RUNS = (
    Mutant(
        "ledger_unchecked",
        30,
        "a checkpoint is resumed whatever it has spent",
        LEDGER,
        "if entry == self.entry(done):",
        "if isinstance(entry, dict):",
        "tests/privacy/test_ledger.py::test_any_other_entry_is_refused_in_one_line",
    ),
    Mutant(
        "ledger_forgets_event",
        30,
        "a checkpoint is resumed under another noise",
        LEDGER,
        "if entry == self.entry(done):",
        'if isinstance(entry, dict) and entry | {"event": self.event} == self.entry(done):',
        "tests/privacy/test_ledger.py::test_any_other_entry_is_refused_in_one_line",
    ),
    Mutant(
        "resume_from_zero",
        30,
        "a resumed run begins to count at zero",
        CHECKPOINT,
        'Running(int(header["done"]), state, history)',
        "Running(0, state, history)",
        T_CHECKPOINT + "test_a_round_trip_is_exact_to_the_bit",
    ),
    Mutant(
        "resume_of_another",
        30,
        "the checkpoint of another experiment is resumed",
        CHECKPOINT,
        "if header.get(name) != value:",
        "if name not in header:",
        T_CHECKPOINT + "test_the_checkpoint_of_another_experiment_is_refused",
    ),
    Mutant(
        "calibrated_for_another_sampler",
        20,
        "noise is calibrated for Poisson cohorts, whatever will run",
        BUILD,
        "asked.append((law, target,",
        'asked.append((law._replace(kind="poisson", capacity=None), target,',
        T_MATCHES + "test_a_target_is_met_by_the_noise_that_will_run",
    ),
    Mutant(
        "calibrated_at_another_rate",
        21,
        "noise is calibrated for the largest sampling rate that the program can run",
        BUILD,
        "asked.append((law, target,",
        "asked.append((law._replace(rate=law.rate / 2), target,",
        T_MATCHES + "test_a_target_is_met_by_the_noise_that_will_run",
    ),
    Mutant(
        "realised_under_privacy",
        5,
        "an experiment may ask for privacy and a realised denominator",
        CONFIG,
        'and self.server.denominator == "realised":',
        'and self.server.denominator == "none":',
        T_MATCHES + "test_experiments_that_contradict_privacy_are_refused_when_they_are_written",
    ),
    Mutant(
        "noise_without_a_clip",
        7,
        "an experiment may ask for noise without a clip",
        "fljax/sections/privacy.py",
        "if noisy and self.clip == math.inf:",
        "if noisy and self.clip < 0:",
        T_MATCHES + "test_experiments_that_contradict_privacy_are_refused_when_they_are_written",
    ),
    Mutant(
        "batch_statistics",
        25,
        "modules with running statistics over examples are accepted",
        "fljax/models/model.py",
        '    raise FljaxError(\n        f"Expected a module without mutable state',
        '    return\n    raise FljaxError(\n        f"Expected a module without mutable state',
        "tests/models/test_models_model.py::test_modules_that_cannot_be_trained_privately_are_refused_in_one_line",
    ),
    Mutant(
        "one_seed_for_a_sweep",
        17,
        "all seeds of a sweep draw the same cohorts and the same noise",
        "fljax/sweep/run.py",
        "experiments[r].seed for r in rows",
        "experiments[0].seed for r in rows",
        "tests/sim/test_sim_run.py::test_seeds_and_numbers_make_different_trials",
    ),
    Mutant(
        "shard_of_another",
        25,
        "a client sees an example of the client before it",
        "fljax/data/federated.py",
        "start = self.offsets[row]\n",
        "start = jnp.maximum(self.offsets[row] - 1, 0)\n",
        "tests/golden/test_golden_batches.py::test_an_epoch_visits_exactly_the_clients_own_examples_once",
    ),
)

MUTANTS = (*SAMPLERS, *KEYED, *RUNS)
