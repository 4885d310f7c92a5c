"""Durations, times, ids and names."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.wire.errors import NetError
from substrate.wire.ids import U64_MAX, check_name, match_reference, parse_id
from substrate.wire.times import MAX_DURATION_MS, format_duration, iso, parse_duration_ms, parse_iso

FACTOR = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "min": 60_000, "hrs": 3_600_000}


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(sorted(FACTOR))), min_size=1, max_size=5))
def test_components_are_summed(parts: list[tuple[int, str]]) -> None:
    total = sum(count * FACTOR[unit] for count, unit in parts)
    text = " ".join(f"{count}{unit}" for count, unit in parts)
    if total > MAX_DURATION_MS:
        with pytest.raises(NetError, match="longer than a year"):
            parse_duration_ms(text)
    else:
        assert parse_duration_ms(text) == total
        assert parse_duration_ms(f"  {text.upper()} ") == total


@given(st.integers(0, 10**9))
def test_a_bare_integer_is_seconds(seconds: int) -> None:
    if seconds * 1000 <= MAX_DURATION_MS:
        assert parse_duration_ms(str(seconds)) == seconds * 1000
    else:
        with pytest.raises(NetError):
            parse_duration_ms(str(seconds))


@given(st.text(max_size=12) | st.from_regex(r"[0-9a-z .+-]{0,12}", fullmatch=True))
def test_any_text_is_a_duration_in_range_or_an_invalid_argument(text: str) -> None:
    try:
        value = parse_duration_ms(text)
    except NetError as error:
        assert error.kind == "invalid-argument"
        return
    assert 0 <= value <= MAX_DURATION_MS
    assert any(character.isdigit() for character in text)


@pytest.mark.parametrize(
    "text", ["", " ", "-5s", "+5s", "1.5s", "5x", "s", "1m5", "٣s", "1e3", "99999999999999999999s"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(NetError):
        parse_duration_ms(text)


@given(st.integers(0, MAX_DURATION_MS))
def test_what_is_formatted_is_read_back_to_its_two_greatest_units(ms: int) -> None:
    back = parse_duration_ms(format_duration(ms))
    assert back <= ms
    assert ms - back < max(1000, ms // 24)  # two units are shown: what is left out is small beside the whole
    if ms < 1000:
        assert back == ms


@given(st.integers(0, 253_402_300_799_999))
def test_times_round_trip(at_ms: int) -> None:
    text = iso(at_ms)
    assert parse_iso(text) == at_ms
    known = datetime.datetime.fromisoformat(text)
    assert known.tzinfo is not None
    assert (known - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(milliseconds=1) == at_ms


@given(st.integers(86_400_000 * 2, 4_000_000_000_000), st.integers(-23, 23), st.integers(0, 59))
def test_offsets_are_taken_into_account(at_ms: int, hours: int, minutes: int) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=hours, minutes=minutes if hours >= 0 else -minutes))
    local = datetime.datetime.fromtimestamp(at_ms / 1000, zone).isoformat(timespec="milliseconds")
    exact = datetime.datetime.fromisoformat(local)
    assert parse_iso(local) == round(exact.timestamp() * 1000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-01-32T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:60:00Z",
        "2026-01-01T00:00:60Z",
        "1969-12-31T23:59:59Z",
        "2026-01-01",
        "2026-01-01T00:00:00ZZ",
        "2026-01-01T00:00:00Z\n",
        "٢٠٢٦-01-01T00:00:00Z",
    ],
)
def test_no_times(text: str) -> None:
    with pytest.raises(NetError) as caught:
        parse_iso(text)
    assert caught.value.kind == "invalid-argument"


@given(st.integers(0, U64_MAX))
def test_ids_are_read_in_decimal_and_hex(value: int) -> None:
    assert parse_id(str(value)) == parse_id(hex(value)) == parse_id(f"0X{value:X}") == value


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1_0", "0x", "x1", "18446744073709551616", "0x1ffffffffffffffff", "٣", "1 "]
)
def test_no_ids(text: str) -> None:
    assert parse_id(text) is None


NAMES = st.from_regex(r"[a-c][a-c0-9.-]{0,3}[a-c0-9]", fullmatch=True)


@given(NAMES)
def test_names_and_ids_never_mean_two_things(name: str) -> None:
    assert parse_id(check_name("node", name)) is None


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", ".a", "a b", "a/b", "..", "é", "7", "0x1f", "a" * 65, "a\n"])
def test_no_names(name: str) -> None:
    with pytest.raises(NetError) as caught:
        check_name("node", name)
    assert caught.value.kind == "invalid-argument"


def model(reference: str, known: dict[int, str]) -> int | str:
    """match_reference by brute force: the id, or the kind of the error."""
    value = parse_id(reference)
    if value in known:
        return int(value or 0)
    for key, name in known.items():
        if name == reference:
            return key
    found = [key for key, name in known.items() if reference and name.startswith(reference)]
    if len(found) == 1:
        return found[0]
    return "ambiguous-name" if found else "daemon-not-found"


@given(
    st.dictionaries(st.integers(0, 20) | st.integers(U64_MAX - 2, U64_MAX), NAMES, max_size=8).filter(
        lambda known: len(set(known.values())) == len(known)
    ),
    st.data(),
)
def test_references(known: dict[int, str], data: st.DataObject) -> None:
    choices = [NAMES, st.integers(0, 20).map(str), st.integers(0, 20).map(hex), st.just(""), st.sampled_from("abc0")]
    if known:
        choices += [st.sampled_from(sorted(known.values())), st.sampled_from(sorted(known)).map(str)]
    reference = data.draw(st.one_of(choices))
    wanted = model(reference, known)
    try:
        found: int | str = match_reference("daemon", reference, known)
    except NetError as error:
        found = error.kind
        if found == "ambiguous-name":
            matches = error.details["matches"]
            assert len(matches) > 1 and matches == sorted(matches)
            assert all(name.startswith(reference) for name in matches)
    assert found == wanted
