"""The engine room of Net: everything below the command line, in pure Python."""

__version__ = "0.1.0"
