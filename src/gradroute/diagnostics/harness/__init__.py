"""Runs of a user's step, again and again on parts of a batch, with everything put back."""
