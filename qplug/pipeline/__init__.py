"""The run: its stages in order, its context, and what a run folder needs to be loaded again."""
