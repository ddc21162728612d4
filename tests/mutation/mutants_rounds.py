"""Mistakes in the round: average, chain, what clients send, masks."""

from __future__ import annotations

from mutant import Mutant

AVERAGE, TRANSFORM = "fljax/server/average.py", "fljax/core/transform.py"
ROUND, CLIENTS, EXECUTE = "fljax/server/round.py", "fljax/server/clients.py", "fljax/server/execute.py"
CLAIMS = "fljax/server/claims.py"
TREE, SCORES = "fljax/core/tree.py", "fljax/dropout/scores.py"

T_NOISE, T_ADAPTIVE = "tests/privacy/test_noise.py::", "tests/privacy/test_adaptive.py::"
T_SENSITIVE, T_MATCHES = "tests/statistical/test_sensitivity.py::", "tests/statistical/test_accounting_matches.py::"
T_CHAIN = "tests/core/test_transform.py::"
T_ABSENT, T_WAYS = "tests/invariance/test_invariance_absence.py::", "tests/invariance/test_invariance_execution.py::"
T_MASKS = "tests/dropout/test_masked_rounds.py::"
REFUSED = T_MATCHES + "test_what_cannot_be_promised_is_refused_with_its_reason"

AVERAGES = (
    Mutant(
        "weighted_by_examples",
        4,
        "the private average weights clients by their examples",
        AVERAGE,
        'return {name: part for name, part in payload.items() if name != "weight"}, client_state, {}',
        'return {n: jax.tree.map(lambda x: x * payload["weight"], p) for n, p in payload.items() if n != "weight"}, '
        "client_state, {}",
        "tests/reductions/test_reductions_fedavg.py::"
        "test_dp_fedavg_without_noise_and_clip_is_fedavg_with_equal_weights",
    ),
    Mutant(
        "weights_above_one",
        4,
        "weights of private averages are not capped",
        AVERAGE,
        'jnp.minimum(payload["weight"] / cap, 1.0)',
        'payload["weight"] / cap',
        T_ADAPTIVE + "test_private_weights_never_exceed_one_and_divide_by_a_constant",
    ),
    Mutant(
        "realised_denominator",
        5,
        "the private average divides by the number of clients that came",
        AVERAGE,
        "        del key, alive\n        return jax.tree.map(lambda x: x / ctx.expected, total), state, {}",
        "        return jax.tree.map(lambda x: x / jnp.maximum(jnp.sum(alive), 1), total), state, {}",
        T_SENSITIVE + "test_an_empty_cohort_releases_pure_noise[dp_fedavg]",
    ),
    Mutant(
        "realised_denominator_is_claimed",
        34,
        "the average by realised weights makes no objection to an epsilon",
        AVERAGE,
        'Claim(reason="the average is divided by the realised weights, which depend on who came")',
        "Claim(divides=True)",
        REFUSED,
    ),
    Mutant(
        "std_before_division",
        6,
        "the declared noise is that of the sum, what is released is the mean",
        AVERAGE,
        "        del state\n        return std / ctx.expected\n",
        "        del state\n        return std\n",
        T_NOISE + "test_the_std_that_is_declared_is_the_std_that_is_added",
    ),
    Mutant(
        "nobody_came",
        13,
        "the weighted mean of an empty cohort is 0 / 0",
        AVERAGE,
        "share = jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)",
        "share = 1.0 / weight",
        T_ABSENT + "test_an_empty_cohort_changes_nothing",
    ),
    Mutant(
        "denominator_right_of_noise",
        6,
        "a denominator that is decoded before the noise is accepted",
        TRANSFORM,
        "if any(c.divides for c",
        "if False and any(c.divides for c",
        "tests/statistical/test_sensitivity_variants.py::test_a_denominator_to_the_right_of_the_noise_is_refused",
    ),
)

