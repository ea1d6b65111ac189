"""Small experiments that show what the parts do, each in minutes on two cores: `python -m experiments NAME`."""
