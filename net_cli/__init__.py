"""The command line: `net GROUP VERB`. One module per group under `net_cli.commands`."""
