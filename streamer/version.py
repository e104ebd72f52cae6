"""Version of the groundstream distribution."""

__version__ = "0.1.0"
