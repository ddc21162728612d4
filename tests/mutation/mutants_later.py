"""Mistakes in noise that is correlated over rounds, in record-level steps, in masks that are judged, and in audits."""

from __future__ import annotations

from mutant import Mutant

MECHANISMS, CORRELATED = "fljax/privacy/mechanisms.py", "fljax/privacy/correlated.py"
RECORD, DPSGD = "fljax/privacy/record.py", "fljax/client/dpsgd.py"
VALIDITY, ESTIMATE = "fljax/privacy/validity.py", "fljax/audit/estimate.py"
ACCOUNTING, VOTES = "fljax/privacy/accounting.py", "fljax/dropout/votes.py"

T_CORRELATED, T_ESTIMATE = "tests/privacy/test_correlated.py::", "tests/audit/test_audit_estimate.py::"
T_VALIDITY = "tests/privacy/test_validity.py::"
T_BESIDE = "tests/privacy/test_accounting_beside.py::"
T_RECORD, T_DPSGD = "tests/privacy/test_record.py::", "tests/client/test_dpsgd.py::"

CORRELATION = (
    Mutant(
        "tree_draws_again",
        38,
        "a node of the tree is subtracted with other numbers than it was added with",
        CORRELATED,
        "add_gaussian(jax.random.wrap_key_data(keys[level]), nothing",
        "add_gaussian(jax.random.fold_in(key, level + 1), nothing",
        T_CORRELATED + "test_streamed_noise_of_the_tree_is_that_of_its_definition",
    ),
    Mutant(
        "tree_never_ends",
        38,
        "one tree spans all rounds, and a client is in it more often than is accounted",
        CORRELATED,
        "t = ctx.round % epoch + 1",
        "t = ctx.round + 1",
        T_CORRELATED + "test_no_client_of_the_cyclic_sampler_spends_more_than_is_accounted",
    ),
    Mutant(
        "tree_height_unaccounted",
        38,
        "a client is accounted as if it were in one node of the tree",
        MECHANISMS,
        "height = min(epoch, rounds).bit_length()",
        "height = 1",
        T_CORRELATED + "test_one_participation_in_a_tree_costs_its_height",
    ),
    Mutant(
        "strategy_not_normalised",
        38,
        "the strategy is scaled to a first coefficient of 1 instead of columns of norm 1",
        CORRELATED,
        "return found / np.linalg.norm(found)",
        "return found / found[0]",
        T_CORRELATED + "test_columns_of_a_strategy_have_norm_one",
    ),
    Mutant(
        "bands_without_participations",
        38,
        "clients may come again while their bands still overlap",
        MECHANISMS,
        "if bands > apart:",
        "if bands < 0:",
        T_CORRELATED + "test_laws_under_which_clients_come_again_too_early_are_refused",
    ),
    Mutant(
        "bands_without_separation",
        38,
        "a strategy is built for a sampler whose clients come again too early",
        CORRELATED,
        "if apart < bands:",
        "if bands < 0:",
        T_CORRELATED + "test_what_cannot_be_promised_is_refused_when_it_is_built",
    ),
)

