"""Verdicts: each rule with its refusal, and the attack table of the admin plane."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate.identity.verify import OperatorSignature
from substrate.operator.judge import MAX_DRAIN_MS, MAX_SKEW_MS, MAX_TOKEN_MS, judge
from substrate.operator.policy import SETTINGS
from substrate.operator.state import SUPPORTED, LedgerState
from substrate.wire import events
from substrate.wire.envelope import Envelope, join_proof_payload, key_proof_payload
from substrate.wire.errors import NetError
from tests.operator.maker import START_MS, Ledger, key, proof, sign, snapshot, spec
from tests.wire.strategies import of_class

A = key("node-a").node_id
ALICE, BOB = key("alice").operator_id, key("bob").operator_id
SMALL_ORDER = bytes([1]) + bytes(31)


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger()
    made.accept(events.DaemonApply(spec("web")))
    made.accept(events.ChainCreate("c1"))
    return made


def kind_of(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except NetError as error:
        return error.kind
    return None


def test_the_founder_rules(ledger: Ledger) -> None:
    assert ledger.judge(ledger.envelope(events.Cordon(A)), "alice") == [ALICE]


# Who may sign


def test_attacks_each_have_their_own_refusal(ledger: Ledger) -> None:
    """The admin plane's attack table. Nothing of it changes the state."""
    ledger.accept(events.RegistryAdd("bob", key("bob").public_key, proof("bob")))
    entry = ledger.accept(events.Cordon(A))
    cordon = events.Cordon(A)
    before = snapshot(ledger.state)
    now = ledger.now_ms
    other = Ledger("elsewhere")
    fresh = ledger.envelope(cordon)
    unknown = sign(fresh, "mallory")
    swapped = (OperatorSignature(ALICE, key("bob").sign(fresh.payload())),)
    ice = ledger.envelope(events.ThawCluster())
    in_admin_domain = ice.payload().replace(b"net-deck-ice:", b"net-deck-admin:", 1)
    wrong_domain = (OperatorSignature(ALICE, key("alice").sign(in_admin_domain)),)
    attacks = {
        "replayed": lambda: ledger.judge(entry.envelope, "alice"),
        "cluster-changed": lambda: ledger.judge(other.envelope(cordon), "alice"),
        "envelope-expired": lambda: ledger.judge(fresh, "alice", at_ms=fresh.expires_at_ms + 1),
        "envelope-from-future": lambda: ledger.judge(fresh, "alice", at_ms=now - MAX_SKEW_MS - 1),
        "not-authorized": lambda: judge(ledger.state, fresh, fresh.payload(), unknown, now),
        "signature-invalid": lambda: judge(ledger.state, fresh, fresh.payload(), swapped, now),
        "insufficient-signatures": lambda: judge(ledger.state, fresh, fresh.payload(), (), now),
    }
    assert {kind: kind_of(attack) for kind, attack in attacks.items()} == {kind: kind for kind in attacks}
    assert kind_of(lambda: judge(ledger.state, ice, ice.payload(), wrong_domain, now)) == "signature-invalid"
    assert snapshot(ledger.state) == before


def test_a_removed_operator_signs_nothing_more(ledger: Ledger) -> None:
    bob = ledger.add_operator("bob")
    assert ledger.refusal(events.Cordon(A), "bob") is None
    ledger.accept(events.RegistryRemove(bob))
    assert ledger.refusal(events.Cordon(A), "bob") == "not-authorized"
    assert ledger.refusal(events.Cordon(A), "alice", "bob") == "not-authorized"


def test_a_signature_of_one_envelope_is_none_of_another(ledger: Ledger) -> None:
    cordon, drain = ledger.envelope(events.Cordon(A)), ledger.envelope(events.Drain(A, 1000))
    stolen = sign(cordon, "alice")
    assert kind_of(lambda: judge(ledger.state, drain, drain.payload(), stolen, ledger.now_ms)) == "signature-invalid"


# Windows and nonces


def test_the_window_is_the_policys(ledger: Ledger) -> None:
    cordon = events.Cordon(A)
    now, window = ledger.now_ms, ledger.state.policy["commit_window_ms"]

    def verdict(issued: int, expires: int, at: int) -> str | None:
        envelope = ledger.envelope(cordon, issued_at_ms=issued, expires_at_ms=expires)
        return kind_of(lambda: ledger.judge(envelope, "alice", at_ms=at))

    assert verdict(now, now + window, now + window) is None
    assert verdict(now, now + window, now + window + 1) == "envelope-expired"
    assert verdict(now, now + window + 1, now) == "envelope-expired"
    assert verdict(now + MAX_SKEW_MS, now + MAX_SKEW_MS + 1, now) is None
    assert verdict(now + MAX_SKEW_MS + 1, now + MAX_SKEW_MS + 2, now) == "envelope-from-future"
    assert verdict(now, now - 1, now) == "envelope-expired"


