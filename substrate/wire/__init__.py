"""Shared types of the wire contract. No I/O happens in this room."""
