"""What every other package builds on: errors, types, seeds, devices and storage. It imports no other package."""
