"""The rewards, by the name in `reward.functions` and `reward.process`, where functions of a user may stand too."""
