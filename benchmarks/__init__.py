"""Measurements of the project itself, outside of the package: run from a checkout through make."""
