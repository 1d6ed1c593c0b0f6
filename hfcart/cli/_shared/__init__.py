"""What the commands share: their options, and the one sink of what they print."""
