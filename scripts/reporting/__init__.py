"""The report's parts: read a run's files, work out numbers, draw plots, make the page."""
