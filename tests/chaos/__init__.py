"""Trials that try to break a run, by its commands: `make chaos` runs them all, the suite a few."""
