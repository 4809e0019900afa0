"""From scores to a better policy: supervised start, experience, update, evaluation, checkpoint."""
