"""Analyses of runs and models: comparison of runs, sensitivity of sites, ranges of activations."""
