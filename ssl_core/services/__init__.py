"""The services of a platform on one machine: Airflow's processes and the way to its API."""
