"""The models of a run: causal LMs with their tokenizers, and the networks built from them."""
