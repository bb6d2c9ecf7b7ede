"""The name that Airflow's processes know this machine by."""


def loopback() -> str:
    """For ``[core] hostname_callable``: the API server asks this host for the log of a running task.

    A name that the network resolves would carry its signed request off this machine, or wait for DNS.
    """
    return "127.0.0.1"
