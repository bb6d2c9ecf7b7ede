"""MLflow tracking and registry, the gate, the ledger and promotion."""
