"""Several topics that can be taken out of one language model, each by itself, from half of their labels."""
