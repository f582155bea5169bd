"""File formats of an export. Each format is one file here and one row of ``table.FORMATS``."""
