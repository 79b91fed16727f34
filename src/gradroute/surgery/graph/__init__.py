"""A model as an exported graph: how units go through its operations, from the weights that make them to readers."""