RECORDS = (
    Mutant(
        "record_noise_without_clip",
        39,
        "the noise of a local step is z, whatever the clip is",
        RECORD,
        "jnp.where(multiplier > 0, multiplier * clip, 0.0)",
        "multiplier",
        T_RECORD + "test_noise_has_the_standard_deviation_z_times_s",
    ),
    Mutant(
        "examples_are_not_clipped",
        39,
        "the gradient of an example enters the sum whole",
        "fljax/privacy/jaxprivacy.py",
        "l2_clip_norm=clip,",
        "l2_clip_norm=clip + jnp.inf,",
        T_RECORD + "test_one_example_moves_the_sum_by_at_most_the_clip",
    ),
    Mutant(
        "padding_examples_count",
        14,
        "empty places of a local batch count as examples",
        "fljax/privacy/jaxprivacy.py",
        "is_padding_example=batch.mask == 0",
        "is_padding_example=batch.mask < 0",
        T_RECORD + "test_what_is_in_padding_does_not_matter",
    ),
    Mutant(
        "realised_batch",
        39,
        "a local step divides by the number of examples that were drawn",
        DPSGD,
        "lambda g: g / size, total",
        "lambda g: g / jnp.maximum(jnp.sum(batch.mask), 1.0), total",
        T_DPSGD + "test_one_example_moves_one_step_by_at_most_the_clip",
    ),
    Mutant(
        "one_noise_for_all_steps",
        17,
        "all local steps of a round add the same noise",
        DPSGD,
        "jax.random.fold_in(key, i), loss, params",
        "key, loss, params",
        T_DPSGD + "test_noise_of_all_steps_is_z_s_over_b",
    ),
    Mutant(
        "batches_of_fixed_size",
        20,
        "local batches have a fixed size, and are accounted as Poisson samples",
        DPSGD,
        "return positions, -lowest < jnp.minimum(1.0, batch_size / jnp.maximum(size, 1))",
        "return positions, jnp.arange(slots) < jnp.minimum(batch_size, size)",
        T_DPSGD + "test_batches_are_poisson_samples_of_the_clients_own_examples",
    ),
    Mutant(
        "steps_unaccounted",
        39,
        "the local steps of a round are claimed to be one",
        DPSGD,
        '("steps", float(steps))',
        '("steps", 1.0)',
        T_DPSGD + "test_the_claim_is_noise_at_record_level",
    ),
    Mutant(
        "rounds_of_records",
        39,
        "the event counts rounds, not the local steps in them",
        MECHANISMS,
        "rounds=turns * steps,",
        "rounds=turns,",
        T_RECORD + "test_epsilon_of_one_client_is_that_of_the_literature",
    ),
    Mutant(
        "epsilon_of_the_largest_client",
        39,
        "epsilon is that of the client with the most examples, who spends least",
        RECORD,
        "with_size(noise, int(held.min()))",
        "with_size(noise, int(held.max()))",
        T_RECORD + "test_the_question_of_the_smallest_client",
    ),
)

AUDITS = (
    Mutant(
        "audit_of_another_delta",
        40,
        "the certified bound is taken at a delta of its own",
        ESTIMATE,
        "float(bound(significance=SIGNIFICANCE, delta=delta))",
        "float(bound(significance=SIGNIFICANCE, delta=delta / 1000))",
        T_ESTIMATE + "test_published_bounds_of_normal_quantiles",
    ),
    Mutant(
        "audit_assumes_gaussian",
        40,
        "the bound of a Gaussian claim is used whatever is claimed",
        ESTIMATE,
        "bound = auditor.epsilon_one_run_fdp if gaussian else auditor.epsilon_one_run",
        "bound = auditor.epsilon_one_run_fdp",
        T_ESTIMATE + "test_published_bounds_of_normal_quantiles",
    ),
    Mutant(
        "audit_counts_the_absent",
        40,
        "canaries that are out count as scores of canaries that are in",
        ESTIMATE,
        "used = (scores * signs)[signs != 0]",
        "used = np.abs(scores) * np.where(signs == 0, 1.0, signs)",
        T_ESTIMATE + "test_the_estimate_uses_only_canaries_that_are_in",
    ),
    Mutant(
        "audit_in_one_direction",
        40,
        "epsilon is read off one direction of the two distributions",
        ESTIMATE,
        "return max(there, back) - delta",
        "return min(there, back) - delta",
        T_ESTIMATE + "test_unequal_deviations_by_numerical_integration",
    ),
)

JUDGED = (
    Mutant(
        "private_masks_are_fine",
        35,
        "masks that clients compute from private data cost nothing",
        VALIDITY,
        'if source != "exact" or support == "dense"',
        'if source != "none" or support == "dense"',
        T_VALIDITY + "test_judge",
    ),
    Mutant(
        "values_only_for_the_server",
        35,
        "a server that noises what private masks kept states an epsilon of the values",
        VALIDITY,
        'if trust == "local":',
        'if trust in ("local", "central"):',
        T_VALIDITY + "test_judge",
    ),
)

