"""The way out: a run as a file that a runtime executes, and the proof that it computes what was simulated."""
