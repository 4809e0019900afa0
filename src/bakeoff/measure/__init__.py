"""Measurements that every method shares: time and memory by phase."""

STILL = 0.01  # nats per completion: a policy whose KL to the start stays below it has not moved
TRAINING = (
    *("rollout", "reward", "experience", "actor_update", "fisher_product", "critic_update", "behaviour_kl"),
    *("renewal", "offload"),
)
# metrics with these prefixes differ between identical runs; all others are functions of the configuration
NOT_REPRODUCIBLE = ("time/", "speed/", "memory/", "progress/seconds", "progress/cpu_seconds")
