"""Placement, supervision and the loop. Imports nothing: the guardian runs below this name without site-packages."""
