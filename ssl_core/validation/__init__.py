"""Great Expectations behind one small interface."""
