"""The formats of a file, each lowered from the plan by one module."""
