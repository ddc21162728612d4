"""Mistakes in channel, shares, protocol and homomorphic encryption."""

from __future__ import annotations

from mutant import Mutant

CHANNEL, SHAMIR, PROTOCOL = (f"fljax/secure/{name}.py" for name in ("channel", "shamir", "protocol"))
STAGE = "fljax/secure/encrypted.py"
T_CHANNEL = "tests/secure/test_secure_channel.py::"
T_SHAMIR = "tests/secure/test_secure_shamir.py::"
T_PROTOCOL = "tests/secure/test_secure_protocol.py::"
T_CKKS = "tests/secure/test_secure_ckks.py::"

MUTANTS = (
    Mutant(
        "replay_is_accepted",
        45,
        "the channel accepts a message twice",
        CHANNEL,
        "        if counter <= before:",
        "        if counter < before:",
        T_CHANNEL + "test_replayed_messages_are_refused_at_once_later_and_out_of_order",
    ),
    Mutant(
        "round_is_not_authenticated",
        45,
        "a message of one round passes in another",
        CHANNEL,
        'struct.pack(">QQB", self.round, self.client,',
        'struct.pack(">QQB", 0, self.client,',
        T_CHANNEL + "test_the_round_alone_is_authenticated_too",
    ),
    Mutant(
        "nonce_repeats",
        45,
        "every message of a client is sealed with the same nonce",
        CHANNEL,
        "sent[place.client, place.direction] = (counter + 1, place.round)",
        "sent[place.client, place.direction] = (counter, place.round)",
        T_CHANNEL + "test_nonces_never_repeat_under_a_key",
    ),
    Mutant(
        "one_key_for_all_clients",
        45,
        "all clients share one channel key",
        CHANNEL,
        'direction.encode() + client.to_bytes(8, "big")',
        "direction.encode()",
        T_CHANNEL + "test_clients_do_not_share_keys_or_counters",
    ),
    Mutant(
        "share_of_a_line",
        46,
        "whatever the threshold, few shares tell the secret",
        SHAMIR,
        "for _ in range(threshold - 1))]",
        "for _ in range(min(threshold - 1, 1)))]",
        T_SHAMIR + "test_fewer_than_t_shares_fail_and_tell_nothing",
    ),
    Mutant(
        "changed_share_is_used",
        46,
        "a secret that is not the one committed to is used",
        SHAMIR,
        "(commitment is not None and commit(secret) != commitment)",
        "(commitment is None and commit(secret) != commitment)",
        T_SHAMIR + "test_a_changed_share_is_found_out",
    ),
    Mutant(
        "lists_are_not_compared",
        46,
        "a server may tell clients different lists, and get both secrets of one",
        PROTOCOL,
        "        listed = _list_bytes(client.round, uploaded)\n",
        "        continue\n",
        T_PROTOCOL + "test_a_server_that_tells_different_lists_gets_no_shares",
    ),
    Mutant(
        "pads_without_a_round",
        17,
        "a self mask is the same in every round",
        PROTOCOL,
        'b"fljax self mask" + struct.pack(">Q", round)',
        'b"fljax self mask"',
        T_PROTOCOL + "test_pads_of_a_pair_are_the_same_at_both_ends_and_differ_by_pair_and_round",
    ),
    Mutant(
        "dropped_pad_with_the_wrong_sign",
        46,
        "pads of clients that dropped out are taken off with the wrong sign",
        PROTOCOL,
        "total = total - pad if j < i else total + pad",
        "total = total + pad if j < i else total - pad",
        T_PROTOCOL + "test_every_pattern_of_drop_outs_gives_the_bits_of_the_plain_sum_or_aborts",
    ),
    Mutant(
        "shares_of_noise_in_clear",
        37,
        "coordinates in clear get the small shares of noise that belong to encrypted ones",
        STAGE,
        "jnp.where(m > 0, hidden, clear), mask)\n            payload",
        "jnp.where(m > 0, clear, hidden), mask)\n            payload",
        T_CKKS + "test_each_client_adds_all_of_the_noise_in_clear_and_a_share_where_it_encrypts",
    ),
    Mutant(
        "too_few_shares_are_released",
        37,
        "a sum with too few shares of noise is decrypted and released",
        STAGE,
        "enough = jnp.sum(alive) >= self.least",
        "enough = jnp.sum(alive) >= 0",
        T_CKKS + "test_with_fewer_than_the_least_the_round_releases_zeros",
    ),
)
