"""The subcommands of `stylegan2`, one module each."""
