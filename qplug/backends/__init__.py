"""Backends: what executes the quantised operations. A technique never sees one."""

from qplug.backends.base import Backend

__all__ = ["Backend"]