PICKS = (
    Mutant(
        "picks_are_free",
        35,
        "what is released beside the rounds is not composed",
        ACCOUNTING,
        "parts = [event, *event.beside]",
        "parts = [event]",
        T_BESIDE + "test_both_accountants_and_the_live_curve_bound_the_same_run",
    ),
    Mutant(
        "picks_one_choice",
        35,
        "all picks of a refresh cost as much as one",
        MECHANISMS,
        'picks = times * int(detail["choice_picks"])',
        "picks = times",
        T_BESIDE + "test_replacing_a_client_doubles_the_range_of_a_choice",
    ),
    Mutant(
        "picks_once",
        35,
        "only the first choice of masks is paid for",
        MECHANISMS,
        "return 0 if rounds < first else (rounds - first) // every + 1",
        "return 0 if rounds < first else 1",
        T_BESIDE + "test_votes_are_counted_as_rounds_before_a_choice",
    ),
    Mutant(
        "picks_of_half_the_range",
        35,
        "one choice is accounted with half its range",
        ACCOUNTING,
        "return _bounded_range(1.0 / event.noise, grid)",
        "return _bounded_range(0.5 / event.noise, grid)",
        T_BESIDE + "test_the_choice_of_neurons_is_covered",
    ),
    Mutant(
        "picks_with_less_noise",
        35,
        "the noise on votes is that of one choice, not of all k",
        VOTES,
        "scale = jnp.sqrt(sum(counts.values()) / (8.0",
        "scale = jnp.sqrt(1.0 / (8.0",
        "tests/dropout/test_votes.py::test_the_scale_is_that_of_the_budget",
    ),
    Mutant(
        "votes_are_told",
        35,
        "the sums of votes are told beside the picks",
        VOTES,
        "return jnp.maximum(count - place, 0.0).astype(jnp.float32)",
        "return votes + jnp.maximum(count - place, 0.0).astype(jnp.float32)",
        "tests/dropout/test_votes.py::test_picks_follow_the_exponential_mechanism_one_after_the_other",
    ),
    Mutant(
        "private_rates_are_fine",
        35,
        "the length of an upload under local noise may tell private data",
        VALIDITY,
        'if chosen_by != "private" or trust in ("central", "distributed"):',
        'if chosen_by != "private" or trust != "record":',
        "tests/dropout/test_keep_rates.py::test_which_rates_an_epsilon_may_stand_beside",
    ),
)

T_POSITIONS, T_REPORTS = "tests/secure/test_secure_positions.py::", "tests/dropout/test_reported_positions.py::"
POSITIONS = (
    Mutant(
        "pads_on_the_words_of_one",
        35,
        "a pad of two clients lies on all words of the first, also where the second sends none",
        "fljax/secure/prf.py",
        "return total + pad * cover(ends[j, 0], ends[j, 1])",
        "return total + pad * cover(ends[j, 0], ends[j, 0])",
        T_POSITIONS + "test_one_client_alone_has_no_pad_of_a_pair",
    ),
    Mutant(
        "nothing_is_suppressed",
        35,
        "what one client alone uploaded is released",
        "fljax/secure/positions.py",
        "enough = jax.tree.map(lambda n: n >= least, counts)",
        "enough = jax.tree.map(lambda n: n >= 1, counts)",
        T_POSITIONS + "test_masked_equals_ideal_and_numpy_for_every_pattern_of_drop_outs",
    ),
    Mutant(
        "reports_by_half_the_change",
        35,
        "a kept neuron for another one is counted as one changed bit",
        "fljax/dropout/positions.py",
        "return sum((2.0 * jnp.minimum(k, n - k)",
        "return sum((1.0 * jnp.minimum(k, n - k)",
        T_REPORTS + "test_the_loss_of_a_report_is_at_most_epsilon_and_reaches_it",
    ),
    Mutant(
        "a_new_report_every_round",
        35,
        "a client lies anew about the same choice, and averages tell it",
        "fljax/dropout/positions.py",
        "told[g] = jnp.where(renewed, jnp.where(lie",
        "told[g] = jnp.where(renewed | (ctx.round > 0), jnp.where(lie",
        T_REPORTS + "test_lies_are_as_frequent_as_declared_and_told_once",
    ),
    Mutant(
        "suppression_is_free",
        35,
        "coordinates may be left out by who came beside noise of a server",
        VALIDITY,
        'if least > 1 and trust in ("central", "distributed"):',
        "if least < 1:",
        T_REPORTS + "test_what_may_be_claimed_of_positions",
    ),
)

MUTANTS = (*CORRELATION, *RECORDS, *AUDITS, *JUDGED, *PICKS, *POSITIONS)
