"""The node process: wiring, admission, leases, signals and what the control API is answered with."""
