"""A variational autoencoder with one latent dimension per digit, made so by gradient routing alone."""
