"""What must hold under strain: each trial is a command that checks it."""