def test_co_signed_events_have_a_longer_window_only_while_several_must_sign(ledger: Ledger) -> None:
    ledger.add_operator("bob")
    policy, cordon = events.Policy({"crash_limit": 4}), events.Cordon(A)
    short, long = ledger.state.policy["commit_window_ms"], ledger.state.policy["cosign_window_ms"]
    assert ledger.state.window_ms(policy.kind) == short
    ledger.accept(events.RegistryThreshold(2))
    assert ledger.state.window_ms(policy.kind) == long
    assert ledger.state.window_ms(cordon.kind) == short
    late = ledger.envelope(policy)
    assert ledger.judge(late, "alice", "bob", at_ms=ledger.now_ms + long)


def test_a_nonce_serves_one_accepted_commit(ledger: Ledger) -> None:
    nonce = bytes(range(16))
    first = ledger.envelope(events.Cordon(A), nonce=nonce)
    rejected = ledger.envelope(events.Cordon(5), nonce=nonce)
    assert not ledger.commit(rejected.event, envelope=rejected).accepted
    assert ledger.commit(first.event, envelope=first).accepted, "only an accepted commit burns the nonce"
    for event in (first.event, events.Uncordon(A), events.Cordon(77), events.DaemonApply(spec("x"))):
        again = ledger.envelope(event, nonce=nonce)
        assert kind_of(partial(ledger.judge, again, "alice")) == "replayed"


def test_the_window_is_checked_before_the_nonce(ledger: Ledger) -> None:
    """So used nonces need to be kept only until their envelopes have expired in ledger time."""
    entry = ledger.accept(events.Cordon(A))
    assert kind_of(lambda: ledger.judge(entry.envelope, "alice")) == "replayed"
    assert entry.envelope.nonce in ledger.state.nonces
    expired = entry.envelope.expires_at_ms
    assert kind_of(lambda: ledger.judge(entry.envelope, "alice", at_ms=expired)) == "replayed"
    assert kind_of(lambda: ledger.judge(entry.envelope, "alice", at_ms=expired + 1)) == "envelope-expired"
    ledger.now_ms = expired
    ledger.accept(events.Uncordon(A))
    assert entry.envelope.nonce not in ledger.state.nonces
    assert kind_of(lambda: ledger.judge(entry.envelope, "alice")) == "envelope-expired"


@given(st.lists(st.tuples(st.integers(0, 90_000), st.booleans()), max_size=12))
@settings(max_examples=25)
def test_no_envelope_is_ever_accepted_twice(steps: list[tuple[int, bool]]) -> None:
    """Whatever time passes between: what was accepted once is replayed or expired, and memory does not grow."""
    ledger = Ledger()
    taken: list[Envelope] = []
    for pause, again in steps:
        ledger.now_ms += pause
        if again and taken:
            envelope = taken[-1 - pause % len(taken)]
            found = kind_of(partial(ledger.judge, envelope, "alice"))
            assert found in {"replayed", "envelope-expired"}
        else:
            taken.append(ledger.accept(events.Cordon(A)).envelope)
        state = ledger.state
        assert set(state.nonces) == {nonce for _, nonce in state.expiring}
        assert all(used.expires_at_ms >= state.at_ms for used in state.nonces.values())
        assert {e.nonce for e in taken if e.expires_at_ms >= state.at_ms} <= set(state.nonces)


# Events


