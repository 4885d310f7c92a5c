"""Histories of a cluster in virtual time: nothing runs twice, ever, and when the trouble is over everything is in its place.

A failing seed prints the end of its story; `history(seed)` re-runs it identically.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from substrate.meshos.decide import active_drains, decide, hosts_of, wanted_instances
from substrate.meshos.decisions import Key
from substrate.meshos.placement import Refusals, choose
from substrate.wire import events
from tests.meshos.simulator import Simulation, Violation
from tests.meshos.worlds import spec

FAULTS_MS = 60_000
SETTLE_MS = 60_000
FIELDS: dict[str, dict[str, Any]] = {
    "web": {},
    "db": {"essential": True},
    "job": {"labels": ("j",), "anti_affinity": ("j",)},
}


FOUND_SOMETHING = (31, 412, 785, 1952)
"""Histories that once ended badly: a leader that held the lease but not the term; a view that had slept and took silence for
proof; a view older than the decision it judged."""


def orders(sim: Simulation, rng: random.Random) -> None:
    """An operator's next command, such as a gateway would accept."""
    ledger = sim.nodes[0].ledger
    node = rng.choice(sim.nodes).id
    applied = {event.spec.name for event, _ in sim.admin if isinstance(event, events.DaemonApply)}
    for event, _ in sim.admin:
        if isinstance(event, events.DaemonRemove):
            applied -= {name for name in applied if ledger.daemon_id(name) == event.daemon}
    name = rng.choice(list(FIELDS))
    fields = FIELDS[name]
    apply = events.DaemonApply(spec(name, replicas=rng.randint(1, 4), **fields))
    choices: list[events.Event] = [apply, apply]
    choices += [
        events.Cordon(node),
        events.Uncordon(node),
        events.Uncordon(node),
        events.Drain(node, rng.choice([3000, 20_000])),
        events.RestartAllDaemons(node),
    ]
    if name in applied:
        daemon = ledger.daemon_id(name)
        choices += [events.DaemonStop(daemon), events.DaemonRestart(daemon), events.DaemonRemove(daemon)]
    sim.command(rng.choice(choices))


def trouble(sim: Simulation, rng: random.Random) -> None:
    """The next thing to go wrong."""
    node = rng.choice(sim.nodes)
    match rng.randint(0, 9):
        case 0 | 1 | 2:
            node.freeze(rng.choice([300, 3000, 5900, 6100, 9000, 14_000]))
        case 3 | 4 | 5:
            node.crash(rng.choice([0, 500, 4000, 12_000]))
        case 6 | 7:
            node.leave(rng.choice([0, 300, 8000]))
        case _:
            sim.broker.die(rng.choice([50, 800, 3000, 9000]))


def history(seed: int) -> Simulation:
    """One whole history: faults and commands, then peace. Raises `Violation` with the story's end."""
    rng = random.Random(~seed)
    sim = Simulation(seed)
    try:
        sim.command(events.DaemonApply(spec("web", replicas=3)))
        end = sim.now + FAULTS_MS
        while sim.now < end:
            sim.run(rng.choice([20, 300, 1000, 2500, 6000]))
            if rng.random() < 0.5:
                orders(sim, rng)
            if rng.random() < 0.6:
                trouble(sim, rng)
        sim.say("peace")
        sim.run(SETTLE_MS)
        check_settled(sim)
    except AssertionError as error:
        story = "\n".join(sim.trace[-120:])
        raise Violation(f"seed {seed}: {error}\n{story}") from error
    return sim


def check_settled(sim: Simulation) -> None:
    """Everything that can run runs where control says, once; nothing else runs; no drain is left open."""
    control = sim.fold_of()
    leaders = [node for node in sim.nodes if node.leading]
    assert len(leaders) == 1, f"{len(leaders)} nodes lead"
    world = leaders[0].world()
    assert {presence.state for presence in world.members.values()} == {"alive"}
    assert world.control == control and leaders[0].folded == len(sim.admin)
    assert decide(world) == []
    runs: dict[Key, dict[int, int]] = {key: nodes for key, nodes in sim.processes.items() if nodes}
    wanted = wanted_instances(world.ledger)
    assert set(runs) <= set(wanted)
    assert {key: {a.node: a.epoch} for key, a in control.assignments.items()} == runs
    for key in set(wanted) - set(runs):
        assert isinstance(choose(wanted[key], key, hosts_of(world).values()), Refusals), f"{key} could run"
    for drain in active_drains(world).values():
        assert drain.deadline_ms > sim.now


@pytest.mark.parametrize("first", range(0, 50, 10))
def test_fifty_histories(first: int) -> None:
    for seed in range(first, first + 10):
        history(seed)


@pytest.mark.parametrize("seed", FOUND_SOMETHING)
def test_histories_that_ended_badly_once(seed: int) -> None:
    history(seed)


def test_two_of_one_instance_are_noticed() -> None:
    """The check itself can fail."""
    sim = Simulation(1, nodes=2)
    sim.begin((1, 0), sim.nodes[0], 5)
    sim.begin((2, 0), sim.nodes[1], 5)
    with pytest.raises(Violation, match="at once"):
        sim.begin((1, 0), sim.nodes[1], 6)


def test_an_unsettled_cluster_is_noticed() -> None:
    sim = Simulation(1, nodes=3)
    sim.command(events.DaemonApply(spec("web", replicas=3)))
    sim.run(30_000)
    check_settled(sim)
    sim.processes[next(iter(sim.processes))].clear()
    with pytest.raises(AssertionError):
        check_settled(sim)


def test_a_seed_is_a_history() -> None:
    first, second, other = history(3), history(3), history(4)
    assert first.trace == second.trace
    assert first.steps == second.steps > 1000
    assert first.trace != other.trace


@pytest.mark.campaign
@pytest.mark.parametrize("first", range(1000, 21_000, 500))
def test_twenty_thousand_histories(first: int) -> None:
    for seed in range(first, first + 500):
        history(seed)
