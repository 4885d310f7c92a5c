"""Placement against brute force, and its rules in words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.meshos.decisions import Key
from substrate.meshos.placement import Host, Refusals, choose, why_not
from substrate.wire.specs import DaemonSpec
from tests.meshos.worlds import LABELS, spec

SETS = st.lists(st.sampled_from(LABELS), max_size=2, unique=True).map(tuple)
SPECS = st.builds(
    lambda number, labels, requires, apart: spec(f"d{number}", labels=labels, requires=requires, anti_affinity=apart),
    st.integers(0, 3),
    SETS,
    SETS,
    SETS,
)
KEYS = st.tuples(st.integers(10, 13), st.integers(0, 2))


@st.composite
def hosts(draw: st.DrawFn) -> list[Host]:
    return [
        Host(
            number,
            f"n{number}",
            number,
            frozenset(draw(SETS)),
            draw(st.sampled_from([None, None, "is cordoned"])),
            draw(st.dictionaries(KEYS, SPECS, max_size=4)),
        )
        for number in range(draw(st.integers(0, 5)))
    ]


def fits(wanted: DaemonSpec, key: Key, host: Host) -> bool:
    """The hard rules once more, written differently."""
    others = [other for instance, other in host.instances.items() if instance != key]
    return (
        host.blocked is None
        and set(wanted.requires) <= host.labels
        and not any(set(wanted.anti_affinity) & set(other.labels) for other in others)
        and not any(set(other.anti_affinity) & set(wanted.labels) for other in others)
    )


@given(SPECS, KEYS, hosts(), st.sets(st.integers(0, 4), max_size=2), st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_the_best_fitting_host_is_chosen(
    wanted: DaemonSpec, key: Key, given_hosts: list[Host], exclude: set[int], rng: random.Random
) -> None:
    def score(host: Host) -> tuple[int, int, str]:
        others = [other for other in host.instances if other != key]
        return sum(other[0] == key[0] for other in others), len(others), host.name

    open_to_it = [host for host in given_hosts if host.node not in exclude]
    for host in given_hosts:
        assert (why_not(wanted, key, host) is None) == fits(wanted, key, host)
    found = choose(wanted, key, given_hosts, exclude)
    fitting = [host for host in open_to_it if fits(wanted, key, host)]
    if fitting:
        assert found is min(fitting, key=score)
    else:
        assert isinstance(found, Refusals)
        assert set(found.reasons) == {host.name for host in open_to_it}, "each node's reason is given"
        assert all(found.reasons.values()) and found.text()
    shuffled = given_hosts.copy()
    rng.shuffle(shuffled)
    again = choose(wanted, key, shuffled, exclude)
    assert again is found or again == found


def test_reasons_are_words() -> None:
    db = spec("db", labels=("disk",), anti_affinity=("x",))
    host = Host(1, "n1", 1, frozenset({"a"}), None, {(10, 0): db})
    for wanted, reason in (
        (spec("w", requires=("gpu", "a", "ssd")), "lacks gpu, ssd"),
        (spec("w", labels=("x",)), "runs db, kept apart by x"),
        (spec("w", anti_affinity=("disk",)), "runs db, kept apart by disk"),
        (spec("w"), None),
    ):
        assert why_not(wanted, (11, 0), host) == reason
    assert why_not(db, (10, 0), host) is None, "an instance does not keep itself away"
    assert why_not(db, (10, 1), host) is None
    host.blocked = "is cordoned"
    assert why_not(spec("w"), (11, 0), host) == "is cordoned"


def test_refusals_in_one_sentence() -> None:
    assert Refusals({}).text() == "there is no other node"
    assert Refusals({"b": "lacks x", "a": "is lost"}).text() == "a: is lost; b: lacks x"


@pytest.mark.parametrize("replicas", [1, 5, 9])
def test_instances_of_one_daemon_are_spread(replicas: int) -> None:
    wanted = spec("web", replicas=replicas)
    made = [Host(n, f"n{n}", n, frozenset(), None, {}) for n in range(3)]
    for index in range(replicas):
        target = choose(wanted, (10, index), made)
        assert isinstance(target, Host)
        target.instances[10, index] = wanted
    counts = [len(host.instances) for host in made]
    assert max(counts) - min(counts) <= 1
