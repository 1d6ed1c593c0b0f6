"""What each command does, without how it is typed or printed."""
