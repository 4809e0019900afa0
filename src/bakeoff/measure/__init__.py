"""What is measured of every method alike: time and memory by phase, and statistics of the update."""
