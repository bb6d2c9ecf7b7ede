"""Encoders, heads and probes: networks and what is fitted on their embeddings."""
