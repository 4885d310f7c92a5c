"""Measurements of the budgets: `python -m bench [names]`, or `make bench`. Each module has `rows()`."""
