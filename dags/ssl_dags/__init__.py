"""Airflow's side of the platform: order, schedules, forms, links and runners. Knows Airflow; knows no machine learning."""