def refused_events() -> list[tuple[str, events.Event, str]]:
    k = key("new").public_key
    return [
        ("cordon an unknown node", events.Cordon(9), "node-not-found"),
        ("uncordon an unknown node", events.Uncordon(9), "node-not-found"),
        ("exit-maintenance of an unknown node", events.ExitMaintenance(9), "node-not-found"),
        ("restart-all on an unknown node", events.RestartAllDaemons(9), "node-not-found"),
        ("drain an unknown node", events.Drain(9, 1000), "node-not-found"),
        ("remove an unknown node", events.NodeRemove(9), "node-not-found"),
        ("drain for no time", events.Drain(A, 0), "invalid-argument"),
        ("drain for ever", events.Drain(A, MAX_DRAIN_MS + 1), "invalid-argument"),
        ("remove an unknown daemon", events.DaemonRemove(9), "daemon-not-found"),
        ("restart an unknown daemon", events.DaemonRestart(9), "daemon-not-found"),
        ("stop an unknown daemon", events.DaemonStop(9), "daemon-not-found"),
        ("apply what cannot run", events.DaemonApply(spec("x", replicas=0)), "invalid-argument"),
        ("apply a bad name", events.DaemonApply(spec("X y")), "invalid-argument"),
        ("create a chain twice", events.ChainCreate("c1"), "chain-exists"),
        ("create the ledger", events.ChainCreate("admin"), "chain-exists"),
        ("create control", events.ChainCreate("control"), "chain-exists"),
        ("create a chain with a bad name", events.ChainCreate("a//b"), "invalid-argument"),
        ("create a chain with copies", events.ChainCreate("c2", 2), "not-yet-supported"),
        ("an operator with a bad name", events.RegistryAdd("B B", k, proof("new")), "invalid-argument"),
        ("an operator's name again", events.RegistryAdd("alice", k, proof("new")), "operator-exists"),
        ("a key again", events.RegistryAdd("al", key("alice").public_key, proof("alice")), "operator-exists"),
        ("a key of another", events.RegistryAdd("bob", k, proof("other")), "signature-invalid"),
        (
            "a proof meant for a node",
            events.RegistryAdd("bob", k, key("new").sign(join_proof_payload(bytes(16), "bob", k))),
            "signature-invalid",
        ),
        ("a small-order key", events.RegistryAdd("bob", SMALL_ORDER, SMALL_ORDER + bytes(32)), "invalid-argument"),
        ("remove an unknown operator", events.RegistryRemove(9), "operator-not-found"),
        ("remove the last operator", events.RegistryRemove(ALICE), "invalid-argument"),
        (
            "rotate to the same key",
            events.RegistryRotate(ALICE, key("alice").public_key, proof("alice")),
            "operator-exists",
        ),
        ("rotate without a proof", events.RegistryRotate(ALICE, k, bytes(64)), "signature-invalid"),
        ("rotate to a small-order key", events.RegistryRotate(ALICE, SMALL_ORDER, bytes(64)), "invalid-argument"),
        ("no threshold", events.RegistryThreshold(0), "invalid-argument"),
        ("a threshold over the operators", events.RegistryThreshold(2), "invalid-argument"),
        ("an empty policy", events.Policy({}), "invalid-argument"),
        ("an unknown setting", events.Policy({"speed": 1}), "invalid-argument"),
        ("a token for ever", events.JoinToken(k, MAX_TOKEN_MS + 1), "invalid-argument"),
        ("a token for no time", events.JoinToken(k, 0), "invalid-argument"),
        ("a token with an operator's key", events.JoinToken(key("alice").public_key, 1000), "operator-exists"),
        ("a token with a small-order key", events.JoinToken(SMALL_ORDER, 1000), "invalid-argument"),
        ("a second genesis", events.Genesis("x", "alice", key("alice").public_key, "a", k, {}), "conflict"),
    ]


@pytest.mark.parametrize(
    ("event", "kind"), [case[1:] for case in refused_events()], ids=[c[0] for c in refused_events()]
)
def test_events_that_make_no_sense_are_refused(ledger: Ledger, event: events.Event, kind: str) -> None:
    before = snapshot(ledger.state)
    assert ledger.refusal(event) == kind
    assert snapshot(ledger.state) == before


@given(st.data())
@settings(max_examples=60)
def test_what_this_version_cannot_do_is_refused_openly(data: st.DataObject) -> None:
    unsupported = [cls for kind, cls in events.ADMIN_EVENTS.by_kind.items() if kind not in SUPPORTED]
    event = data.draw(of_class(data.draw(st.sampled_from(unsupported))))
    assert Ledger().refusal(event) == "not-yet-supported"


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_keeps_its_range(ledger: Ledger, name: str) -> None:
    setting = SETTINGS[name]
    for value, kind in (
        (setting.low, None),
        (setting.high, None),
        (setting.high + 1, "invalid-argument"),
        *([(setting.low - 1, "invalid-argument")] if setting.low else []),
    ):
        assert ledger.refusal(events.Policy({name: value})) == kind
    ledger.accept(events.Policy({name: setting.high}))
    assert ledger.state.policy[name] == setting.high
    rest = {k: v for k, v in ledger.state.policy.items() if k != name}
    assert rest == {k: s.default for k, s in SETTINGS.items() if k != name}


