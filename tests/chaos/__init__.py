"""Trials that try to break a run; `make chaos` runs them, the suite a part of them."""
