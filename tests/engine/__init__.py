"""Tests of substrate.engine and of the frames its sockets carry."""