def test_nothing_comes_before_genesis() -> None:
    empty = LedgerState()
    envelope = Envelope(bytes(16), START_MS, START_MS + 1000, bytes(16), events.Cordon(A))
    assert kind_of(lambda: judge(empty, envelope, envelope.payload(), (), START_MS)) == "insufficient-signatures"
    with pytest.raises(NetError) as caught:
        judge(empty, envelope, envelope.payload(), sign(envelope, "alice"), START_MS)
    assert caught.value.kind == "not-authorized"


def test_genesis_is_signed_by_the_operator_it_installs() -> None:
    event = events.Genesis("default", "alice", key("alice").public_key, "a", key("node-a").public_key, {})
    envelope = Envelope(bytes(16), START_MS, START_MS + 1000, bytes(16), event)
    payload = envelope.payload()
    assert judge(LedgerState(), envelope, payload, sign(envelope, "alice"), START_MS) == [ALICE]
    assert kind_of(lambda: judge(LedgerState(), envelope, payload, sign(envelope, "bob"), START_MS)) == "not-authorized"


# Nodes and tokens


def test_a_node_is_admitted_once_under_one_name_and_key(ledger: Ledger) -> None:
    b = ledger.join("b")
    assert ledger.refusal(ledger.node_join("b", "node-z")) == "node-running"
    assert ledger.refusal(ledger.node_join("z", "node-b")) == "node-running"
    assert ledger.refusal(ledger.node_join("Z", "node-z")) == "invalid-argument"
    stolen = ledger.node_join("z", "node-z")
    assert ledger.refusal(events.NodeJoin("y", stolen.public_key, stolen.proof)) == "signature-invalid"
    small = events.NodeJoin("y", SMALL_ORDER, SMALL_ORDER + bytes(32))
    assert ledger.refusal(small) == "invalid-argument"
    ledger.accept(events.NodeRemove(b))
    assert ledger.refusal(ledger.node_join("b", "node-b")) == "not-authorized", "a removed key stays out"
    assert ledger.refusal(ledger.node_join("b", "node-z")) is None, "the name is free again"
    assert ledger.refusal(events.Cordon(b)) == "node-not-found"


def test_a_proof_for_one_cluster_admits_to_no_other(ledger: Ledger) -> None:
    other = Ledger("elsewhere")
    assert ledger.refusal(other.node_join("b")) == "signature-invalid"


def test_a_removed_node_leaves_nothing_to_do(ledger: Ledger) -> None:
    b = ledger.join("b")
    for event in (events.Cordon(b), events.Drain(b, 1000), events.RestartAllDaemons(b), events.NodeRemove(b)):
        ledger.accept(event)
    state = ledger.state
    assert not (b in state.cordoned or b in state.drains or b in state.restart_all)
    assert state.nodes[b].removed and b not in state.node_names()


def test_a_join_token_admits_one_node_until_it_expires(ledger: Ledger) -> None:
    token = events.JoinToken(key("token").public_key, 50_000)
    ledger.accept(token)
    granted = ledger.state.at_ms
    assert ledger.refusal(token) == "operator-exists"
    assert ledger.refusal(events.Cordon(A), "token") == "not-authorized", "a token signs admissions only"
    ledger.now_ms = granted + 50_000
    assert ledger.refusal(ledger.node_join("b"), "token") is None
    ledger.now_ms += 1
    assert ledger.refusal(ledger.node_join("b"), "token") == "not-authorized"
    ledger.now_ms = granted + 1000
    ledger.gateway = "node-b"
    ledger.join("b", "token")
    assert ledger.state.tokens[key("token").operator_id].used
    assert ledger.refusal(ledger.node_join("c"), "token") == "not-authorized"


def test_a_refused_admission_does_not_use_the_token_up(ledger: Ledger) -> None:
    ledger.accept(events.JoinToken(key("token").public_key, 50_000))
    bad = events.NodeJoin("b", key("node-b").public_key, bytes(64))
    assert not ledger.commit(bad, "token").accepted
    assert not ledger.state.tokens[key("token").operator_id].used
    assert ledger.refusal(ledger.node_join("b"), "token") is None


# Thresholds


def several(threshold: int, *names: str) -> Ledger:
    ledger = Ledger()
    for name in names:
        ledger.add_operator(name)
    ledger.accept(events.RegistryThreshold(threshold))
    return ledger


