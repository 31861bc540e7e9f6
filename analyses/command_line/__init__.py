"""What the command line is made of: option values, the commands, how they print and how they end."""
