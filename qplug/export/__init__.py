"""Export of a run to files that other runtimes execute, with the proof that they compute the run's model.

qplug writes these files itself and does not use ``brevitas.export``. The parity check compares every planned operation
with the simulation, so qplug must know the values that each operation reads and returns in the file.
"""
