"""What must hold under strain, each shown by a command of its own."""
