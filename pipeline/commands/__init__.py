"""The subcommands of `vesselforge`, one module each."""
