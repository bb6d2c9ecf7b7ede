"""The library behind the platform: knows self-supervised learning, knows no Airflow."""

__version__ = "0.1.0"
