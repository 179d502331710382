"""Requests to URLs: ranges that are fetched together, and when it ends. Stores at URLs: test_url.py."""

from __future__ import annotations

import pytest

from wustore.storage.url_requests import RETRIES, TIMEOUTS, coalesce, gather


def test_near_ranges_are_joined():
    assert coalesce([(10, 20), (0, 5), (30, 30), (100, 110)], gap=5) == [(0, 20), (100, 110)]
    assert coalesce([(0, 10), (10, 20), (20, 30)], gap=5, largest=20) == [(0, 20), (20, 30)]
    assert coalesce([(0, 50), (10, 20)], gap=0) == [(0, 50)]


def test_ranges_are_gathered():
    asked = []

    def fetch(requests):
        asked.extend(requests)
        return [bytes(range(start, stop)) for start, stop in requests]

    wanted = [(100, 110), (0, 5), (3, 8), (50, 50)]
    assert gather(wanted, fetch) == [bytes(range(start, stop)) for start, stop in wanted]
    assert asked == [(0, 110)]
    assert gather([(5, 5)], lambda _: pytest.fail("nothing to fetch")) == [b""]
    assert gather(wanted, lambda _: None) is None


def test_a_dead_server_is_given_up_within_two_minutes():
    waits = (RETRIES["retry_timeout"], TIMEOUTS["connect_timeout"], TIMEOUTS["read_timeout"])
    assert sum(wait.total_seconds() for wait in waits) < 120
