"""Runtimes that execute exported files. Each runtime is one file here and one row of ``table.RUNTIMES``."""
