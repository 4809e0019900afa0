"""Reports from the MLflow store alone: frames, statistics, figures, and the page that shows them."""
