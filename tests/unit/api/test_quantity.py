"""Quantities and durations as specs write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolbox_operator.api.quantity import parse_cpu, parse_duration, parse_memory


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("6Mi", 6 * 2**20),
        ("512Mi", 2**29),
        ("0.5Gi", 2**29),
        ("1Ti", 2**40),
        ("1k", 1000),
        ("1.5G", 1_500_000_000),
        ("1.0000000001", None),
        ("0.1Ki", 103),
    ],
)
def test_memory_is_read_in_bytes_and_fractions_of_a_byte_count_as_one(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(ValueError, match="not a memory quantity"):
            parse_memory(text)
    else:
        assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "millis"), [("1", 1000), ("0.5", 500), ("500m", 500), ("1.5", 1500), ("0.0001", 1), ("10m", 10)]
)
def test_cpu_is_read_in_thousandths(text: str, millis: int) -> None:
    assert parse_cpu(text) == millis


@pytest.mark.parametrize(("text", "seconds"), [("40s", 40), ("1h30m", 5400), ("1m5s", 65), ("0s", 0), ("90m", 5400)])
def test_a_duration_is_read_in_seconds(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "Mi", "-1Mi", "1 Mi", "1MB", "1e3", "1Mi\n", "٣Mi"])
def test_a_malformed_memory_quantity_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 256Mi"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5m", "1 ", "half"])
def test_a_malformed_cpu_quantity_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 500m"):
        parse_cpu(text)


@pytest.mark.parametrize("text", ["", "40", "s", "1s1m", "-1s", "1.5h", "1d"])
def test_a_malformed_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 40s"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_whole_bytes_survive_being_written_and_read(size: int) -> None:
    assert parse_memory(str(size)) == size


@given(st.integers(0, 9999), st.integers(0, 59), st.integers(0, 59))
def test_a_duration_is_the_sum_of_its_parts(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds
