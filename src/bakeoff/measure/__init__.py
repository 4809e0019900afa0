"""What is measured of every method alike: time and memory by phase, and statistics of the update."""

TRAINING = (
    "rollout",
    "reward",
    "experience",
    "actor_update",
    "fisher_product",
    "critic_update",
    "renewal",
    "offload",
)
PHASES = ("sft", *TRAINING, "measure")
# metrics by these prefixes differ between identical runs; all others are functions of the configuration
NOT_REPRODUCIBLE = ("time/", "speed/", "memory/", "progress/seconds")
