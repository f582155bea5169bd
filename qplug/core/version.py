"""The version of qplug, which the build backend reads."""

__version__ = "0.1.0"
