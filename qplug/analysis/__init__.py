"""What reads runs and models: comparisons of runs, sensitivities of sites, ranges along the depth."""
