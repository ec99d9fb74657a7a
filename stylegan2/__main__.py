"""`python -m stylegan2`."""

from stylegan2.cli import main

main(prog_name="stylegan2")
