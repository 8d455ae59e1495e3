"""The only code that asks the machine, and recorded facts of other machines."""
