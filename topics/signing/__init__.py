"""Signing: Merkle trees, signed roots, keys and salts, and the check of evidence against them."""
