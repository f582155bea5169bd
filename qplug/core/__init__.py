"""Errors, types, tasks, seeds, devices and storage: the lowest layer, which imports no other package of qplug."""
