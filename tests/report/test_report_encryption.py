"""The section of a page on encryption."""

import sample_results

from fljax.report.encryption import encryption_parts
from fljax.report.page import render

CKKS = {
    "kind": "ckks",
    "share": 0.25,
    "largest_error": 2.54e-8,
    "ciphertext_bytes": 131217.0,
    "caveats": ["Mind <this>."],
}
CHANNEL = {"kind": "aes_gcm", "overhead_bytes": 28, "verified_rounds": 4, "bytes": 1547200, "gb_per_s": 1.5}
SECURE = {"mode": "protocol", "aborted": 0, "bytes_per_client": {"advertise": 160.0, "share": 900.5}}


def test_every_part_is_told_with_its_numbers_and_caveats():
    parts = encryption_parts({"encryption": {"channel": CHANNEL, "he": CKKS, "secure": SECURE}})
    channel, he, secure = parts
    assert ("kind", "AES-256-GCM") in channel.pairs and ("bytes", "1,547,200") in channel.pairs
    assert ("largest error", "2.54e-08") in he.pairs and ("ciphertext bytes", "131,217") in he.pairs
    assert he.notes == ("Mind <this>.",) and "caveats" not in dict(he.pairs)
    assert dict(secure.pairs)["bytes per client"] == "advertise 160, share 900.5"
    assert "length" in channel.notes[0]


def test_the_page_has_the_section_only_where_something_was_encrypted(tmp_path):
    results = sample_results.make_sweep(tmp_path / "a", {}, seeds=1, encryption={"he": CKKS})
    page = render(results, {})
    assert 'id="encryption"' in page and "131,217" in page and "Mind &lt;this&gt;." in page
    assert 'id="encryption"' not in render(sample_results.make_sweep(tmp_path / "b", {}, seeds=1), {})
