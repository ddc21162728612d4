"""A secure sum with real keys: the bits of the plain sum under every pattern of drop-outs, and what is refused."""

import itertools
import sys

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.secure import protocol, shamir
from fljax.secure.protocol import (
    MOST_CLIENTS,
    advertise,
    new_identity,
    secure_sum,
    share_keys,
    sign_list,
    unmask,
    upload,
)

pytest.importorskip("cryptography", reason="needs fljax[secure]")

BITS, T, SIZE = 19, 2, 6
WORDS = np.random.default_rng(0).integers(0, 2**BITS, (32, SIZE)).astype(np.uint32)


def plain(words, who, bits=BITS) -> np.ndarray:
    """Oracle: the sum in Python integers."""
    return np.array([sum(int(v) for v in column[who]) % 2**bits for column in words.T], np.uint32)


def stages(pattern):
    """Members, uploaded, answered from how far each of the clients gets (0 .. 3)."""
    far = np.array(pattern)
    return far >= 1, far >= 2, far >= 3


@pytest.mark.parametrize("pattern", list(itertools.combinations_with_replacement(range(4), 4)))
def test_every_pattern_of_drop_outs_gives_the_bits_of_the_plain_sum_or_aborts(pattern):
    """Of four clients in every stage; with t = 2 others the round lives exactly where three answer."""
    members, uploaded, answered = stages(pattern)
    result = secure_sum(WORDS[:4], BITS, T, members, uploaded, answered, round=3)
    if answered.sum() >= T + 1:
        np.testing.assert_array_equal(result.total, plain(WORDS[:4], uploaded))
        seeds, keys = result.recovered
        assert not set(seeds) & set(keys), "never both secrets of one client"
        assert set(seeds) == set(np.flatnonzero(uploaded))
        assert set(keys) == set(np.flatnonzero(members & ~uploaded))
    else:
        assert result.total is None and "aborted" in result.reason and "\n" not in result.reason


