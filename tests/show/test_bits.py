"""The bit explorer: what it shows for each kind of value, and that every control moves everything."""

from __future__ import annotations

import math
import re

import pytest

from labkit.errors import LabError
from labkit.numerics import formats as nf
from labkit.numerics.formats import FORMATS
from labkit.show import bits


def shown(explorer: bits.BitExplorer) -> str:
    """The live table without tags."""
    return re.sub(r"<[^>]+>", " ", explorer.table.value)


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("0.1", 0.1),
        ("2^-14", 2.0**-14),
        ("-2**3", -8.0),
        ("1e-8", 1e-8),
        (" -inf ", -math.inf),
        ("−3", -3.0),
        (7, 7.0),
    ],
)
def test_reads_what_a_learner_types(typed, value):
    assert bits.read_value(typed) == value


@pytest.mark.parametrize("typed", ["", "one", "1,5", "2^99999", "0.0^-1", "[1]"])
def test_refuses_what_is_no_number(typed):
    with pytest.raises(LabError, match="is not a number"):
        bits.read_value(typed)


@pytest.mark.parametrize(
    ("value", "name", "kind", "stored", "error"),
    [
        (1.0001, "fp16", "normal", "1", "-0.0001"),
        (1.5, "fp8_e5m2", "normal", "1.5", "exact"),
        (2.0**-24, "fp16", "subnormal", "5.96046448e-08", "exact"),
        (2.0**-26, "fp16", "zero, underflow", "0", "-1"),
        (65520.0, "fp16", "infinity, overflow", "inf", "–"),
        (500.0, "fp8_e4m3", "NaN, overflow", "nan", "–"),
        (7.5, "fp4_e2m1", "normal, saturated", "6", "-0.2"),
        (6.5, "fp4_e2m1", "normal", "6", "-0.077"),
        (-0.0, "bf16", "zero", "-0", "exact"),
        (math.inf, "fp32", "infinity", "inf", "exact"),
        (math.nan, "fp4_e2m1", "no code for NaN", "–", "–"),
    ],
)
def test_a_row_says_value_error_and_kind(value, name, kind, stored, error):
    row = bits.row(value, FORMATS[name])
    assert (row["kind"], row["value"], row["relative error"]) == (kind, stored, error)


def test_rows_hold_every_bit():
    for fmt in FORMATS.values():
        row = bits.row(-0.7, fmt)
        assert [len(row[p]) for p in bits.PARTS] == [1, fmt.exponent_bits, fmt.mantissa_bits]
        assert int(row["sign"] + row["exponent"] + row["mantissa"], 2) == int(row["hex"], 16)


def test_flipping_any_bit_of_any_format_shows_the_decoded_value():
    explorer = bits.bit_explorer("1.0")
    for fmt in FORMATS.values():
        explorer.text.value = "1.0"
        explorer.format.value = fmt.name
        code = int(nf.encode(1.0, fmt))
        assert len(explorer.bits) == fmt.bits
        for bit in range(fmt.bits):
            explorer.bits[bit].click()
            assert explorer.code == code ^ (1 << bit)
            expected = float(nf.decode(code ^ (1 << bit), fmt))
            assert repr(explorer.value) == repr(expected) == repr(float(explorer.text.value))
            assert f"{expected!r} in each format" in shown(explorer)
            assert nf.fields(explorer.code, fmt).bits in explorer.formula.value
            explorer.bits[bit].click()
            assert explorer.value == 1.0


def test_typing_moves_the_buttons_and_the_table():
    explorer = bits.bit_explorer("0.1", flip="fp8_e4m3")
    explorer.text.value = "-448"
    assert "".join(b.description for b in reversed(explorer.bits)) == "11111110"
    assert "-448" in shown(explorer)
    explorer.text.value = "nonsense"
    assert "is not a number" in explorer.message.value and explorer.value == -448
    explorer.text.value = "2"
    assert explorer.message.value == "" and explorer.value == 2


def test_neighbours_step_by_one_code():
    explorer = bits.bit_explorer("1.0", flip="fp16")
    explorer.larger.click()
    assert explorer.value == 1 + 2**-10
    explorer.smaller.click()
    explorer.smaller.click()
    assert explorer.value == 1 - 2**-11
    explorer.text.value = "65504"
    explorer.larger.click()
    assert explorer.value == math.inf


def test_the_bits_of_a_nan_survive_and_a_format_without_nan_says_so():
    explorer = bits.bit_explorer("inf", flip="fp16")
    explorer.bits[3].click()  # a payload that encode() would never write
    assert explorer.code == 0x7C08 and math.isnan(explorer.value)
    explorer.bits[15].click()
    assert explorer.code == 0xFC08
    explorer.format.value = "fp4_e2m1"
    assert "no code for NaN" in explorer.formula.value


def test_controls_have_names_for_keyboard_and_screen_reader():
    explorer = bits.bit_explorer("0.1", flip="fp32")
    assert explorer.text.description and explorer.format.description
    names = [button.tooltip for button in explorer.bits]
    assert len(set(names)) == 32 and all(re.match(r"(sign|exponent|mantissa) bit: ", n) for n in names)
    assert "worth 1/8388608" in names[0] and "adds 128" in names[30]


def test_the_static_table_stands_in_for_the_widget():
    bundle = bits.bit_explorer("1.0001", chosen=["fp16", "bf16"])._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"].count("\n") == 3 and "0x3C00" in bundle["text/plain"]
    for name in bits.PARTS:
        assert f">{name}</th>" in bundle["text/html"]


def test_parts_differ_by_more_than_colour():
    assert len(set(bits.LINES.values())) == len(bits.PARTS)


def test_bits_figure_displays_html_and_text(monkeypatch):
    sent = []
    monkeypatch.setattr(bits, "_emit", lambda *both: sent.append(both))
    bits.bits_figure("0.1", ["fp16"])
    assert "<table>" in sent[0][0] and "0x2E66" in sent[0][1]
    with pytest.raises(LabError, match="fp16"):
        bits.bits_figure("0.1", ["fp17"])