CHAINS = (
    Mutant(
        "decode_left_to_right",
        6,
        "stages are decoded in the order in which they were encoded",
        TRANSFORM,
        "for i in reversed(range(len(stages))):",
        "for i in range(len(stages)):",
        T_CHAIN + "test_encode_goes_left_to_right_and_decode_right_to_left",
    ),
    Mutant(
        "bounds_right_to_left",
        7,
        "bounds are folded in the order of decoding",
        TRANSFORM,
        "for stage, state in zip(stages, server_state, strict=True):",
        "for stage, state in zip(reversed(stages), reversed(server_state), strict=True):",
        T_CHAIN + "test_bounds_fold_like_encode_and_noise_like_decode",
    ),
    Mutant(
        "stages_share_a_key",
        16,
        "all stages of a chain encode with one key",
        TRANSFORM,
        "enumerate(zip(stages, per_stage(key, len(stages)), strict=True))",
        "enumerate(zip(stages, [key] * len(stages), strict=True))",
        T_CHAIN + "test_stages_get_keys_of_their_own",
    ),
    Mutant(
        "two_noises",
        34,
        "of two stages that add noise the first alone is accounted",
        TRANSFORM,
        "if len(noises) > 1:",
        "if len(noises) > 2:",
        T_CHAIN + "test_two_noise_stages_are_refused",
    ),
    Mutant(
        "silence_is_consent",
        34,
        "a stage that states no claim is taken to be harmless",
        TRANSFORM,
        "    noise: Callable = pass_noise\n    claim: Callable = unknown_claim",
        "    noise: Callable = pass_noise\n    claim: Callable = no_claim",
        REFUSED,
    ),
    Mutant(
        "largest_part_is_the_bound",
        7,
        "the bound of a payload is that of its largest part",
        TRANSFORM,
        "jnp.sqrt(sum(jnp.square(b) for b in bounds.values()))",
        "jnp.max(jnp.stack([jnp.asarray(b, jnp.float32) for b in bounds.values()]))",
        T_CHAIN + "test_total_bound",
    ),
)

ROUNDS = (
    Mutant(
        "not_finite_is_counted",
        11,
        "a client whose update is not finite counts as a participant, and keeps what it learnt",
        CLIENTS,
        "ok = slot.alive & finite & sound",
        "ok = slot.alive & sound",
        T_ABSENT + "test_states_are_written_for_those_who_took_part_and_for_nobody_else",
    ),
    Mutant(
        "not_finite_is_sent",
        11,
        "an update that is not finite reaches the stages of the chain",
        CLIENTS,
        "payload = tree.zero_unless(finite, payload)",
        "payload = tree.zero_unless(True, payload)",
        T_ABSENT + "test_a_stage_that_is_always_sent_sends_what_it_makes_of_zeros",
    ),
    Mutant(
        "encoded_not_finite_is_sent",
        11,
        "what a stage makes not finite is added to the sum",
        CLIENTS,
        "sound = jnp.isfinite(tree.squared_norm(payload))",
        "sound = jnp.bool_(True)",
        T_ABSENT + "test_what_a_stage_makes_not_finite_counts_as_nothing",
    ),
    Mutant(
        "zero_by_multiplication",
        11,
        "what must not count is multiplied by zero instead of left out",
        TREE,
        "jnp.where(keep, x, jnp.zeros_like(x))",
        "x * jnp.asarray(keep, x.dtype)",
        "tests/core/test_tree.py::test_zero_unless_selects_and_does_not_multiply",
    ),
    Mutant(
        "padding_is_sent",
        14,
        "empty slots contribute what their data happen to be",
        CLIENTS,
        "ok = slot.alive & finite & sound",
        "ok = finite & sound",
        T_SENSITIVE + "test_garbage_in_padding_changes_nothing",
    ),
    Mutant(
        "padding_copies_count",
        26,
        "the copies that fill up the last chunk count as the client they copy",
        EXECUTE,
        "jnp.zeros(extra, bool)",
        "jnp.repeat(slots.alive[-1:], extra)",
        T_WAYS + "test_a_sum_is_a_sum",
    ),
    Mutant(
        "devices_are_averaged",
        26,
        "the sums of several devices are averaged instead of added",
        EXECUTE,
        "jax.lax.psum(",
        "jax.lax.pmean(",
        T_WAYS + "test_a_sum_is_a_sum",
    ),
    Mutant(
        "first_chunk_twice",
        26,
        "the sum over chunks begins with a chunk that is added again",
        EXECUTE,
        "zero = jax.tree.map(lambda s: jnp.zeros(s.shape[1:], s.dtype), shapes[0])",
        "zero = _sum(one(0)[0])",
        T_WAYS + "test_chunks_without_a_living_client_are_skipped_where_nobody_remembers",
    ),
    Mutant(
        "round_key_without_round",
        17,
        "every round of a run draws the same noise",
        ROUND,
        """decode, update. given: the sum of the payloads, where a host made it."""
        + '"""'
        + """
        round_key = jax.random.fold_in(key, t)""",
        """decode, update. given: the sum of the payloads, where a host made it."""
        + '"""'
        + """
        round_key = key""",
        T_WAYS + "test_the_exact_round_equals_a_loop",
    ),
    Mutant(
        "round_keys_by_slot",
        17,
        "the round numbers its clients' keys by slot",
        ROUND,
        'keys = per_client(stream(round_key, "client"), ids)',
        'keys = per_client(stream(round_key, "client"), jnp.arange(ids.shape[0]))',
        T_WAYS + "test_every_way_of_execution_agrees_to_the_last_bit",
    ),
    Mutant(
        "encoding_with_the_training_key",
        16,
        "a client encodes with the key that it trained with",
        CLIENTS,
        'stream(slot.keys, "encode")',
        'stream(slot.keys, "local")',
        T_WAYS + "test_training_and_encoding_draw_from_keys_of_their_own",
    ),
    Mutant(
        "nothing_is_bounded",
        34,
        "a part of the payload that nobody bounds has the bound zero",
        CLAIMS,
        "jnp.float32(jnp.inf) for part",
        "jnp.float32(0.0) for part",
        REFUSED,
    ),
    Mutant(
        "unbounded_is_accepted",
        34,
        "a round in which nothing bounds one client states an epsilon",
        CLAIMS,
        "if not jnp.isfinite(total_bound(ctx.bounds or {})):",
        "if jnp.isnan(total_bound(ctx.bounds or {})):",
        REFUSED,
    ),
    Mutant(
        "broken_budget_is_accepted",
        10,
        "a count that takes more than the whole budget is accepted",
        CLAIMS,
        "if not jnp.isfinite(parts.transform.noise(ctx, state, jnp.float32(0.0))):",
        "if jnp.isinf(parts.transform.noise(ctx, state, jnp.float32(0.0))):",
        T_ADAPTIVE + "test_too_little_noise_on_the_bits_is_refused",
    ),
    Mutant(
        "aggregator_is_not_asked",
        34,
        "nobody asks the aggregator for its claim",
        CLAIMS,
        "joined.append(parts.aggregator.claim(hparams))",
        "pass",
        REFUSED,
    ),
)

