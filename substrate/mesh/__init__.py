"""The mesh: links between nodes, who is a member, how far the others are, what this machine carries."""

from substrate.mesh.handshake import PeerInfo
from substrate.mesh.load import Load, Reading
from substrate.mesh.membership import (
    Change,
    LastExit,
    Member,
    MembershipView,
    MemberStatus,
    Running,
    decode_member,
    encode_member,
    member_key,
)
from substrate.mesh.peer import PeerServer
from substrate.mesh.pool import PeerAddress, PeerPool
from substrate.mesh.probes import Probes
from substrate.mesh.proximity import Proximity, Rtt

__all__ = [
    "Change",
    "LastExit",
    "Load",
    "Member",
    "MemberStatus",
    "MembershipView",
    "PeerAddress",
    "PeerInfo",
    "PeerPool",
    "PeerServer",
    "Probes",
    "Proximity",
    "Reading",
    "Rtt",
    "Running",
    "decode_member",
    "encode_member",
    "member_key",
]
