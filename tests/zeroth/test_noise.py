"""z: Random123's bits, a normal distribution, the same values whatever is generated with them."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.zeroth import noise

N = 2**20


def reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers, which have no width to go wrong with."""
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        mask = 0xFFFFFFFF
        counter = [b >> 32 ^ counter[1] ^ key[0], b & mask, a >> 32 ^ counter[3] ^ key[1], a & mask]
        key = [key[0] + 0x9E3779B9 & mask, key[1] + 0xBB67AE85 & mask]
    return counter


def test_the_reference_gives_random123s_known_answers():
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert reference(*pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    assert reference([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert reference([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@given(st.integers(0, 2**62), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_integers_are_philoxs(counter, low, high):
    counters = torch.tensor([counter, counter + 1])
    ours = torch.stack(noise.philox(counters, (low, high)), 1).tolist()
    assert ours == [reference([c & 0xFFFFFFFF, c >> 32, 0, 0], [low, high]) for c in counters.tolist()]


@given(st.integers(0, 2**40), st.integers(1, 3 * noise.LANES * 50))
@settings(max_examples=40, deadline=None)
def test_any_range_has_the_values_that_it_has_in_a_longer_one(start, count):
    halves = noise.key(1, "w")
    before, after = start % 7, 5
    longer = noise.normal(halves, start - before, before + count + after)
    assert torch.equal(noise.normal(halves, start, count), longer[before : before + count])


@pytest.mark.parametrize("width", [1, 3, 4, 13, 64, 257])
def test_rows_have_the_values_that_they_have_in_the_matrix(width):
    halves, rows = noise.key(2, "embedding"), torch.tensor([5, 0, 99, 5])
    whole = noise.normal(halves, 0, 100 * width).view(100, width)
    assert torch.equal(noise.of_rows(halves, rows, width), whole[rows])


def test_pieces_do_not_show(monkeypatch):
    halves = noise.key(3, "w")
    before = noise.normal(halves, 3, 50_001)
    monkeypatch.setattr(noise, "PIECE", 1000)
    monkeypatch.setattr(noise, "_scratch", noise._Scratch())
    assert torch.equal(noise.normal(halves, 3, 50_001), before)


def moments(z: torch.Tensor) -> list[float]:
    z = z.double()
    return [(z**power).mean().item() for power in (1, 2, 3, 4)]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_z_is_standard_normal(seed):
    """Moments within 5 standard errors; the distance to the distribution as Kolmogorov and Smirnov have it."""
    z = noise.normal(noise.key(seed, "w"), 0, N)
    errors = [math.sqrt(v / N) for v in (1, 2, 15, 96)]
    for found, exact, error in zip(moments(z), (0, 1, 0, 3), errors, strict=True):
        assert abs(found - exact) < 5 * error
    cdf = 0.5 * (1 + torch.erf(z.double().sort().values / math.sqrt(2)))
    steps = torch.arange(1, N + 1, dtype=torch.float64) / N
    distance = max((cdf - steps).abs().max().item(), (cdf - steps + 1 / N).abs().max().item())
    assert distance < 1.95 / math.sqrt(N)  # exceeded once in a thousand
    assert 4.5 < z.abs().max() < 6.7
    assert (z.abs() > 4).double().mean().item() == pytest.approx(6.33e-5, rel=0.5)


def test_no_two_names_seeds_lanes_or_neighbours_correlate():
    z = torch.stack(
        [
            noise.normal(noise.key(seed, name), 0, N)
            for seed, name in ((0, "a"), (1, "a"), (0, "b"), (0, "a.b"), (2**32, "a"), (256, "a"))
        ]
    )
    lagged = [z[0].roll(lag) for lag in (1, 2, 3, 4)]
    together = torch.stack([*z, *lagged]).double()
    for values in (together, together**2 - 1):
        correlations = torch.corrcoef(values) - torch.eye(len(values))
        assert correlations.abs().max() < 6 / math.sqrt(N)


def test_keys_are_the_same_in_every_process_and_on_every_machine():
    assert noise.key(0, "model.embed_tokens.weight") == noise.key(2**64, "model.embed_tokens.weight")
    digest = hashlib.blake2b(bytes(8) + b"w", digest_size=8).digest()
    assert noise.key(0, "w") == (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))
