"""The stages of a run, one file each; ``qplug.pipeline.run`` has their order."""
