"""The operator plane: registry, policy, verdicts, the ledger and its fold, audit and offline verification."""
