"""The families that the Byte Latent Transformer is compared with; same call, same loss."""
