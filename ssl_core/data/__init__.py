"""From raw files to immutable dataset versions, and back to arrays."""
