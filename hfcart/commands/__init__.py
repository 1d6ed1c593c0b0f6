"""What each command does, from checked arguments to files and commits; how it is typed and printed is `cli`'s.

A file for each command, and what several of them share. What does not need a command to be of use belongs further down.
"""