MASKS = (
    Mutant(
        "mask_from_payloads",
        35,
        "masks are learnt from the sum before the noise",
        ROUND,
        "submodel=self._observe(ctx, state, selection, released),",
        """submodel=self._observe(
                ctx, state, selection, jax.tree.map(lambda x: x / ctx.expected, {"update": seen.payload["update"]})
            ),""",
        T_MASKS + "test_the_score_is_corrected_by_the_noise_of_what_was_released",
    ),
    Mutant(
        "mask_not_applied",
        31,
        "clients that train everything also send what was not selected",
        CLIENTS,
        'payload = payload | {"update": tree.keep(payload["update"], kept if shown is mask else shown)}',
        "payload = dict(payload)",
        T_MASKS + "test_what_clients_send_is_exactly_zero_off_the_mask",
    ),
    Mutant(
        "score_of_the_sum",
        6,
        "scores are corrected by the noise of the sum, but learnt from the mean",
        ROUND,
        "        std = self.transform.noise(ctx, state.transforms, jnp.float32(0.0))\n        return self.submodel",
        "        std = self.transform.noise(ctx, state.transforms, jnp.float32(0.0)) * ctx.expected\n"
        "        return self.submodel",
        T_MASKS + "test_the_score_is_corrected_by_the_noise_of_what_was_released",
    ),
    Mutant(
        "energy_of_the_noise",
        35,
        "the score counts the noise as information",
        SCORES,
        "u**2 - tau**2 - mean",
        "u**2 - mean",
        "tests/dropout/test_scores.py::test_the_corrected_energy_is_unbiased",
    ),
)

MUTANTS = (*AVERAGES, *CHAINS, *ROUNDS, *MASKS)
