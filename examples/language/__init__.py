"""A language that can be taken out of a language model: Spanish in a block of units, from half of its labels."""
