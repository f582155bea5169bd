"""Export of a run to files that other runtimes execute, and the proof that they compute what the run measured."""