@pytest.mark.parametrize("bits", [1, 17, 32])
def test_all_32_clients_in_words_of_any_width(bits):
    """One client leaves at each stage, another two upload and are gone."""
    words = np.random.default_rng(1).integers(0, 2**bits, (MOST_CLIENTS, 50)).astype(np.uint32)
    members, uploaded, answered = stages([0, 1, 2, 2] + [3] * 28)
    result = secure_sum(words, bits, 17, members, uploaded, answered)
    np.testing.assert_array_equal(result.total, plain(words, uploaded, bits))
    assert result.sent["upload"] == 30 * -(-50 * bits // 8)
    assert result.sent["share"] == 31 * 30 * (12 + 1 + 2 * shamir.SHARE_BYTES + 16)
    assert result.sent["unmask"] == 28 * 30 * shamir.SHARE_BYTES


def cast(count=4, threshold=T, round=3):
    """Members after the second stage: clients, adverts, sealed shares, identities."""
    signers = {i: new_identity() for i in range(count)}
    identities = {i: s.public_key() for i, s in signers.items()}
    made = {i: advertise(round, i, s) for i, s in signers.items()}
    adverts = {i: advert for i, (_, advert) in made.items()}
    shared = {i: share_keys(client, adverts, identities, threshold) for i, (client, _) in made.items()}
    return {i: c for i, (c, _) in shared.items()}, adverts, {i: s for i, (_, s) in shared.items()}, identities


def uploads_of(clients, sealed, words=WORDS):
    """(clients, masked words), everybody uploads."""
    done = {i: upload(c, {j: sealed[j][i] for j in sealed if j != i}, words[i], BITS, T) for i, c in clients.items()}
    return {i: c for i, (c, _) in done.items()}, {i: y for i, (_, y) in done.items()}


def test_what_is_uploaded_is_uniform_and_new_in_every_round():
    """40 rounds of a client that sends 50 zeros: top four bits, chi-squared of 15 below 66 (false alarm 2e-8)."""
    seen = []
    for _ in range(40):
        clients, _, sealed, _ = cast(3, 1)
        _, masked = uploads_of(clients, sealed, np.zeros((3, 50), np.uint32))
        seen.append(masked[0])
    words = np.concatenate(seen)
    assert len(np.unique(words)) > 1900
    counts = np.bincount(words >> (BITS - 4), minlength=16)
    assert np.sum((counts - 125.0) ** 2 / 125.0) < 66


def test_pads_of_a_pair_are_the_same_at_both_ends_and_differ_by_pair_and_round():
    clients, adverts, *_ = cast()
    pads = {}
    for i, j in itertools.permutations(range(4), 2):
        pads[i, j] = protocol.pair_pad(clients[i].pad, adverts[j].pad_key, 3, 8)
    for i, j in itertools.combinations(range(4), 2):
        np.testing.assert_array_equal(pads[i, j], pads[j, i])
    assert len({p.tobytes() for p in pads.values()}) == 6
    assert protocol.pair_pad(clients[0].pad, adverts[1].pad_key, 4, 8).tobytes() != pads[0, 1].tobytes()
    seeds = [protocol.self_pad(clients[0].seed, r, 8).tobytes() for r in (3, 4)]
    assert seeds[0] != seeds[1]


def test_pads_are_the_key_stream_of_aes_by_a_known_answer():
    """The key stream of a zero key and counter is AES-256 of zero, FIPS 197: dc95c078a2408989ad48a21492842087."""
    assert protocol._stream(bytes(32), 4).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_a_server_that_tells_different_lists_gets_no_shares():
    """By two lists it could ask for the seed and for the key of client 0."""
    clients, _, sealed, identities = cast()
    clients, _ = uploads_of(clients, sealed)
    truth, lie = [0, 1, 2, 3], [1, 2, 3]
    told = {1: truth, 2: truth, 3: lie}
    signatures = {i: sign_list(clients[i], told[i]) for i in told}
    for i in told:
        with pytest.raises(FljaxError, match="not consistent"):
            protocol.reveal(clients[i], told[i], signatures, identities, T)
    honest = {i: sign_list(clients[i], truth) for i in told}
    shares = protocol.reveal(clients[1], truth, honest, identities, T)
    assert {j: s.value for j, s in shares.items()} == {j: clients[1].shares[j][1].value for j in (0, 2, 3)}


def test_signatures_of_another_round_or_of_nobody_do_not_count():
    clients, _, sealed, identities = cast()
    clients, _ = uploads_of(clients, sealed)
    stale = {i: sign_list(c._replace(round=2), range(4)) for i, c in clients.items()}
    with pytest.raises(FljaxError, match="not consistent"):
        protocol.reveal(clients[1], range(4), stale, identities, T)
    fresh = {i: sign_list(c, range(4)) for i, c in clients.items()}
    with pytest.raises(FljaxError, match="2 others to unmask, found 1"):
        protocol.reveal(clients[1], range(4), {1: fresh[1], 2: fresh[2]}, identities, T)


def test_adverts_that_the_server_changed_are_refused():
    """A server that puts its own key into an advert could read shares and pads."""
    signers = {i: new_identity() for i in range(3)}
    identities = {i: s.public_key() for i, s in signers.items()}
    made = {i: advertise(0, i, s) for i, s in signers.items()}
    adverts = {i: advert for i, (_, advert) in made.items()}
    client, own = made[0][0], advertise(0, 9, new_identity())[1]
    for field in ("seal_key", "pad_key", "commitment"):
        changed = adverts[1]._replace(**{field: getattr(own, field)})
        with pytest.raises(FljaxError, match="keys of client 1"):
            share_keys(client, adverts | {1: changed}, identities, 1)
    doubled = advertise(0, 1, signers[1])[1]._replace(seal_key=adverts[2].seal_key, signature=b"")
    doubled = doubled._replace(signature=signers[1].sign(doubled.signed(0, 1)))
    with pytest.raises(FljaxError, match="keys of their own"):
        share_keys(client, adverts | {1: doubled}, identities, 1)


def test_changed_or_misdelivered_shares_are_refused():
    clients, _, sealed, _ = cast()
    inbox = {j: sealed[j][0] for j in (1, 2, 3)}
    changed = bytes([*inbox[1][:-1], inbox[1][-1] ^ 1])
    for bad in (inbox | {1: changed}, inbox | {1: inbox[2]}, inbox | {1: sealed[1][2]}):
        with pytest.raises(FljaxError, match="shares of client 1"):
            upload(clients[0], bad, WORDS[0], BITS, T)


def test_a_share_that_lies_is_found_out_by_the_server():
    """With exactly t shares nothing but the commitment and the public key can tell."""
    clients, adverts, sealed, identities = cast()
    clients, masked = uploads_of(clients, sealed)
    came = {i: masked[i] for i in (1, 2, 3)}
    signatures = {i: sign_list(clients[i], came) for i in came}
    revealed = {i: protocol.reveal(clients[i], came, signatures, identities, T) for i in came}
    total, _ = unmask(3, adverts, came, revealed, T, BITS)
    np.testing.assert_array_equal(total, plain(WORDS[:4], np.array([False, True, True, True])))
    for about, why in ((1, "changed"), (0, "to give its key|to fit the others")):
        share = revealed[2][about]
        lie = revealed | {2: revealed[2] | {about: share._replace(value=share.value ^ 1)}}
        with pytest.raises(FljaxError, match=why):
            unmask(3, adverts, came, lie, T, BITS)
    lie = revealed | {2: revealed[2] | {0: lie[2][0]}, 3: {i: s for i, s in revealed[3].items() if i != 0}}
    with pytest.raises(FljaxError, match=r"to give its key|to give the secret"):  # two shares of client 0 are left
        unmask(3, adverts, came, lie, T, BITS)


def test_one_upload_alone_opens_only_with_both_secrets():
    """With the pads of pairs off, but not the self mask, the words are hidden; this is why never both are asked."""
    clients, adverts, sealed, _ = cast()
    _, masked = uploads_of(clients, sealed)
    left = masked[0].copy()
    for j in (1, 2, 3):
        left -= protocol.pair_pad(clients[0].pad, adverts[j].pad_key, 3, SIZE)
    assert np.all((left - WORDS[0]) % 2**BITS != 0)
    left -= protocol.self_pad(clients[0].seed, 3, SIZE)
    np.testing.assert_array_equal(left % 2**BITS, WORDS[0])


def test_bad_input_is_one_line(monkeypatch):
    everybody = np.ones(33, bool)
    with pytest.raises(FljaxError, match=r"at most 32 clients.*mode = 'masked'"):
        secure_sum(np.zeros((33, 1), np.uint32), BITS, T, everybody, everybody, everybody)
    with pytest.raises(FljaxError, match="bits=33"):
        secure_sum(WORDS[:3], 33, T, *[np.ones(3, bool)] * 3)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(FljaxError, match=r"fljax\[secure\]"):
        secure_sum(WORDS[:3], BITS, T, *[np.ones(3, bool)] * 3)
