"""Small models trained to be compared: what differs between them is one thing, and all else is the same."""
