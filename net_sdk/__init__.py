"""net_sdk."""
