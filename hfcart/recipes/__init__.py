"""What a run is asked to do, and finished work read back as the stranger's file it is."""
