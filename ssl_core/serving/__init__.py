"""The models that MLflow serves."""
