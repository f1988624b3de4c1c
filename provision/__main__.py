from provision.cli import entry_point

entry_point()
