"""An evaluation as files: written into a folder, read back as a stranger's, put into a Hub repo."""
