"""Programs that run without this package: the towers and label maps in other programs' formats."""
