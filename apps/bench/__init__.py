"""Rates of this machine, and the hours that follow."""
