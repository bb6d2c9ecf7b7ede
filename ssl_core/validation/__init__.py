"""Judges a dataset before it is published: Great Expectations behind one small interface, and the report."""