def test_threshold_events_need_as_many_as_the_ledger_says() -> None:
    ledger = several(2, "bob", "carol")
    new = events.RegistryAdd("dave", key("dave").public_key, proof("dave"))
    for event in (new, events.RegistryRemove(BOB), events.RegistryThreshold(1), events.Policy({"crash_limit": 3})):
        assert ledger.refusal(event, "alice") == "insufficient-signatures"
        assert ledger.refusal(event, "alice", "alice") == "insufficient-signatures"
        assert ledger.refusal(event, "alice", "bob") is None
        assert ledger.refusal(event, "carol", "bob", "alice") is None
    assert ledger.refusal(events.ThawCluster(), "alice") == "insufficient-signatures"
    for ordinary in (events.Cordon(A), events.DaemonApply(spec("web")), ledger.node_join("b"), events.NodeRemove(A)):
        assert ledger.refusal(ordinary, "carol") is None, "one operator is enough for ordinary work"


def test_the_threshold_never_exceeds_the_active_operators() -> None:
    ledger = several(3, "bob", "carol")
    everybody = ("alice", "bob", "carol")
    assert ledger.refusal(events.RegistryThreshold(4), *everybody) == "invalid-argument"
    assert ledger.refusal(events.RegistryRemove(BOB), *everybody) == "invalid-argument"
    ledger.accept(events.RegistryThreshold(2), *everybody)
    ledger.accept(events.RegistryRemove(BOB), "alice", "carol")
    assert ledger.refusal(events.RegistryThreshold(3), "alice", "carol") == "invalid-argument"
    assert ledger.refusal(events.RegistryRemove(key("carol").operator_id), "alice", "carol") == "invalid-argument"


def test_a_rotation_is_signed_by_the_key_that_goes() -> None:
    ledger = several(1, "bob")
    rotate = events.RegistryRotate(BOB, key("bob-2").public_key, proof("bob-2"))
    assert ledger.refusal(rotate, "alice") == "not-authorized"
    assert ledger.refusal(rotate, "bob-2") == "not-authorized"
    assert ledger.refusal(rotate, "bob") is None
    ledger.accept(events.RegistryThreshold(2), "bob")
    assert ledger.refusal(rotate, "bob") == "insufficient-signatures"
    ledger.accept(rotate, "bob", "alice")
    state = ledger.state
    assert state.operator_names() == {ALICE: "alice", key("bob-2").operator_id: "bob"}
    assert ledger.refusal(events.Cordon(A), "bob") == "not-authorized"
    assert ledger.refusal(events.Cordon(A), "bob-2") is None
    back = events.RegistryRotate(key("bob-2").operator_id, key("bob").public_key, proof("bob"))
    assert ledger.refusal(back, "bob-2", "alice") == "operator-exists", "a retired key never returns"


def test_a_removed_operators_key_never_returns_but_the_name_may() -> None:
    ledger = several(1, "bob")
    ledger.accept(events.RegistryRemove(BOB))
    assert ledger.refusal(events.RegistryAdd("bob", key("bob").public_key, proof("bob"))) == "operator-exists"
    assert ledger.refusal(events.RegistryAdd("bob", key("bob-2").public_key, proof("bob-2"))) is None


def test_a_key_proof_is_bound_to_the_key() -> None:
    assert key_proof_payload(key("a").public_key) != key_proof_payload(key("b").public_key)


# What accepted events do


def test_drains_cordon_and_lifting_the_cordon_cancels_them(ledger: Ledger) -> None:
    drained = ledger.accept(events.Drain(A, 5000))
    state = ledger.state
    assert state.cordoned[A] == drained.record.seq
    assert state.drains[A].deadline_ms == drained.record.at_ms + 5000
    again = ledger.accept(events.Drain(A, 9000))
    assert state.drains[A].seq == again.record.seq
    ledger.accept(events.Cordon(A))
    assert A in state.drains, "a cordon does not end a drain"
    ledger.accept(events.Uncordon(A))
    assert A not in state.drains and A not in state.cordoned


def test_a_spec_applied_anew_replaces_the_old_and_starts_a_stopped_daemon(ledger: Ledger) -> None:
    web = ledger.state.daemon_id("web")
    ledger.accept(events.DaemonStop(web))
    assert ledger.state.daemons[web].stopped
    applied = ledger.accept(events.DaemonApply(spec("web", replicas=3)))
    daemon = ledger.state.daemons[web]
    assert (daemon.spec.replicas, daemon.stopped, daemon.seq) == (3, False, applied.record.seq)
    ledger.accept(events.DaemonStop(web))
    restarted = ledger.accept(events.DaemonRestart(web))
    assert not ledger.state.daemons[web].stopped
    assert ledger.state.daemons[web].restart_seq == restarted.record.seq
    ledger.accept(events.DaemonRemove(web))
    assert web not in ledger.state.daemons
