"""Policy-gradient methods for language models, compared under identical conditions."""

__version__ = "0.1.0"
