"""Mistakes in robust rules, in simulated attacks, and in what is said of who was caught."""

from __future__ import annotations

from mutant import Mutant

ROUND, CLAIMS, ROWS = "fljax/server/round.py", "fljax/server/claims.py", "fljax/robust/rows.py"
COORDINATES, DISTANCES = "fljax/robust/coordinatewise.py", "fljax/robust/distances.py"
BEFORE, ATTACKS, POISON = "fljax/robust/before.py", "fljax/robust/attacks.py", "fljax/robust/poison.py"
ADVERSARY, DEFENCE = "fljax/server/adversary.py", "fljax/sim/defence.py"

T_RULES, T_ATTACKS = "tests/robust/test_robust_rules.py::", "tests/robust/test_robust_attacks.py::"
T_ROUNDS, T_DEFENCE = "tests/robust/test_robust_rounds.py::", "tests/sim/test_sim_defence.py::"

MUTANTS = (
    Mutant(
        "absent_clients_are_zeros",
        42,
        "clients that did not come count as zeros among the values",
        COORDINATES,
        "jnp.where(rows.alive[:, None], x.reshape(x.shape[0], -1), jnp.inf)",
        "jnp.where(rows.alive[:, None], x.reshape(x.shape[0], -1), 0.0)",
        T_RULES + "test_absent_clients_are_no_zeros[median]",
    ),
    Mutant(
        "failed_clients_are_zeros",
        42,
        "a client whose payload was not finite counts as a zero in the median",
        ROUND,
        'sent = seen.info["sent"]',
        "sent = slots.alive",
        T_ROUNDS + "test_a_robust_rule_under_a_mean_chain_is_the_rule_on_the_payloads",
    ),
    Mutant(
        "even_median_is_the_lower",
        42,
        "the median of an even number of values is the lower middle one",
        COORDINATES,
        "ranked_mean(rows, jnp.maximum(low, 0), high)",
        "ranked_mean(rows, jnp.maximum(low, 0), low)",
        T_RULES + "test_rules_by_hand",
    ),
    Mutant(
        "krum_counts_one_neighbour_more",
        42,
        "Krum's score has n - f - 1 neighbours by both definitions",
        DISTANCES,
        '- (2 if neighbors == "paper" else 1)',
        "- 1",
        T_RULES + "test_definitions_of_krum_pick_different_clients",
    ),
    Mutant(
        "bulyan_picks_again",
        42,
        "a client that Bulyan picked stays in the set from which it picks",
        DISTANCES,
        "return left & ~take",
        "return left & ~(take & (i == 0))",
        T_RULES + "test_bulyan_never_picks_a_client_twice",
    ),
    Mutant(
        "mixing_leaves_itself_out",
        42,
        "NNM averages n - f - 1 neighbours",
        BEFORE,
        "close = (ranks(squared_distances(rows)) < keep)",
        "close = (ranks(squared_distances(rows)) < keep - 1)",
        T_RULES + "test_a_rule_is_that_of_its_definition[mixed_median]",
    ),
    Mutant(
        "huge_payloads_count",
        42,
        "a payload whose squares overflow is let into the rule",
        ROWS,
        "alive = alive & (norms <= NORM_LIMIT**2)",
        "alive = alive & (norms <= jnp.inf)",
        T_RULES + "test_a_payload_of_a_norm_beyond_all_measure_is_as_good_as_away[mean]",
    ),
    Mutant(
        "robust_rule_claims_nothing",
        34,
        "a robust rule keeps the epsilon of a server's noise",
        CLAIMS,
        'joined[0].noise.trust != "local"',
        'joined[0].noise.trust == "local"',
        T_ROUNDS + "test_what_may_be_claimed",
    ),
    Mutant(
        "attack_knows_itself",
        42,
        "the honest mean of an attack is over all clients",
        ATTACKS,
        "return combine(plain_weights(crowd.honest), crowd.sent)",
        "return combine(plain_weights(crowd.honest | crowd.malicious), crowd.sent)",
        T_ATTACKS + "test_an_attack_is_that_of_its_definition[ipm]",
    ),
    Mutant(
        "everybody_is_forged",
        42,
        "honest payloads are replaced as well",
        ADVERSARY,
        "kept = jax.tree.map(lambda f, o: jnp.where(_rows(malicious, o), f, o), forged, own)",
        "kept = forged",
        T_ROUNDS + "test_malicious_updates_are_replaced_and_honest_ones_are_not",
    ),
    Mutant(
        "backdoor_keeps_its_labels",
        42,
        "stamped examples keep their labels",
        POISON,
        "jnp.where(chosen, target, batch.y)",
        "jnp.where(chosen, batch.y, batch.y)",
        T_ATTACKS + "test_a_backdoor_stamps_its_share_and_relabels_it",
    ),
    Mutant(
        "recall_of_the_rejected",
        42,
        "recall is divided by the rejected clients",
        DEFENCE,
        '"detection_recall": _ratio(total["caught"], total["bad"])',
        '"detection_recall": _ratio(total["caught"], total["rejected"])',
        T_DEFENCE + "test_detection_by_hand",
    ),
)
