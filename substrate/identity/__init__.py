"""Keys, key files and the pure verification of signatures."""
