"""Mistakes in words and secure sums: pads, who asks for what, aborts, rounding, bits."""

from __future__ import annotations

from mutant import Mutant

FIXED, GRAPH, MASKS = "fljax/secure/fixedpoint.py", "fljax/secure/graph.py", "fljax/secure/masks.py"
SECAGG, PRF = "fljax/secure/secagg.py", "fljax/secure/prf.py"

T_FIXED, T_GRAPH = "tests/secure/test_secure_fixedpoint.py::", "tests/secure/test_secure_graph.py::"
T_MASKS, T_ROUNDS = "tests/secure/test_secure_masks.py::", "tests/secure/test_secure_rounds.py::"
EVERY_PATTERN = T_MASKS + "test_masked_sums_are_plain_sums_for_every_pattern_of_drop_outs"

MUTANTS = (
    Mutant(
        "pads_of_the_first_round",
        41,
        "every round has the pads of the first one",
        SECAGG,
        'jax.random.fold_in(stream(ctx.round_key, "secure"), purpose)',
        'jax.random.fold_in(stream(jax.random.key(0), "secure"), purpose)',
        T_MASKS + "test_every_client_has_its_own_uniform_mask",
    ),
    Mutant(
        "pads_with_one_sign",
        41,
        "both clients of a pair add their pad",
        MASKS,
        "_of_pair(into, -member * into.there)",
        "_of_pair(into, member * into.there)",
        EVERY_PATTERN,
    ),
    Mutant(
        "half_of_the_residual",
        41,
        "pads with clients that dropped out are taken off at one end of the edge alone",
        MASKS,
        "left = came[e.start] * gone[e.end] - gone[e.start] * came[e.end]",
        "left = came[e.start] * gone[e.end]",
        EVERY_PATTERN,
    ),
    Mutant(
        "self_mask_stays",
        41,
        "the self masks of those that uploaded stay in the sum",
        MASKS,
        "_of_one(places, got.self_masks.astype(jnp.int32), _self_id(graph, who, places))",
        "_of_one(places, jnp.zeros_like(places), _self_id(graph, who, places))",
        EVERY_PATTERN,
    ),
    Mutant(
        "both_secrets_of_a_client",
        41,
        "the server asks for the pair keys of everybody",
        SECAGG,
        "Requests(uploaded, members & ~uploaded)",
        "Requests(uploaded, members)",
        T_MASKS + "test_the_server_takes_off_only_what_it_may_ask_for",
    ),
    Mutant(
        "threshold_counts_uploads",
        41,
        "clients that left after their upload count as if they answered",
        SECAGG,
        "answered = on_ring(who, who.answered).astype(jnp.int32)",
        "answered = on_ring(who, who.uploaded).astype(jnp.int32)",
        T_MASKS + "test_a_round_is_aborted_exactly_where_a_member_has_too_few_neighbours",
    ),
    Mutant(
        "aborted_rounds_move_the_model",
        41,
        "momentum goes on where a sum could not be unmasked",
        "fljax/server/round.py",
        "if self.transform.proceeds is None:",
        "if True:",
        T_ROUNDS + "test_an_aborted_round_changes_nothing_but_costs_its_bytes",
    ),
    Mutant(
        "broken_clients_break_the_sum",
        41,
        "a client whose update is not finite sends zeros without its pads, which the server takes off",
        MASKS,
        "always=True,",
        "always=False,",
        T_ROUNDS + "test_masked_and_clear_rounds_are_equal_bit_by_bit",
    ),
    Mutant(
        "ring_in_the_order_of_slots",
        41,
        "neighbours are those with as much data, in every round",
        GRAPH,
        "score = jax.random.uniform(key, members.shape)",
        "score = jnp.linspace(0.0, 1.0, members.shape[0]) + 0.0 * jax.random.uniform(key, members.shape)",
        T_GRAPH + "test_the_ring_is_a_random_order_of_the_members",
    ),
    Mutant(
        "opposite_pairs_twice",
        41,
        "clients at opposite places of an even ring are two edges",
        GRAPH,
        "((2 * distance == size) & (start < distance))",
        "(2 * distance == size)",
        T_GRAPH + "test_every_pair_is_one_edge",
    ),
    Mutant(
        "threshold_below_the_corrupt",
        41,
        "as many neighbours as may be corrupt reveal a secret",
        GRAPH,
        "return max(most + 1, 2) if",
        "return max(most, 2) if",
        T_GRAPH + "test_the_threshold_meets_both_of_its_bounds_by_scipy",
    ),
    Mutant(
        "one_bit_too_few",
        41,
        "words have one bit less than the largest sum",
        FIXED,
        "noise_tail) - 1).bit_length()",
        "noise_tail) - 1).bit_length() - 1",
        T_FIXED + "test_the_smallest_bits_and_the_sum_at_the_edge[100-8-15]",
    ),
    Mutant(
        "sums_without_sign",
        41,
        "decoded words are shifted back without their sign",
        FIXED,
        "jnp.left_shift(words.astype(jnp.uint32), unused).astype(jnp.int32), unused)",
        "jnp.left_shift(words.astype(jnp.uint32), unused), unused).astype(jnp.int32)",
        T_FIXED + "test_signs_come_from_the_highest_bit[15]",
    ),
    Mutant(
        "rounding_to_the_nearest",
        41,
        "values are rounded to the nearest word: biased",
        FIXED,
        "(coins >> 8).astype(jnp.float32) * jnp.float32(2**-24) < scaled - low",
        "0.0 * coins + 0.5 < scaled - low",
        T_FIXED + "test_encoding_is_unbiased_and_clips",
    ),
    Mutant(
        "rounding_moves_nobody",
        41,
        "the bound forgets what rounding adds",
        FIXED,
        "else self.size**0.5",
        "else 0.0",
        T_FIXED + "test_the_bound_grows_by_what_rounding_can_add",
    ),
    Mutant(
        "a_round_of_threefry_less",
        41,
        "Threefry with 16 rounds",
        PRF,
        "for group in range(5):",
        "for group in range(4):",
        "tests/secure/test_secure_prf.py::test_threefry_has_the_published_words",
    ),
)
