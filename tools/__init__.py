"""Tools of the project's own checks; not installed."""
