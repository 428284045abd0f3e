"""SimPO and WPO: what the command-line programs share. Importing it loads nothing.

The packages build on each other in this order, and none imports from one that comes later:
console, files, model_files, folder, config, chat, data, logps, objectives, train; beside the last six stands engine,
beside the last four judge.
"""
